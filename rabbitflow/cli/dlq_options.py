"""What the commands of ``rabbitflow dlq`` share: which consumer, which dead letters, the report."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import click

from rabbitflow.deadletters.letter import Selection
from rabbitflow.errors import ConfigurationError
from rabbitflow.topology import check_consumer_name

P = ParamSpec("P")
ResultT = TypeVar("ResultT")

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
yes_option = click.option("--yes", is_flag=True, help="Do not ask.")


def _consumer_name(context: click.Context, parameter: click.Parameter, value: str) -> str:
    try:
        return check_consumer_name(value)
    except ConfigurationError as error:
        raise click.BadParameter(str(error)) from error


consumer_argument = click.argument("consumer", callback=_consumer_name)


def selection_options(command: Callable[P, ResultT]) -> Callable[..., ResultT]:
    """Add the options that say which dead letters are meant, joined to one ``selection``."""

    @functools.wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> ResultT:
        given = {name: frozenset(kwargs.pop(name)) for name in ("ids", "exceptions")}
        given |= {name: frozenset(kwargs.pop(name)) for name in ("event_types", "reasons")}
        return command(*args, selection=Selection(**given), **kwargs)  # type: ignore[arg-type]

    for name, destination, text in (
        ("--reason", "reasons", "Only those with this reason, such as retries-exhausted."),
        ("--event-type", "event_types", "Only those of this event type."),
        ("--exception", "exceptions", "Only those whose handler raised this type."),
        ("--id", "ids", "Only the event of this id."),
    ):
        wrapped = click.option(name, destination, multiple=True, help=text)(wrapped)
    return wrapped


def report(as_json: bool, text: str, **said: Any) -> None:
    """Print what was done: as a sentence, or as JSON."""
    click.echo(json.dumps(said) if as_json else text)


def no_such(consumer: str) -> str:
    """Say that an id was not found."""
    return f"{consumer} has no such dead letter; look with: rabbitflow dlq show {consumer}"
