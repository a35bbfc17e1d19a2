"""``rabbitflow doctor``: what is wrong, or will be."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict

import click
from rich.console import Console
from rich.table import Table

from rabbitflow.cli.options import (
    EXIT_FAILED,
    broker_options,
    errors_in_one_line,
    run,
    settings_from,
)
from rabbitflow.doctor.checks import Finding, Severity
from rabbitflow.doctor.examination import examine
from rabbitflow.project import discover_named
from rabbitflow.settings import Settings


@click.command()
@click.argument("modules", nargs=-1, metavar="[MODULE...]")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@broker_options
@errors_in_one_line
def doctor(modules: tuple[str, ...], as_json: bool, url: str | None, namespace: str | None) -> None:
    """Look for what is wrong with the consumers of MODULE..., or of the project here.

    Nothing is changed and no event published. Bindings, orphan queues and alarms are looked at
    where RABBITFLOW_MANAGEMENT_URL is given. Exits 1 where an error is found.
    """
    found = run(_examine(modules, settings_from(url, namespace)))
    if as_json:
        click.echo(json.dumps([asdict(finding) for finding in found], indent=2))
    elif found:
        Console().print(_table(found))
    else:
        click.echo("nothing is wrong")
    sys.exit(EXIT_FAILED if any(one.severity is Severity.ERROR for one in found) else 0)


async def _examine(modules: tuple[str, ...], settings: Settings) -> list[Finding]:
    return await examine(await discover_named(modules), settings)


_STYLES = {Severity.ERROR: "red", Severity.WARNING: "yellow", Severity.NOTE: "dim"}


def _table(found: Sequence[Finding]) -> Table:
    table = Table("", "about", "seen", "what to do", show_lines=True)
    for finding in found:
        style = _STYLES[finding.severity]
        table.add_row(
            f"[{style}]{finding.severity}[/]", finding.about, finding.problem, finding.advice
        )
    return table
