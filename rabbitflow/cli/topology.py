"""``rabbitflow topology``: what stands on the broker for some modules."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict

import click
from rich.console import Console
from rich.table import Table

from rabbitflow.broker import close, connect
from rabbitflow.cli.dlq_options import consumer_argument
from rabbitflow.cli.options import (
    EXIT_FAILED,
    broker_options,
    errors_in_one_line,
    run,
    settings_from,
)
from rabbitflow.cli.permissions import permissions
from rabbitflow.cli.progress import counting
from rabbitflow.declaration import declare
from rabbitflow.errors import ConfigurationError
from rabbitflow.inspection import Difference, difference
from rabbitflow.migration.consumer import LEAVE_WITHIN_S, Migrated
from rabbitflow.migration.consumer import migrate as migrate_queues
from rabbitflow.migration.queues import Progress
from rabbitflow.project import discover_named, discover_whole
from rabbitflow.settings import Settings
from rabbitflow.topology import Names, Queue, Topology


@click.group()
def topology() -> None:
    """Show, declare, compare or replace the exchanges and queues that modules need."""


topology.add_command(permissions)


@topology.command()
@click.argument("modules", nargs=-1, required=True, metavar="MODULE...")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@broker_options
@errors_in_one_line
def show(modules: tuple[str, ...], as_json: bool, url: str | None, namespace: str | None) -> None:
    """Show what MODULE... need; asks no broker."""
    needed = run(_needed(modules, settings_from(url, namespace)))
    if as_json:
        click.echo(json.dumps(asdict(needed), indent=2))
    else:
        Console().print(_table(needed))


@topology.command()
@click.argument("modules", nargs=-1, required=True, metavar="MODULE...")
@broker_options
@errors_in_one_line
def apply(modules: tuple[str, ...], url: str | None, namespace: str | None) -> None:
    """Declare what MODULE... need, so that workers can run with --no-declare."""
    settings = settings_from(url, namespace)
    needed = run(_apply(modules, settings))
    click.echo(
        f"{len(needed.exchanges)} exchanges, {len(needed.queues)} queues and"
        f" {len(needed.bindings)} bindings stand on {settings.shown_url}"
    )


@topology.command()
@click.argument("modules", nargs=-1, metavar="[MODULE...]")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@broker_options
@errors_in_one_line
def diff(modules: tuple[str, ...], as_json: bool, url: str | None, namespace: str | None) -> None:
    """Show what the broker has otherwise than MODULE... need; exit 1 where anything differs.

    Nothing is changed. Bindings can't be read over AMQP: rabbitflow doctor can, if it is given the
    management API.
    """
    found = run(_diff(modules, settings_from(url, namespace)))
    if as_json:
        click.echo(json.dumps(asdict(found), indent=2))
    elif found:
        Console().print(_difference_table(found))
    else:
        click.echo("nothing differs")
    sys.exit(EXIT_FAILED if found else 0)


@topology.command()
@consumer_argument
@click.argument("modules", nargs=-1, metavar="[MODULE...]")
@click.option("--pause", is_flag=True, help="Pause the consumer meanwhile, and resume it.")
@click.option(
    "--wait",
    type=click.FloatRange(0),
    default=LEAVE_WITHIN_S,
    show_default=True,
    metavar="SECONDS",
    help="With --pause: for its workers to finish what they have begun.",
)
@click.option(
    "--event",
    "events",
    multiple=True,
    metavar="TYPE",
    help="Keep the queue bound to an event that no handler names any more.",
)
@broker_options
@errors_in_one_line
def migrate(
    consumer: str,
    modules: tuple[str, ...],
    pause: bool,
    wait: float,
    events: tuple[str, ...],
    url: str | None,
    namespace: str | None,
) -> None:
    """Replace the queues of CONSUMER whose arguments changed; no event is lost.

    CONSUMER is one of MODULE..., or of the project here. Publishers may run. Its workers must be
    stopped, or --pause waits for them. Killed at any moment, it goes on when it is run again.
    """
    settings = settings_from(url, namespace)
    done = run(_migrate(consumer, modules, settings, events, pause, wait))
    if not done.queues:
        click.echo(f"nothing differs: {consumer} has the queues it needs")
        return
    click.echo(f"replaced: {', '.join(done.queues)}")
    if done.is_paused:
        click.echo(f"{consumer} is paused, as before; go on with: rabbitflow resume {consumer}")


async def _migrate(
    consumer: str,
    modules: tuple[str, ...],
    settings: Settings,
    events: tuple[str, ...],
    pause: bool,
    wait_s: float,
) -> Migrated:
    found = next(
        (one for one in (await discover_named(modules)).consumers if one.name == consumer), None
    )
    if found is None:
        raise ConfigurationError(f"no consumer named {consumer} is defined there")
    names = Names(settings.namespace)
    with counting(f"moving events of {consumer}", None, quiet=False) as advance:

        def moved(count: int) -> None:
            for _ in range(count):
                advance()

        return await migrate_queues(
            consumer,
            found.topology(settings),
            settings,
            also_bound=tuple(map(names.exchange, events)),
            pause=pause,
            leave_within_s=wait_s,
            progress=Progress(
                step=lambda done: click.echo(done, err=True),
                moved=moved,
            ),
        )


async def _diff(modules: tuple[str, ...], settings: Settings) -> Difference:
    needed = await _needed(modules, settings)
    connection = await connect(settings, "rabbitflow topology diff")
    try:
        return await difference(connection, needed, settings)
    finally:
        await close(connection)


def _difference_table(found: Difference) -> Table:
    table = Table("object", "name", "argument", "on the broker", "wanted")
    for missing in found.missing:
        kind = "queue" if isinstance(missing, Queue) else "exchange"
        table.add_row(kind, missing.name, "", "[red]missing[/]", "")
    for mismatch in found.mismatches:
        table.add_row(
            mismatch.kind, mismatch.name, mismatch.argument, mismatch.current, mismatch.wanted
        )
    return table


async def _needed(modules: tuple[str, ...], settings: Settings) -> Topology:
    needed = Topology()
    for found in await discover_whole(modules):
        needed += found.topology(settings)
    return needed


async def _apply(modules: tuple[str, ...], settings: Settings) -> Topology:
    needed = await _needed(modules, settings)
    connection = await connect(settings, "rabbitflow topology apply")
    try:
        await declare(connection, needed, settings)
    finally:
        await close(connection)
    return needed


def _table(needed: Topology) -> Table:
    table = Table("object", "name", "arguments")
    for exchange in needed.exchanges:
        table.add_row("exchange", exchange.name, exchange.type)
    for queue in needed.queues:
        arguments = "\n".join(f"{name} = {value}" for name, value in queue.arguments.items())
        table.add_row("queue", queue.name, arguments)
    for binding in needed.bindings:
        table.add_row("binding", f"{binding.exchange} → {binding.queue}", "")
    return table
