"""``rabbitflow systemd``: units for the workers of some modules."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

import click

from rabbitflow import units
from rabbitflow.cli.options import EXIT_FAILED, errors_in_one_line, run, settings_from
from rabbitflow.errors import ConfigurationError
from rabbitflow.project import project_modules
from rabbitflow.unitcheck import Lack, check
from rabbitflow.unitfile import OLDEST_SYSTEMD, Host
from rabbitflow.worker.discovery import discover

ETC = Path("/etc")


@click.command()
@click.argument("modules", nargs=-1, metavar="MODULE...")
@click.option("--user", default="rabbitflow", show_default=True, help="Whom the units run as.")
@click.option("--venv", type=click.Path(path_type=Path), help="This one where not given.")
@click.option("--directory", type=click.Path(path_type=Path), help="Of the modules; this one.")
@click.option("--metrics-port", type=click.IntRange(1, 65000), default=9464, show_default=True)
@click.option("--memory-max", metavar="SIZE", help="Of one worker, such as 2G.")
@click.option("--database", "has_database", is_flag=True, help="Hand its URL to the workers.")
@click.option("--relay", "with_relay", is_flag=True, help="A unit for the outbox's relay too.")
@click.option("--output", type=click.Path(path_type=Path), metavar="DIR", help="Such as /etc.")
@click.option("--template", "is_template", is_flag=True, help="One unit for any module.")
@click.option("--check", "is_check", is_flag=True, help="Say what installed units lack.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@errors_in_one_line
def systemd(
    modules: tuple[str, ...],
    user: str,
    venv: Path | None,
    directory: Path | None,
    metrics_port: int,
    memory_max: str | None,
    has_database: bool,
    with_relay: bool,
    output: Path | None,
    is_template: bool,
    is_check: bool,
    as_json: bool,
) -> None:
    """Write systemd units for the workers of MODULE..., or of the project in this directory.

    There is one unit for each module, made for its consumers: its stop time-out is longer than
    their drain, its watchdog more patient than their handlers. Without --output they are printed;
    --output /etc installs them. --check compares those installed (in --output, else in /etc) and
    exits 1 where one lacks something. --template looks at no module: its unit rabbitflow@.service
    serves any, with a consumer's defaults.
    """
    host = Host(
        venv=(venv or Path(sys.prefix)).absolute(),
        directory=(directory or Path.cwd()).absolute(),
        user=user,
        systemd=OLDEST_SYSTEMD if is_template else units.systemd_version(),
        memory_max=memory_max,
        has_database=has_database,
    )
    settings = settings_from(None, None)
    files = (
        units.template(host, settings)
        if is_template
        else units.written(_loads(modules, metrics_port), host, settings, with_relay=with_relay)
    )
    if is_check:
        _print_lacks(check(output or ETC, files), as_json)
    elif output is not None:
        _print_installed(units.install(files, output), list(files), as_json)
    elif as_json:
        click.echo(json.dumps(files, indent=2))
    else:
        for name, text in files.items():
            click.echo(f"# ---- {name}\n{text}")


def _loads(modules: tuple[str, ...], metrics_port: int) -> list[units.Load]:
    asked = modules or project_modules()
    if not asked:
        raise ConfigurationError("name the modules: rabbitflow systemd workers.payment")
    found = run(discover(asked))
    if found.broken or not found.consumers:
        raise ConfigurationError(
            "; ".join(f"{broken.module}: {broken.error}" for broken in found.broken)
            or f"no consumer is defined in {', '.join(asked)}"
        )
    return units.loads(found.consumers, metrics_port)


def _print_lacks(lacks: list[Lack], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps([asdict(lack) for lack in lacks], indent=2))
    else:
        for lack in lacks:
            click.echo(f"{lack.unit} {lack.says}")
        if not lacks:
            click.echo("every unit has what its consumers need")
    if lacks:
        sys.exit(EXIT_FAILED)


def _print_installed(changed: list[Path], names: list[str], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({"changed": [str(path) for path in changed]}))
        return
    for path in changed:
        click.echo(f"wrote {path}")
    services = [Path(name).name for name in names if name.endswith(".service")]
    services = [name.replace("@.", "@MODULE.") for name in services]
    click.echo(
        "\nNext, as root; the first once, with the broker's URL on standard input:\n"
        "  install -D -m 600 /dev/stdin /etc/rabbitflow/url\n"
        "  systemd-sysusers && systemd-tmpfiles --create && systemctl daemon-reload\n"
        f"  systemctl enable --now rabbitflow.target {' '.join(services)}"
    )
