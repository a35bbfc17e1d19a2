"""``rabbitflow dev``: one command to develop with."""

from __future__ import annotations

import importlib.util
import sys

import click

from rabbitflow.cli.options import broker_options, errors_in_one_line, run, settings_from
from rabbitflow.dev.session import develop
from rabbitflow.dev.show import LiveView, LogLines
from rabbitflow.errors import ConfigurationError
from rabbitflow.observe.logs import configure_logging
from rabbitflow.project import project_modules
from rabbitflow.worker.plan import Plan


@click.command()
@click.argument("modules", nargs=-1, metavar="[MODULE...]")
@click.option("--log", "as_log", is_flag=True, help="Lines of a log instead of the live view.")
@click.option("--metrics-port", type=click.IntRange(0, 65535), help="9464 by default; 0 for none.")
@broker_options
@errors_in_one_line
def dev(
    modules: tuple[str, ...],
    as_log: bool,
    metrics_port: int | None,
    url: str | None,
    namespace: str | None,
) -> None:
    """Run every consumer of MODULE... with reload, and show what happens.

    Without MODULE it takes [tool.rabbitflow] modules of the pyproject.toml here. The broker is the
    RabbitMQ of --url where it answers, else an embedded one, which publishers and workers in other
    terminals can use too. Without a terminal it writes lines instead.
    """
    modules = modules or project_modules()
    if not modules:
        raise ConfigurationError(
            "name the modules, or write [tool.rabbitflow] modules = [...] into pyproject.toml"
        )
    configure_logging("text", "INFO")
    can_reload = importlib.util.find_spec("watchfiles") is not None
    if not can_reload:
        click.echo("no reload: pip install 'rabbitflow[reload]'", err=True)
    settings = settings_from(url, namespace, metrics_port=metrics_port)
    is_live = sys.stdout.isatty() and not as_log
    show = LiveView() if is_live else LogLines()
    sys.exit(run(develop(Plan(modules, reload=can_reload), settings, show)))
