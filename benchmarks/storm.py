"""Does a retry storm of one consumer reach another? 20,000 events of rating wait for their retry.

    python -m benchmarks.storm [--events 20000] [--rate 100] [--seconds 10]

Payment gets orders at a steady pace throughout. Its latency, from announcing to handling, is taken
before the storm; while all of rating's events wait in their retry bucket; and while they come back
all at once, fail again and become dead letters.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from benchmarks.isolation import conditions
from rabbitflow import Consumer, Event, Publisher, Retry
from rabbitflow.broker import NotFound, close, connect, lost_connections, throwaway_channel
from rabbitflow.settings import Settings, load_settings
from rabbitflow.topology import Names, bucket_for

RETRY_AFTER_S = 45
RIDES = "RIDE_RATED"
ORDERS = "ORDER_PLACED"

payment = Consumer("payment")
# Without a breaker, which would have calmed the storm.
rating = Consumer(
    "rating",
    concurrency=32,
    retry=Retry.fixed(attempts=2, wait=RETRY_AFTER_S),
    breaker=None,
)


@payment.on(ORDERS)
async def charge(order: dict) -> None:  # type: ignore[type-arg]
    _note(order["at"])


@rating.on(RIDES)
async def rate(ride: dict) -> None:  # type: ignore[type-arg]
    raise ConnectionError("the rating service is down")


def _note(sent_at: float) -> None:
    log = os.open(os.environ["STORM_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(log, f"{(time.time() - sent_at) * 1000}\n".encode())
    finally:
        os.close(log)


class Storm:
    """A worker, and what is measured of it."""

    def __init__(self, settings: Settings, log: Path, rate: float, seconds: float) -> None:
        self.settings = settings
        self.names = Names(settings.namespace)
        self.rows: list[tuple[str, list[float]]] = []
        self._log = log
        self._rate = rate
        self._seconds = seconds

    async def measure(self, publisher: Publisher, when: str) -> None:
        """Announce orders at a steady pace and keep how long payment took to get each."""
        seen = len(self._took_ms())
        began = time.perf_counter()
        count = int(self._rate * self._seconds)
        for number in range(count):
            await asyncio.sleep(max(0.0, began + number / self._rate - time.perf_counter()))
            await publisher.publish(ORDERS, {"at": time.time()})
        while len(self._took_ms()) < seen + count:
            await asyncio.sleep(0.05)
        self.rows.append((when, sorted(self._took_ms()[seen:])))

    def _took_ms(self) -> list[float]:
        return [float(line) for line in self._log.read_text().split()] if self._log.exists() else []

    async def look(self, queue: str) -> tuple[int, int]:
        """How many messages wait in a queue, and how many consumers it has; none where it is not
        there yet."""
        connection = await connect(self.settings, "storm")
        try:
            async with throwaway_channel(connection, self.settings) as channel:
                with lost_connections():
                    found = await channel.queue_declare(queue, passive=True)
            return found.message_count or 0, found.consumer_count or 0
        except NotFound:
            return 0, 0
        finally:
            await close(connection)

    async def depth(self, queue: str) -> int:
        """How many messages wait in a queue."""
        return (await self.look(queue))[0]

    async def ready(self) -> None:
        """Wait until both consumers consume."""
        for consumer in ("payment", "rating"):
            while not (await self.look(self.names.queue(consumer)))[1]:
                await asyncio.sleep(0.2)

    async def until(self, queue: str, count: int) -> None:
        """Wait until so many wait there."""
        while await self.depth(queue) < count:
            await asyncio.sleep(0.2)

    async def remove(self) -> None:
        """Remove what the run left on the broker."""
        connection = await connect(self.settings, "storm")
        names = self.names
        queues = [names.log(ORDERS), names.log(RIDES)]
        for consumer in ("payment", "rating"):
            queues += [names.queue(consumer), names.dead(consumer), names.workers(consumer)]
            queues += [names.retry(consumer, 1 << power) for power in range(17)]
        async with throwaway_channel(connection, self.settings) as channel:
            for queue in queues:
                await channel.queue_delete(queue)
            for exchange in (names.exchange(ORDERS), names.exchange(RIDES), names.control()):
                await channel.exchange_delete(exchange)
        await close(connection)


async def run(storm: Storm, events: int) -> None:
    """Measure before, during and after."""
    retry = storm.names.retry("rating", bucket_for(RETRY_AFTER_S))
    dead = storm.names.dead("rating")
    async with Publisher(settings=storm.settings) as publisher:
        await storm.ready()
        await storm.measure(publisher, "warming up")
        storm.rows.clear()
        await storm.measure(publisher, "before")
        rides = (Event(type=RIDES, data={"number": number}) for number in range(events))
        began = time.monotonic()
        await publisher.publish_many(rides)
        await storm.until(retry, events)
        took_s = time.monotonic() - began
        await storm.measure(publisher, f"{events:,} wait for their retry")
        while await storm.depth(retry) == events:
            await asyncio.sleep(0.05)
        await storm.measure(publisher, "they come back and fail again")
        await storm.until(dead, events)
    Console().print(f"{events:,} events failed and were handed to their retry in {took_s:.0f} s")


@click.command()
@click.option("--events", default=20_000)
@click.option("--rate", default=100.0)
@click.option("--seconds", default=10.0)
def main(events: int, rate: float, seconds: float) -> None:
    """Run it."""
    with tempfile.TemporaryDirectory() as directory:
        settings = load_settings(namespace=f"storm-{secrets.token_hex(3)}", state_dir=directory)
        log = Path(directory) / "log"
        environment = {
            **os.environ,
            "RABBITFLOW_NAMESPACE": settings.namespace or "",
            "RABBITFLOW_STATE_DIR": directory,
            "RABBITFLOW_METRICS_PORT": "0",
            "STORM_LOG": str(log),
        }
        worker = subprocess.Popen(
            [sys.executable, "-m", "rabbitflow", "worker", "benchmarks.storm"],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        storm = Storm(settings, log, rate, seconds)
        try:
            asyncio.run(asyncio.wait_for(run(storm, events), 280))
        finally:
            worker.send_signal(signal.SIGTERM)
            worker.wait(60)
            asyncio.run(storm.remove())
    table = Table("payment's orders", "p50", "p99", "longest", title="From announcing to handling")
    for when, took_ms in storm.rows:
        shown = (took_ms[len(took_ms) // 2], took_ms[int(len(took_ms) * 0.99)], took_ms[-1])
        table.add_row(when, *(f"{value:.1f} ms" for value in shown))
    Console().print(table)
    Console().print(conditions())


if __name__ == "__main__":
    main()
