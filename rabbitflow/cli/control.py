"""``rabbitflow pause`` and ``rabbitflow resume``: by hand, on every host."""

from __future__ import annotations

import click

from rabbitflow import control
from rabbitflow.cli.options import broker_options, errors_in_one_line, run, settings_from
from rabbitflow.topology import check_consumer_name


@click.command()
@click.argument("consumer")
@broker_options
@errors_in_one_line
def pause(consumer: str, url: str | None, namespace: str | None) -> None:
    """Stop CONSUMER from taking events, on every host, until it is resumed.

    Its queue keeps the events, and workers that start later find it paused.
    """
    settings = settings_from(url, namespace)
    run(control.pause(check_consumer_name(consumer), settings))
    click.echo(f"{consumer} is paused on every host; go on with: rabbitflow resume {consumer}")


@click.command()
@click.argument("consumer")
@broker_options
@errors_in_one_line
def resume(consumer: str, url: str | None, namespace: str | None) -> None:
    """Let CONSUMER take events again, on every host."""
    settings = settings_from(url, namespace)
    was_paused = run(control.resume(check_consumer_name(consumer), settings))
    click.echo(f"{consumer} is resumed" if was_paused else f"{consumer} was not paused")
