"""``rabbitflow audit``: what happened, what it led to, and what each consumer did about it."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import click
from pydantic_core import to_json
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rabbitflow.audit import Deed, Finding
from rabbitflow.audit import audit as audited
from rabbitflow.cli.options import broker_options, errors_in_one_line, run, settings_from
from rabbitflow.cli.store import named
from rabbitflow.errors import ConfigurationError
from rabbitflow.project import discover_project
from rabbitflow.settings import Settings
from rabbitflow.store import EventStore
from rabbitflow.topology import check_consumer_name


@click.command()
@click.argument("subject", metavar="STREAM|EVENT_ID")
@click.option("--fold", metavar="MODULE:NAME", help="Of the state, such as workers.bank:balance.")
@click.option(
    "--consumer", "consumers", multiple=True, metavar="NAME", help="The project's where not given."
)
@click.option("--database", metavar="URL", help="Of the event store and the inboxes.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@broker_options
@errors_in_one_line
def audit(
    subject: str,
    fold: str | None,
    consumers: tuple[str, ...],
    database: str | None,
    as_json: bool,
    url: str | None,
    namespace: str | None,
) -> None:
    """Show the events of a stream, or one event: the state it led to, and what each consumer did.

    It joins event store, inboxes (handlers with once=True) and dead letters. "No trace" is an event
    that waits, is being retried, or was handled without once=True.
    """
    settings = settings_from(url, namespace, database_url=database)
    function = None if fold is None else named(fold)
    findings = run(_audit(subject, _reacting(consumers), settings, function))
    if as_json:
        click.echo(to_json([_plain(finding) for finding in findings], indent=2).decode())
    else:
        Console().print(_table(subject, findings, has_state=fold is not None))


def _reacting(named_consumers: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    """Return the consumers and the event types they react to, as far as the project tells."""
    try:
        found = {one.name: one.event_types for one in run(discover_project()).consumers}
    except ConfigurationError:
        if not named_consumers:
            raise
        found = {}
    wanted = [check_consumer_name(name) for name in named_consumers] or list(found)
    return {name: found.get(name, ()) for name in wanted}


async def _audit(
    subject: str,
    consumers: dict[str, tuple[str, ...]],
    settings: Settings,
    fold: Any,
) -> list[Finding]:
    url = settings.database_url.get_secret_value()
    async with EventStore(url, create=False) as store:
        return await audited(subject, store, consumers, settings, fold=fold)


def _plain(finding: Finding) -> dict[str, Any]:
    recorded = finding.recorded
    place = (
        {}
        if recorded is None
        else {
            "event": recorded.event,
            "stream": recorded.stream,
            "version": recorded.version,
            "position": recorded.position,
            "recorded_at": recorded.recorded_at,
        }
    )
    deeds = [asdict(deed) for deed in finding.deeds]
    return {"event_id": finding.event_id, **place, "state": finding.state, "consumers": deeds}


def _table(subject: str, findings: list[Finding], *, has_state: bool) -> Table:
    table = Table(title=subject, title_justify="left")
    for name in ("#", "happened (UTC)", "event", *(["state"] if has_state else []), "consumers"):
        table.add_column(name, overflow="fold")
    for finding in findings:
        recorded = finding.recorded
        cells = ["", "", finding.event_id]
        if recorded is not None:
            event = recorded.event
            happened = f"{event.timestamp:%Y-%m-%d %H:%M:%S}"
            cells = [str(recorded.version), happened, f"{event.type}\n{finding.event_id}"]
        if has_state:
            cells.append(to_json(finding.state).decode())
        # Text: what a handler said may look like markup.
        table.add_row(*map(Text, [*cells, "\n".join(map(_said, finding.deeds))]))
    return table


def _said(deed: Deed) -> str:
    parts = [f"{deed.consumer}: {deed.outcome}"]
    if deed.at is not None:
        parts.append(f"{deed.at:%Y-%m-%d %H:%M:%S}")
    if deed.attempts > 1:
        parts.append(f"attempt {deed.attempts}")
    if deed.is_replay:
        parts.append("as a replay")
    if deed.replays:
        parts.append(f"replayed {deed.replays} times")
    return ", ".join(parts) + (f" ({deed.why})" if deed.why else "")
