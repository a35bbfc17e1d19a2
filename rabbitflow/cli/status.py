"""``rabbitflow status``: how the consumers stand."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import asdict

import click
from rich.console import Console
from rich.live import Live
from rich.table import Table

from rabbitflow.broker import close, connect
from rabbitflow.cli.options import broker_options, errors_in_one_line, run, settings_from
from rabbitflow.project import discover_named
from rabbitflow.settings import Settings
from rabbitflow.status import ConsumerStatus, Lookout


@click.command()
@click.argument("modules", nargs=-1, metavar="[MODULE...]")
@click.option("--watch", is_flag=True, help="Look again and again, until Ctrl-C.")
@click.option("--interval", type=click.FloatRange(0.1), default=2.0, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with --watch one line a look.")
@broker_options
@errors_in_one_line
def status(
    modules: tuple[str, ...],
    watch: bool,
    interval: float,
    as_json: bool,
    url: str | None,
    namespace: str | None,
) -> None:
    """Show how the consumers of MODULE... stand, or those of the project here.

    READY waits in the queue, RETRY waits for another attempt, DEAD failed for good.
    """
    settings = settings_from(url, namespace)
    try:
        run(_show(modules, settings, interval if watch else None, as_json))
    except KeyboardInterrupt:
        return


async def _show(
    modules: tuple[str, ...], settings: Settings, interval_s: float | None, as_json: bool
) -> None:
    discovery = await discover_named(modules)
    for broken in discovery.broken:
        click.echo(f"{broken.module} is left out: {broken.error}", err=True)
    consumers = {found.name: found.partitions for found in discovery.consumers}
    looks = _looks(consumers, settings, interval_s)
    if as_json:
        async for found in looks:
            shown = [{**asdict(one), "state": one.state} for one in found]
            click.echo(json.dumps(shown, indent=None if interval_s else 2))
        return
    console = Console()
    if interval_s is None:
        async for found in looks:
            console.print(_table(found))
        return
    with Live(console=console, auto_refresh=False) as live:
        async for found in looks:
            live.update(_table(found), refresh=True)


async def _looks(
    consumers: Mapping[str, int], settings: Settings, interval_s: float | None
) -> AsyncIterator[list[ConsumerStatus]]:
    connection = await connect(settings, "rabbitflow status")
    try:
        lookout = Lookout(connection, consumers, settings)
        yield await lookout.look()
        while interval_s is not None:
            await asyncio.sleep(interval_s)
            yield await lookout.look()
    finally:
        await close(connection)


_STYLES = {"running": "green", "paused": "yellow", "holding back": "yellow", "migrating": "yellow"}


def _table(found: Sequence[ConsumerStatus]) -> Table:
    table = Table("consumer", "state")
    for title in ("ready", "retry", "dead", "consuming", "workers"):
        table.add_column(title, justify="right")
    for one in found:
        style = _STYLES.get(one.state, "red")
        table.add_row(
            one.consumer,
            f"[{style}]{one.state}[/]",
            "-" if one.ready is None else f"{one.ready:,}",
            _retries(one),
            f"[red]{one.dead:,}[/]" if one.dead else "0",
            str(one.consuming),
            str(one.workers),
        )
    return table


def _retries(one: ConsumerStatus) -> str:
    if not one.retries:
        return "0"
    buckets = ", ".join(f"{bucket_s}s: {count:,}" for bucket_s, count in one.retries.items())
    return f"{sum(one.retries.values()):,} ({buckets})"
