"""What the commands share: the broker's options, and errors in one line with an exit code."""

from __future__ import annotations

import asyncio
import functools
import logging
import sys
from collections.abc import Callable, Coroutine
from typing import Any, NoReturn, ParamSpec, TypeVar

import click

from rabbitflow.cli import EXIT_CONFIGURATION
from rabbitflow.errors import ConfigurationError, EventError, RabbitflowError
from rabbitflow.settings import Settings, load_settings

P = ParamSpec("P")
ResultT = TypeVar("ResultT")

EXIT_FAILED = 1
EXIT_USAGE = 2


def broker_options(command: Callable[P, ResultT]) -> Callable[P, ResultT]:
    """Add --url and --namespace to a command."""
    for option in (
        click.option("--namespace", help="Prefix of every name on the broker."),
        click.option("--url", help="Of the broker: amqp://user:password@host:5672/vhost."),
    ):
        command = option(command)
    return command


def _level(context: click.Context, parameter: click.Parameter, value: str) -> str:
    if logging.getLevelName(value.upper()) == f"Level {value.upper()}":
        raise click.BadParameter(f"{value} is no level")
    return value.upper()


def service_options(command: Callable[P, ResultT]) -> Callable[P, ResultT]:
    """Add what every command has that runs until it is stopped: where it is seen, how it logs."""
    for option in (
        click.option(
            "--log-level", default="INFO", show_default=True, metavar="LEVEL", callback=_level
        ),
        click.option("--log-format", type=click.Choice(["text", "json"]), default="text"),
        click.option(
            "--metrics-port", type=click.IntRange(0, 65535), help="9464 by default; 0 for none."
        ),
        click.option("--metrics-host", metavar="ADDRESS", help="Of /metrics, /healthz, /readyz."),
    ):
        command = option(command)
    return command


def settings_from(url: str | None, namespace: str | None, **further: Any) -> Settings:
    """Return the settings of a command; its options win over the environment."""
    return load_settings(url=url, namespace=namespace, **further)


def run(work: Coroutine[Any, Any, ResultT]) -> ResultT:
    """Run ``work`` on an event loop of its own."""
    return asyncio.run(work)


def errors_in_one_line(command: Callable[P, ResultT]) -> Callable[P, ResultT]:
    """Print what rabbitflow raises as one line, and exit: 2 for wrong input, 78 for a wrong
    configuration, 1 for everything that may work another time."""

    @functools.wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> ResultT:
        try:
            return command(*args, **kwargs)
        except EventError as error:
            fail(str(error), EXIT_USAGE)
        except ConfigurationError as error:
            fail(str(error), EXIT_CONFIGURATION)
        except RabbitflowError as error:
            fail(str(error), EXIT_FAILED)

    return wrapped


def fail(message: str, code: int) -> NoReturn:
    """Print one line on standard error and exit."""
    click.echo(f"rabbitflow: {' '.join(message.split())}", err=True)
    sys.exit(code)
