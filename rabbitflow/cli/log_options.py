"""What the commands that read the event log share: which types, from when, until when."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from rabbitflow.cli.options import run
from rabbitflow.errors import ConfigurationError
from rabbitflow.project import discover_project

type_arguments = click.argument("event_types", nargs=-1, metavar="[TYPE]...")

until_option = click.option(
    "--until", metavar="MOMENT", help="Leave out what happened then or later."
)


def from_option(default: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Add --from to a command."""
    return click.option(
        "--from",
        "start",
        default=default,
        show_default=True,
        metavar="START",
        help="first, last, next, an offset, 2026-03-15T10:30Z, or 2h for two hours ago.",
    )


def event_types_of(named: tuple[str, ...], consumer: str | None = None) -> tuple[str, ...]:
    """Return the event types that a command is about: those named, else all that the project's
    consumers, or one of them, react to.

    Raises:
        ConfigurationError: none is named, and the project names none.
    """
    if named:
        return tuple(dict.fromkeys(named))
    try:
        discovery = run(discover_project())
    except ConfigurationError as error:
        raise ConfigurationError(
            f"name the event types, as a broker lists none over AMQP: {error}"
        ) from error
    found = dict.fromkeys(
        event_type
        for one in discovery.consumers
        if consumer in (None, one.name)
        for event_type in one.event_types
    )
    if not found:
        raise ConfigurationError(
            f"the project has no consumer named {consumer!r}; name the event types with --type"
        )
    return tuple(found)
