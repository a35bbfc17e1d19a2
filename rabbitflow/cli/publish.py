"""``rabbitflow publish``: announce events from the command line."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from io import StringIO
from pathlib import Path
from typing import Any, TextIO

import click
from pydantic import ValidationError
from pydantic_core import from_json

from rabbitflow.cli.options import broker_options, errors_in_one_line, run, settings_from
from rabbitflow.cli.progress import counting
from rabbitflow.errors import EventError
from rabbitflow.event import Event, readable
from rabbitflow.publisher import Publisher
from rabbitflow.settings import Settings


@click.command()
@click.argument("event_type", metavar="TYPE")
@click.option("--data", required=True, metavar="FILE|-|JSON", help="A whole event, or its data.")
@click.option("--ndjson", is_flag=True, help="--data holds many events, one a line.")
@click.option("--key", help="What the event is about, such as an order id.")
@click.option("--source", help="Who announces.")
@click.option("--correlation-id", help="One id for everything that follows from one cause.")
@click.option("--timeout", type=float, metavar="SECONDS", help="To be confirmed within.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@broker_options
@errors_in_one_line
def publish(
    event_type: str,
    data: str,
    ndjson: bool,
    key: str | None,
    source: str | None,
    correlation_id: str | None,
    timeout: float | None,
    as_json: bool,
    url: str | None,
    namespace: str | None,
) -> None:
    """Announce that TYPE happened, and print the event's id once the broker has it safe."""
    settings = settings_from(url, namespace, publish_timeout_s=timeout)
    given = {"key": key, "source": source, "correlation_id": correlation_id}
    fields = {name: value for name, value in given.items() if value is not None}
    if ndjson:
        _publish_lines(event_type, data, fields, settings, as_json)
        return
    with _opened(data) as stream:
        event = _event(event_type, stream.read(), fields, _named(data))
    run(_publish_one(event, settings))
    shown = {"id": event.id, "type": event.type, "timestamp": event.timestamp.isoformat()}
    click.echo(json.dumps(shown) if as_json else event.id)


async def _publish_one(event: Event[Any], settings: Settings) -> None:
    async with Publisher(settings=settings) as publisher:
        await publisher.publish(event)


def _publish_lines(
    event_type: str, data: str, fields: dict[str, str], settings: Settings, as_json: bool
) -> None:
    total: int | None = None
    if data != "-":
        # Read through once before, so that a fault in the last line does not leave half announced.
        total = sum(1 for _ in _events(event_type, data, fields))
    started = time.monotonic()

    async def publish_all() -> int:
        async with Publisher(settings=settings) as publisher:
            with counting(event_type, total, quiet=as_json) as advance:
                return await publisher.publish_many(
                    _events(event_type, data, fields), on_confirmed=lambda event: advance()
                )

    count = run(publish_all())
    took_s = time.monotonic() - started
    if as_json:
        click.echo(json.dumps({"published": count, "seconds": round(took_s, 3)}))
    else:
        click.echo(f"{count} events announced in {took_s:.1f} s ({count / took_s:,.0f}/s)")


def _events(event_type: str, data: str, fields: dict[str, str]) -> Iterator[Event[Any]]:
    with _opened(data) as stream:
        for number, line in enumerate(stream, start=1):
            if line.strip():
                yield _event(event_type, line, fields, f"{_named(data)}, line {number}")


def _event(event_type: str, text: str, fields: dict[str, str], where: str) -> Event[Any]:
    """Return the event in ``text``: a whole one, or the data of one."""
    try:
        given = from_json(text, allow_inf_nan=False)
    except ValueError as error:
        raise EventError(f"{where} is no JSON: {error}") from error
    is_whole = isinstance(given, dict) and {"type", "data"} <= given.keys()
    envelope = {**given, **fields} if is_whole else {"data": given, **fields}
    if envelope.setdefault("type", event_type) != event_type:
        raise EventError(f"{where} says type {envelope['type']!r}, and you said {event_type!r}")
    try:
        return Event[Any].model_validate(envelope)
    except ValidationError as error:
        raise EventError(f"{where}: {readable(error)}") from error


@contextmanager
def _opened(data: str) -> Iterator[TextIO]:
    if data == "-":
        yield sys.stdin
        return
    if _is_json(data):
        yield StringIO(data)
        return
    try:
        with Path(data).open(encoding="utf-8") as stream:
            yield stream
    except (OSError, UnicodeDecodeError) as error:
        raise EventError(f"{data} can't be read: {error}") from error


def _is_json(data: str) -> bool:
    return data.lstrip()[:1] in ("{", "[", '"') or data in ("null", "true", "false")


def _named(data: str) -> str:
    if data == "-":
        return "standard input"
    return "--data" if _is_json(data) else data
