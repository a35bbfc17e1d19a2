"""``rabbitflow worker``: run the consumers of some modules."""

from __future__ import annotations

import sys

import click

from rabbitflow.cli.options import (
    broker_options,
    errors_in_one_line,
    run,
    service_options,
    settings_from,
)
from rabbitflow.keyring import check_key_files
from rabbitflow.observe.logs import configure_logging
from rabbitflow.worker.launch import become_supervisor
from rabbitflow.worker.notify import Notifier
from rabbitflow.worker.plan import Plan


@click.command()
@click.argument("modules", nargs=-1, required=True, metavar="MODULE...")
@click.option("--concurrency", type=click.IntRange(1), help="Events at once in one process.")
@click.option("--processes", type=click.IntRange(1), default=1, show_default=True)
@click.option("--single-process", is_flag=True, help="No children: for a debugger.")
@click.option("--no-declare", is_flag=True, help="Declare nothing; needs no configure permission.")
@click.option("--shutdown-timeout", type=float, metavar="SECONDS", help="To finish when stopped.")
@click.option("--reload", is_flag=True, help="Start anew when a Python file changes.")
@service_options
@broker_options
@errors_in_one_line
def worker(
    modules: tuple[str, ...],
    concurrency: int | None,
    processes: int,
    single_process: bool,
    no_declare: bool,
    shutdown_timeout: float | None,
    reload: bool,
    metrics_host: str | None,
    metrics_port: int | None,
    log_format: str,
    log_level: str,
    url: str | None,
    namespace: str | None,
) -> None:
    """Run the consumers defined in MODULE..., each in a process of its own.

    A package stands for all its modules. The current directory is importable. SIGTERM finishes
    what is in flight and exits 0; a second SIGTERM gives it back to the queues at once.
    """
    configure_logging(log_format, log_level)
    settings = settings_from(
        url,
        namespace,
        declare=False if no_declare else None,
        shutdown_timeout_s=shutdown_timeout,
        metrics_host=metrics_host,
        metrics_port=metrics_port,
    )
    check_key_files(settings)
    plan = Plan(modules, processes, concurrency, reload, log_format, log_level)
    if single_process:
        # No handler may speak to systemd in our name.
        Notifier.from_environment().close()
        # Not at the top: only this one needs the client library here.
        from rabbitflow.worker.single import run_single_process  # noqa: PLC0415

        sys.exit(run(run_single_process(plan, settings)))
    become_supervisor(plan, settings)
