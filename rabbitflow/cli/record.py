"""``rabbitflow record``: keep announced events in the event store."""

from __future__ import annotations

import os

import click

from rabbitflow.cli.log_options import event_types_of, type_arguments
from rabbitflow.cli.options import (
    broker_options,
    errors_in_one_line,
    service_options,
    settings_from,
)
from rabbitflow.observe.logs import configure_logging
from rabbitflow.store import recorder
from rabbitflow.store.database import Database
from rabbitflow.topology import check_consumer_name
from rabbitflow.worker.launch import become_supervisor
from rabbitflow.worker.plan import Plan


@click.command()
@type_arguments
@click.option("--consumer", default="record", show_default=True, metavar="NAME")
@click.option("--from-beginning", is_flag=True, help="Where it is new: with what the log keeps.")
@click.option("--database", metavar="URL", help="postgresql://… or sqlite:///file.db.")
@service_options
@broker_options
@errors_in_one_line
def record(
    event_types: tuple[str, ...],
    consumer: str,
    from_beginning: bool,
    database: str | None,
    metrics_host: str | None,
    metrics_port: int | None,
    log_format: str,
    log_level: str,
    url: str | None,
    namespace: str | None,
) -> None:
    """Append announced events to the event store, each once, for keeps beyond the log.

    TYPE... defaults to everything that the project's consumers react to. An event is in the stream
    recorded-KEY, or recorded-TYPE where it has no key: rabbitflow store history recorded-ORD-1
    """
    configure_logging(log_format, log_level)
    settings = settings_from(
        url,
        namespace,
        database_url=database,
        metrics_host=metrics_host,
        metrics_port=metrics_port,
    )
    secret = settings.database_url.get_secret_value()
    Database.parse(secret)
    # The children import the recorder's module as any other, and know of us by the environment.
    os.environ[recorder.TYPES] = ",".join(event_types_of(event_types))
    os.environ[recorder.CONSUMER] = check_consumer_name(consumer)
    os.environ[recorder.FROM_BEGINNING] = "1" if from_beginning else "0"
    os.environ["RABBITFLOW_DATABASE_URL"] = secret
    plan = Plan((recorder.__name__,), log_format=log_format, log_level=log_level)
    become_supervisor(plan, settings)
