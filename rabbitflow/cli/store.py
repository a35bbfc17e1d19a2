"""``rabbitflow store``: the history of a stream, its state at a time, and whether it is whole."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import click
from pydantic_core import from_json, to_json, to_jsonable_python
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rabbitflow.cipher import Cipher
from rabbitflow.cli.options import EXIT_FAILED, errors_in_one_line, run
from rabbitflow.encryption import MASKING
from rabbitflow.errors import ConfigurationError, EventError
from rabbitflow.settings import load_settings
from rabbitflow.store import EventStore, Recorded, Verification
from rabbitflow.store import verify as verify_store
from rabbitflow.store.asof import as_of
from rabbitflow.store.export import exported, ndjson
from rabbitflow.upcast import Upcasters

P = ParamSpec("P")
ResultT = TypeVar("ResultT")

_DATA_SHOWN = 120
_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_as_of = click.option(
    "--as-of",
    "until",
    metavar="TIME",
    help="Only with what happened up to then: 2026-03-15 (that day included, UTC) or"
    " 2026-03-15T18:00+05:30.",
)


def _database(command: Callable[P, ResultT]) -> Callable[P, ResultT]:
    return click.option(
        "--database",
        metavar="URL",
        help="sqlite:///file.db or postgresql://user@host/name; RABBITFLOW_DATABASE_URL.",
    )(command)


@click.group()
def store() -> None:
    """Look into an event store: history, state at a time, verification, export."""


@store.command()
@click.argument("stream")
@_as_of
@_json
@_database
@errors_in_one_line
def history(stream: str, until: str | None, as_json: bool, database: str | None) -> None:
    """Show what happened to STREAM: its audit trail."""
    run(_history(stream, until, as_json, database))


@store.command()
@click.argument("stream")
@click.option("--fold", required=True, metavar="MODULE:NAME", help="Such as workers.bank:balance.")
@click.option("--initial", metavar="JSON", help="The state before the first event.")
@click.option("--upcasters", metavar="MODULE:NAME", help="Reads old versions of events.")
@_as_of
@_json
@_database
@errors_in_one_line
def state(
    stream: str,
    fold: str,
    initial: str | None,
    upcasters: str | None,
    until: str | None,
    as_json: bool,
    database: str | None,
) -> None:
    """Show the state that the events of STREAM lead to, now or as it was."""
    run(_state(stream, fold, initial, upcasters, until, as_json, database))


@store.command()
@click.option("--seal", metavar="POSITION:HASH", help="Of an earlier verification.")
@_json
@_database
@errors_in_one_line
def verify(seal: str | None, as_json: bool, database: str | None) -> None:
    """Find altered, removed and inserted events. Exits 1 where there are any.

    Prints a seal. Keep it elsewhere: the next verification with --seal also finds changes by
    somebody who could write to the whole database.
    """
    found = run(_verify(seal, database))
    if as_json:
        click.echo(json.dumps(found.as_json(), indent=2))
    else:
        whole = "whole" if not found.faults else f"not whole, {len(found.faults)} faults"
        click.echo(f"{found.events} events in {found.streams} streams: the history is {whole}")
        if found.faults:
            Console().print(_faults(found))
        click.echo(f"seal {found.seal}")
    if found.faults:
        sys.exit(EXIT_FAILED)


@store.command()
@click.option("--stream", help="Only this one; otherwise the whole store, in commit order.")
@click.option("--from", "first", type=click.IntRange(1), default=1, help="Version or position.")
@click.option("--output", "-o", type=click.Path(dir_okay=False, path_type=Path), help="A file.")
@_as_of
@_json
@_database
@errors_in_one_line
def export(
    stream: str | None,
    first: int,
    output: Path | None,
    until: str | None,
    as_json: bool,
    database: str | None,
) -> None:
    """Write events as JSON, one a line, to standard output or a file.

    --json changes nothing: it is JSON anyway.
    """
    count = run(_export(stream, first, output, until, database))
    if output is not None:
        click.echo(f"{count} events are in {output}", err=True)


@asynccontextmanager
async def _open(
    database: str | None, upcasters: str | None = None, *, is_folded: bool = False
) -> AsyncIterator[EventStore]:
    """Open the store to look into it: nothing is created."""
    settings = load_settings(database_url=database)
    url = settings.database_url.get_secret_value()
    # Only a fold needs what is encrypted; everybody else shows it as it is kept.
    cipher = Cipher.at(settings.encryption_keys_file) if is_folded else None
    registry = None if upcasters is None else named(upcasters)
    if registry is not None and not isinstance(registry, Upcasters):
        raise ConfigurationError(f"{upcasters} is no Upcasters")
    async with EventStore(
        url, upcasters=registry, cipher=cipher, create=False, snapshot_every=0
    ) as store:
        yield store


async def _history(stream: str, until: str | None, as_json: bool, database: str | None) -> None:
    moment = as_of(until) if until else None
    async with _open(database) as store:
        events = [recorded async for recorded in store.read(stream, until=moment)]
    if not events:
        raise EventError(f"stream {stream!r} has no events{f' up to {until}' if until else ''}")
    if as_json:
        listed = [to_jsonable_python(exported(recorded)) for recorded in events]
        click.echo(json.dumps(listed, indent=2, ensure_ascii=False))
    else:
        Console().print(_events(stream, events))


async def _state(
    stream: str,
    fold: str,
    initial: str | None,
    upcasters: str | None,
    until: str | None,
    as_json: bool,
    database: str | None,
) -> None:
    moment = as_of(until) if until else None
    function = named(fold)
    try:
        given = None if initial is None else from_json(initial)
    except ValueError as error:
        raise EventError(f"--initial is not JSON: {error}") from error
    async with _open(database, upcasters, is_folded=True) as store:
        rebuilt = await store.load(stream, function, given, until=moment)
    if not rebuilt.version:
        raise EventError(f"stream {stream!r} has no events{f' up to {until}' if until else ''}")
    shown = to_jsonable_python(rebuilt.state, context=MASKING)
    if as_json:
        answer = {"stream": stream, "version": rebuilt.version, "as_of": moment, "state": shown}
        click.echo(json.dumps(to_jsonable_python(answer), indent=2, ensure_ascii=False))
        return
    when = f"as of {moment:%Y-%m-%d %H:%M:%S} UTC" if moment else "now"
    click.echo(f"{stream} {when}, after {rebuilt.version} events:")
    click.echo(json.dumps(shown, indent=2, ensure_ascii=False))


async def _verify(seal: str | None, database: str | None) -> Verification:
    async with _open(database) as store:
        return await verify_store(store, seal)


async def _export(
    stream: str | None, first: int, output: Path | None, until: str | None, database: str | None
) -> int:
    moment = as_of(until) if until else None
    async with _open(database) as store:
        with click.open_file(str(output or "-"), "w", encoding="utf-8") as file:
            count = 0
            async for line in ndjson(store, stream, first, moment):
                file.write(line)
                count += 1
        return count


def named(path: str) -> Any:
    """Return what MODULE:NAME names; the current directory is where modules are looked for."""
    module, _, name = path.partition(":")
    if not module or not name:
        raise ConfigurationError(f"write MODULE:NAME, such as workers.bank:balance, not {path!r}")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise ConfigurationError(f"{path} can't be found: {error}") from error
    return found


def _events(stream: str, events: list[Recorded]) -> Table:
    table = Table(title=stream, title_justify="left")
    for name in ("#", "happened (UTC)", "event", "data", "by"):
        table.add_column(name, overflow="fold")
    for recorded in events:
        event = recorded.event
        data = to_json(event.data).decode()
        shown = data if len(data) <= _DATA_SHOWN else f"{data[:_DATA_SHOWN]}…"
        when = f"{event.timestamp:%Y-%m-%d %H:%M:%S}"
        cells = (str(recorded.version), when, event.type, shown, event.source or "")
        table.add_row(*map(Text, cells))
    return table


def _faults(found: Verification) -> Table:
    table = Table()
    for name in ("fault", "stream", "version", "position", "what"):
        table.add_column(name, overflow="fold")
    for fault in found.faults:
        cells = (fault.kind, fault.stream, fault.version, fault.position, fault.what)
        table.add_row(*(Text("" if cell is None else str(cell)) for cell in cells))
    return table
