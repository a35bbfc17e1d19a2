"""``rabbitflow topology``: what stands on the broker for some modules."""

from __future__ import annotations

import json
from dataclasses import asdict

import click
from rich.console import Console
from rich.table import Table

from rabbitflow.broker import close, connect
from rabbitflow.cli.options import broker_options, errors_in_one_line, run, settings_from
from rabbitflow.declaration import declare
from rabbitflow.errors import ConfigurationError
from rabbitflow.settings import Settings
from rabbitflow.topology import Topology
from rabbitflow.worker.discovery import discover


@click.group()
def topology() -> None:
    """Show or declare the exchanges and queues that modules need."""


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


async def _needed(modules: tuple[str, ...], settings: Settings) -> Topology:
    discovery = await discover(modules)
    if discovery.broken:
        raise ConfigurationError(
            "; ".join(f"{broken.module}: {broken.error}" for broken in discovery.broken)
        )
    if not discovery.consumers:
        raise ConfigurationError(f"no consumer is defined in {', '.join(modules)}")
    needed = Topology()
    for found in discovery.consumers:
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
