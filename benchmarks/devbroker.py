"""How much the embedded broker takes: our own publisher and worker, against one process of it.

    python -m benchmarks.devbroker [EVENTS]

Every event is confirmed when it sits in the consumer's quorum queue and in the event log, and
consumed with validation and acks. The broker is a process of its own, so one core is all it has;
what that core would do if it waited for nobody follows from its CPU time.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
from pydantic import BaseModel
from rich.console import Console
from rich.table import Table

from rabbitflow import Consumer, Event, Publisher
from rabbitflow.broker import close, connect
from rabbitflow.declaration import declare
from rabbitflow.settings import Settings, load_settings
from rabbitflow.topology import consumer_topology
from rabbitflow.worker.runtime import ConsumerRuntime

EVENTS = 20_000
WINDOW = 500
WITHIN_S = 120.0


class Order(BaseModel):
    """The payload of the benchmark."""

    orderId: str  # noqa: N815 - as the brief's producers write it
    userId: str  # noqa: N815
    amount: int


def _order(number: int) -> Event[dict[str, object]]:
    data = {"orderId": f"ORD-{number}", "userId": "USR-789", "amount": 1500}
    return Event(type="ORDER_PLACED", data=data)


@contextmanager
def _broker() -> Iterator[tuple[str, psutil.Process]]:
    command = [sys.executable, "-m", "rabbitflow", "broker", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said = process.stdout.readline()
        port = said.split(" port ")[1].split(":")[0]
        try:
            yield f"amqp://guest:guest@127.0.0.1:{port}/", psutil.Process(process.pid)
        finally:
            process.terminate()


def _busy_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _consumer(count: int) -> tuple[Consumer, asyncio.Event]:
    consumer, done, handled = Consumer("payment", concurrency=8), asyncio.Event(), 0

    @consumer.on("ORDER_PLACED")
    async def charge(event: Event[Order]) -> None:
        nonlocal handled
        handled += 1
        if handled == count:
            done.set()

    return consumer, done


async def _declare(settings: Settings) -> None:
    """Declare what a worker would, before there is anything to handle."""
    connection = await connect(settings, "benchmark")
    try:
        topology = consumer_topology("payment", ["ORDER_PLACED"], (), settings)
        await declare(connection, topology, settings)
    finally:
        await close(connection)


async def _measure(count: int, url: str, broker: psutil.Process) -> Table:
    settings = load_settings(url=url, namespace="bench", metrics_port=0)
    consumer, done = _consumer(count)
    await _declare(settings)
    table = Table("what", "events/s", "a core of the broker would do", title=f"{count:,} events")

    def report(what: str, began: float, busy_s: float) -> None:
        took_s = time.perf_counter() - began
        per_core = count / (_busy_s(broker) - busy_s)
        table.add_row(what, f"{count / took_s:,.0f}", f"{per_core:,.0f}")

    async with Publisher(settings=settings) as publisher:
        events = [_order(number) for number in range(count)]
        began, busy_s = time.perf_counter(), _busy_s(broker)
        await publisher.publish_many(events, window=WINDOW)
        report(f"published and confirmed, {WINDOW} in flight", began, busy_s)
    runtime = ConsumerRuntime(consumer, settings)
    began, busy_s = time.perf_counter(), _busy_s(broker)
    task = asyncio.create_task(runtime.run())
    async with asyncio.timeout(WITHIN_S):
        await done.wait()
    report("consumed, validated and acked", began, busy_s)
    runtime.stop_now()
    await task
    return table


def main() -> None:
    """Measure and print."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else EVENTS
    with _broker() as (url, process):
        Console().print(asyncio.run(_measure(count, url, process)))


if __name__ == "__main__":
    main()
