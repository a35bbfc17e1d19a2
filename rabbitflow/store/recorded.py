"""Events as the store keeps them: how they are written down, chained by hashes, and read back."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from pydantic_core import ValidationError, from_json

from rabbitflow.cipher import Cipher
from rabbitflow.encryption import Sealing
from rabbitflow.errors import EventError, StoreError
from rabbitflow.event import Event, readable, to_body

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
NO_HASH = bytes(32)
"""What the first event of a stream is chained to."""

STREAM_BYTES = 255

_MICROSECOND = timedelta(microseconds=1)
_validate = Event[Any].__pydantic_validator__.validate_python


class Recorded(NamedTuple):
    """An event in the store, and its place there.

    Fields:
        event: what happened.
        stream: what it belongs to, such as ``account-1``.
        version: its number in the stream, from 1 on, without gaps.
        position: its number in the whole store, in commit order, from 1 on, without gaps.
        recorded_at: when it was appended, by the writer's clock; ``event.timestamp`` is when it
            happened.
        hash: covers this event and, through the one before, the stream's whole history.
    """

    event: Event[Any]
    stream: str
    version: int
    position: int
    recorded_at: datetime
    hash: bytes


class Row(NamedTuple):
    """An event as both databases hand it out. Times are microseconds since 1970 UTC."""

    position: int
    stream: str
    version: int
    id: str
    type: str
    schema_version: int
    timestamp: int
    recorded_at: int
    data: str
    source: str | None
    correlation_id: str | None
    causation_id: str | None
    key: str | None
    hash: bytes


class Written(NamedTuple):
    """An event about to be appended, as both databases take it."""

    id: str
    type: str
    schema_version: int
    timestamp: int
    recorded_at: int
    data: str
    source: str | None
    correlation_id: str | None
    causation_id: str | None
    key: str | None


def micros(moment: datetime) -> int:
    """Return the microseconds since 1970 UTC, exactly."""
    return (moment - EPOCH) // _MICROSECOND


def moment(micros: int) -> datetime:
    """Return the time in UTC, exactly."""
    return EPOCH + timedelta(microseconds=micros)


def checked_stream(stream: str) -> str:
    """Return ``stream``.

    Raises:
        EventError: it is empty, over 255 bytes as UTF-8, or holds what can't be written down.
    """
    try:
        fits = 0 < len(stream.encode()) <= STREAM_BYTES and stream.isprintable()
    except UnicodeEncodeError:
        fits = False
    if not fits:
        raise EventError(
            f"not a stream's name: {stream[:60]!r}; it has 1 to {STREAM_BYTES} bytes, all printable"
        )
    return stream


def write(event: Event[Any], recorded_at: int, cipher: Cipher | None = None) -> Written:
    """Return ``event`` as it is appended, what is ``Encrypted`` sealed by ``cipher``.

    Raises:
        EventError: its data can't be written as JSON.
    """
    sealing = None if cipher is None else Sealing(cipher, event.id)
    return Written(
        event.id,
        event.type,
        event.version,
        (event.timestamp - EPOCH) // _MICROSECOND,
        recorded_at,
        to_body(event.data, event.type, sealing).decode(),
        event.source,
        event.correlation_id,
        event.causation_id,
        event.key,
    )


def digest(stream: str, event: Written | Row) -> bytes:
    """Return the SHA-256 of an event's content: one text, as UTF-8.

    It has each text preceded by its length in code points and ``:``, or ``-`` where there is none,
    and each number followed by ``;``, in the order of ``Row``.

    Raises:
        EventError: a text can't be written in both databases.
    """
    id_, type_, data = event.id, event.type, event.data
    source, correlation, causation, key = (
        event.source,
        event.correlation_id,
        event.causation_id,
        event.key,
    )
    content = (
        f"{len(stream)}:{stream}{len(id_)}:{id_}{len(type_)}:{type_}{event.schema_version};"
        f"{event.timestamp};{event.recorded_at};{len(data)}:{data}"
        f"{'-' if source is None else f'{len(source)}:{source}'}"
        f"{'-' if correlation is None else f'{len(correlation)}:{correlation}'}"
        f"{'-' if causation is None else f'{len(causation)}:{causation}'}"
        f"{'-' if key is None else f'{len(key)}:{key}'}"
    )
    if "\0" in content:
        raise EventError(f"event {id_!r}: PostgreSQL keeps no text with a NUL in it")
    try:
        return hashlib.sha256(content.encode()).digest()
    except UnicodeEncodeError as error:
        raise EventError(f"event {id_!r} can't be written as UTF-8: {error}") from error


def chained(previous: bytes, version: int, content: bytes) -> bytes:
    """Return the hash of the event ``version`` whose content has the digest ``content``."""
    return hashlib.sha256(previous + version.to_bytes(8) + content).digest()


def event_of(row: Sequence[Any]) -> Event[Any]:
    """Return the event of a row.

    Raises:
        StoreError: the row is not one that the store wrote.
    """
    try:
        # By number, not by name: this runs once per event that is read.
        event: Event[Any] = _validate(
            {
                "id": row[3],
                "type": row[4],
                "version": row[5],
                "timestamp": EPOCH + timedelta(0, 0, row[6]),
                "data": from_json(row[8]),
                "source": row[9],
                "correlation_id": row[10],
                "causation_id": row[11],
                "key": row[12],
            }
        )
    except (ValueError, TypeError, OverflowError) as error:
        said = readable(error) if isinstance(error, ValidationError) else error
        raise StoreError(
            f"the event at position {row[0]} is not as it was written ({said});"
            " rabbitflow store verify says what was altered"
        ) from error
    return event


def read(row: Sequence[Any]) -> Recorded:
    """Return the event of a row, and its place."""
    return Recorded(event_of(row), row[1], row[2], row[0], moment(row[7]), row[13])
