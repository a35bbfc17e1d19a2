"""``rabbitflow relay``: announce what an outbox holds."""

from __future__ import annotations

import asyncio
import signal
import sys
from typing import Any

import click

from rabbitflow.cli.options import (
    broker_options,
    errors_in_one_line,
    run,
    service_options,
    settings_from,
)
from rabbitflow.observe.exposition import RelayCollector, scraped
from rabbitflow.observe.logs import configure_logging
from rabbitflow.observe.server import StatusServer
from rabbitflow.publisher import Publisher
from rabbitflow.settings import Settings
from rabbitflow.store.relay import BATCH, Order, Relay
from rabbitflow.worker.notify import Notifier
from rabbitflow.worker.report import tell


@click.command()
@click.option("--database", metavar="URL", help="postgresql://… or sqlite:///file.db.")
@click.option(
    "--order",
    type=click.Choice(["all", "key"]),
    default="all",
    show_default=True,
    help="all: one relay at a time, others stand by. key: several share the work.",
)
@click.option("--batch", type=click.IntRange(1), default=BATCH, show_default=True)
@service_options
@broker_options
@errors_in_one_line
def relay(
    database: str | None,
    order: Order,
    batch: int,
    metrics_host: str | None,
    metrics_port: int | None,
    log_format: str,
    log_level: str,
    url: str | None,
    namespace: str | None,
) -> None:
    """Announce the events that rabbitflow.store.outbox wrote, each once its transaction is kept.

    Run as many as you like: with --order all one announces and the others stand by. SIGTERM
    finishes the batch under way and exits 0.
    """
    configure_logging(log_format, log_level)
    settings = settings_from(
        url,
        namespace,
        database_url=database,
        metrics_host=metrics_host,
        metrics_port=metrics_port,
    )
    sys.exit(run(_relay(settings, order, batch, Notifier.from_environment())))


async def _relay(settings: Settings, order: Order, batch: int, notifier: Notifier) -> int:
    async with Publisher(settings=settings, source="relay") as publisher:
        relaying = Relay(
            settings.database_url.get_secret_value(), publisher, order=order, batch=batch
        )
        figures = relaying.figures

        def outbox() -> dict[str, float]:
            return {
                "active": figures.is_active,
                "waiting": figures.waiting,
                "lag_s": figures.lag_s(),
                "refused": figures.refused,
            }

        def readiness() -> dict[str, Any]:
            return {"ready": publisher.channel.is_open or not figures.waiting, **outbox()}

        status = None
        if settings.metrics_port:
            collector = RelayCollector(outbox, publisher.metrics)
            status = StatusServer(
                settings.metrics_host,
                settings.metrics_port,
                lambda: scraped(collector),
                readiness,
            )

        def said() -> str:
            state = "announcing" if figures.is_active else "standing by"
            return f"{state}: {figures.waiting} waiting, {figures.relayed} announced"

        def stop() -> None:
            notifier.stopping(said())
            relaying.stop()

        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop)
        telling = asyncio.create_task(tell(notifier, lambda: figures.has_looked, said))
        try:
            await relaying.run()
        finally:
            telling.cancel()
            await asyncio.gather(telling, return_exceptions=True)
            notifier.close()
            if status is not None:
                status.close()
    return 0
