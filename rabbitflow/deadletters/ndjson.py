"""Dead letters as lines of JSON: exported to be read, kept or mended by other tools, and back.

A line holds the message whole: ``body`` (``body_base64`` where it is no UTF-8), ``properties`` and
``headers``. The fields before them repeat the cause for whoever reads or filters the lines; coming
back, they are not looked at. A ``body`` that was made an object is written as JSON.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from decimal import Decimal
from typing import Any

from pamqp.commands import Basic

from rabbitflow.deadletters.letter import Letter
from rabbitflow.errors import EventError
from rabbitflow.topology import DELIVERY_COUNT, Names

# What AMQP tables hold and JSON does not, each as an object of one key that begins with "$".
_TIME, _DECIMAL, _BYTES = "$time", "$decimal", "$base64"
# A foreign table that looks like one of them is put into one more.
_TABLE = "$table"

_PROPERTIES = (
    "content_type",
    "content_encoding",
    "priority",
    "correlation_id",
    "reply_to",
    "message_id",
    "timestamp",
    "message_type",
    "app_id",
)


def described(letter: Letter) -> dict[str, Any]:
    """Return what there is to say of a letter, as JSON: its cause, and its body."""
    return {
        "id": letter.id,
        "event_type": letter.event_type,
        "reason": letter.reason,
        "exception_type": letter.exception_type,
        "exception_message": letter.exception_message,
        "traceback": letter.traceback,
        "attempt": letter.attempt,
        "replays": letter.replays,
        "first_failed_at": _iso(letter.first_failed_at),
        "failed_at": _iso(letter.failed_at),
        "exchange": letter.exchange,
        "host": letter.host,
        "version": letter.version,
        **_body(letter.body),
    }


def line_of(letter: Letter, consumer: str) -> str:
    """Return a letter as one line, without its end."""
    properties = letter.properties
    # The traceback is in the headers; once is enough in a file that may hold many.
    cause = {name: value for name, value in described(letter).items() if name != "traceback"}
    given = {name: getattr(properties, name) for name in _PROPERTIES}
    # Sorted, because a broker may give them in another order each time.
    headers = dict(sorted((properties.headers or {}).items()))
    # Says how often somebody looked, and would make two exports of one letter differ.
    headers.pop(DELIVERY_COUNT, None)
    whole = {
        "consumer": consumer,
        **cause,
        "properties": {name: _plain(value) for name, value in given.items() if value is not None},
        "headers": _plain(headers),
    }
    return json.dumps(whole, ensure_ascii=False)


def letters_of(lines: Iterable[str], consumer: str, names: Names, where: str) -> Iterator[Letter]:
    """Yield the letters in ``lines``, as exported from ``consumer``; ``where`` names the file.

    Raises:
        EventError: a line that is no exported dead letter, or one of another consumer.
    """
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        place = f"{where}, line {number}"
        try:
            letter, written_for = _letter_of(line, names)
        except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError) as error:
            raise EventError(f"{place} is no exported dead letter: {error!r}") from error
        if written_for not in (None, consumer):
            raise EventError(f"{place} is a dead letter of {written_for}, not of {consumer}")
        yield letter


def _letter_of(line: str, names: Names) -> tuple[Letter, str | None]:
    whole = json.loads(line)
    given = {name: _rich(value) for name, value in whole.get("properties", {}).items()}
    unknown = given.keys() - set(_PROPERTIES)
    if unknown:
        raise ValueError(f"unknown properties {', '.join(sorted(unknown))}")
    properties = Basic.Properties(**given, headers=_rich(whole.get("headers", {})))
    # Written down now, a value that AMQP has no form for is told with its line.
    properties.marshal()
    return Letter.read(_bytes(whole), properties, names), whole.get("consumer")


def _body(body: bytes) -> dict[str, str]:
    try:
        return {"body": body.decode()}
    except UnicodeDecodeError:
        return {"body_base64": base64.b64encode(body).decode()}


def _bytes(whole: dict[str, Any]) -> bytes:
    if "body_base64" in whole:
        return _decoded(whole["body_base64"])
    body = whole["body"]
    if isinstance(body, str):
        return body.encode()
    return json.dumps(body, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()


def _plain(value: Any) -> Any:
    match value:
        case dict():
            table = {str(name): _plain(inner) for name, inner in value.items()}
            looks_special = len(table) == 1 and next(iter(table)).startswith("$")
            return {_TABLE: table} if looks_special else table
        case list():
            return [_plain(inner) for inner in value]
        case datetime():
            return {_TIME: value.isoformat()}
        case Decimal():
            return {_DECIMAL: str(value)}
        case bytes() | bytearray():
            return {_BYTES: base64.b64encode(value).decode()}
    return value


def _rich(value: Any) -> Any:
    if isinstance(value, list):
        return [_rich(inner) for inner in value]
    if not isinstance(value, dict):
        return value
    if len(value) == 1:
        [(tag, inner)] = value.items()
        if tag in _FROM_TAG:
            return _FROM_TAG[tag](inner)
    return _rich_table(value)


def _rich_table(table: dict[str, Any]) -> dict[str, Any]:
    return {name: _rich(inner) for name, inner in table.items()}


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError(f"no base64: {error}") from error


_FROM_TAG: dict[str, Callable[[Any], Any]] = {
    _TIME: datetime.fromisoformat,
    _DECIMAL: Decimal,
    _BYTES: lambda text: bytearray(_decoded(text)),
    _TABLE: _rich_table,
}


def _iso(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat()
