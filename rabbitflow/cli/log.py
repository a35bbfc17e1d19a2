"""``rabbitflow log``: what was announced, live and from the past."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import click

from rabbitflow.cli.log_options import event_types_of, from_option, type_arguments, until_option
from rabbitflow.cli.options import broker_options, errors_in_one_line, run, settings_from
from rabbitflow.cli.progress import counting
from rabbitflow.errors import EventError
from rabbitflow.event import Event
from rabbitflow.log.entry import Entry
from rabbitflow.log.following import export as export_log
from rabbitflow.log.following import tail as tail_log
from rabbitflow.log.span import FIRST, NEXT, Span, parse_moment, parse_start
from rabbitflow.settings import Settings


@click.group()
def log() -> None:
    """Read the event log: what was announced is kept on the broker, for 7 days by default.

    TYPE... defaults to everything that the consumers of the project react to ([tool.rabbitflow]
    modules in pyproject.toml).
    """


@log.command()
@type_arguments
@from_option(NEXT)
@click.option("--json", "as_json", is_flag=True, help="One event a line, as JSON.")
@broker_options
@errors_in_one_line
def tail(
    event_types: tuple[str, ...],
    start: str,
    as_json: bool,
    url: str | None,
    namespace: str | None,
) -> None:
    """Show what is announced, as it happens, until interrupted."""
    span = Span(parse_start(start))
    settings = settings_from(url, namespace)
    with contextlib.suppress(KeyboardInterrupt):
        run(_tail(event_types_of(event_types), span, settings, as_json))


async def _tail(
    event_types: tuple[str, ...], span: Span, settings: Settings, as_json: bool
) -> None:
    async for entry in tail_log(event_types, span, settings):
        event = _event_of(entry)
        if event is None:
            click.echo(f"{entry.event_type} {entry.offset} is no event", err=True)
        elif span.holds(event):
            click.echo(_line(event) if as_json else _shown(entry, event))


@log.command()
@type_arguments
@from_option(FIRST)
@until_option
@broker_options
@errors_in_one_line
def export(
    event_types: tuple[str, ...],
    start: str,
    until: str | None,
    url: str | None,
    namespace: str | None,
) -> None:
    """Print what was announced, one whole event a line (NDJSON), in the order it happened.

    It ends with what was there when it began. `rabbitflow publish TYPE --ndjson --data FILE` takes
    the lines of one type back.
    """
    span = Span(parse_start(start), None if until is None else parse_moment(until))
    settings = settings_from(url, namespace)
    unreadable = run(_export(event_types_of(event_types), span, settings))
    if unreadable:
        click.echo(f"rabbitflow: {unreadable} messages left out, as they are no events", err=True)


async def _export(event_types: tuple[str, ...], span: Span, settings: Settings) -> int:
    unreadable = 0
    with counting("export", None, quiet=False) as advance:
        async for entry in export_log(event_types, span, settings):
            event = _event_of(entry)
            if event is None:
                unreadable += 1
            elif span.holds(event):
                click.echo(_line(event))
                advance()
    return unreadable


def _event_of(entry: Entry) -> Event[Any] | None:
    try:
        return entry.event()
    except EventError:
        return None


def _line(event: Event[Any]) -> str:
    return event.encode().decode()


def _shown(entry: Entry, event: Event[Any]) -> str:
    about = f" {event.key}" if event.key else ""
    data = json.dumps(event.data, ensure_ascii=False, default=str)
    when = event.timestamp.isoformat(timespec="milliseconds")
    return f"{when} {event.type}{about} {event.id} @{entry.offset} {data}"
