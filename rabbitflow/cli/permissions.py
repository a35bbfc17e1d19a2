"""``rabbitflow topology permissions``: what each user needs to be allowed, and no more."""

from __future__ import annotations

import json
from dataclasses import asdict

import click
from rich.console import Console
from rich.table import Table
from yarl import URL

from rabbitflow.cli.options import broker_options, errors_in_one_line, run, settings_from
from rabbitflow.permissions import Grant, grants
from rabbitflow.project import discover_whole


def _producers(
    context: click.Context, parameter: click.Parameter, values: tuple[str, ...]
) -> dict[str, list[str]]:
    producers: dict[str, list[str]] = {}
    for value in values:
        name, _, event_types = value.partition("=")
        if not name or not event_types:
            raise click.BadParameter(f"{value} is not NAME=TYPE or NAME=TYPE,TYPE")
        producers.setdefault(name, []).extend(filter(None, event_types.split(",")))
    return producers


@click.command()
@click.argument("modules", nargs=-1, metavar="[MODULE...]")
@click.option("--user-prefix", default="", metavar="TEXT", help="Before the name of every user.")
@click.option(
    "--producer",
    "producers",
    multiple=True,
    metavar="NAME=TYPE,...",
    callback=_producers,
    help="Who announces what, also an outbox relay; else one producer of everything.",
)
@click.option("--commands", is_flag=True, help="Print what an administrator runs: rabbitmqctl.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@broker_options
@errors_in_one_line
def permissions(
    modules: tuple[str, ...],
    user_prefix: str,
    producers: dict[str, list[str]],
    commands: bool,
    as_json: bool,
    url: str | None,
    namespace: str | None,
) -> None:
    """Show the narrowest permissions for the users of MODULE...; asks no broker.

    One user for each consumer, for each producer, and one for operators. Consumers and producers
    run with RABBITFLOW_DECLARE=0 (worker --no-declare), after topology apply by the operator. What
    a consumer announces itself is what its Consumer(publishes=...) names.
    """
    settings = settings_from(url, namespace)
    needed = grants(run(discover_whole(modules)), producers, settings, user_prefix)
    if as_json:
        click.echo(json.dumps([asdict(grant) for grant in needed], indent=2))
    elif commands:
        vhost = URL(settings.broker_urls[0]).path.removeprefix("/") or "/"
        for grant in needed:
            click.echo(grant.command(vhost))
    else:
        Console().print(_table(needed))


def _table(needed: list[Grant]) -> Table:
    table = Table("user", "for", "configure")
    for heading in ("write", "read"):
        table.add_column(heading, overflow="fold")
    for grant in needed:
        table.add_row(grant.user, grant.role, grant.configure, grant.write, grant.read)
    return table
