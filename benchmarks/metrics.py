"""What do the metrics cost? The same events handled with and without counting, in turns.

    python -m benchmarks.metrics [--events 20000] [--rounds 5]

With: everything is counted, and once a second the figures are written as a child's sign of life and
as the text that Prometheus gets. Without: histograms, outcomes and clocks do nothing; no setting
offers that, so stand-ins take their places. Handlers do nothing in both.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import click
from prometheus_client import CollectorRegistry, generate_latest
from pydantic import BaseModel
from rich.console import Console
from rich.table import Table

from rabbitflow import Consumer, Event, Publisher
from rabbitflow.broker import close, connect, throwaway_channel
from rabbitflow.observe.exposition import WorkerCollector
from rabbitflow.observe.metrics import HandlerMetrics
from rabbitflow.observe.state import ConsumerState
from rabbitflow.settings import Settings, load_settings
from rabbitflow.topology import RETRY_BUCKETS_S, consumer_topology, control_topology
from rabbitflow.worker import handling
from rabbitflow.worker.child import new_event_loop_runner
from rabbitflow.worker.delivery import Delivery
from rabbitflow.worker.runtime import ConsumerRuntime

console = Console(width=100)


class Order(BaseModel):
    """What the events hold."""

    orderId: str  # noqa: N815 - as on the wire
    amount: int


@contextmanager
def uncounted() -> Iterator[None]:
    """Nothing is counted and no clock is read for counting."""
    clocks = SimpleNamespace(perf_counter=float, monotonic=time.monotonic)

    def nothing(*_: object) -> None:
        pass

    with (
        patch.object(HandlerMetrics, "succeeded", nothing),
        patch.object(Delivery, "is_fresh", False),
        patch.object(handling, "time", clocks),
    ):
        yield


async def handle_waiting(settings: Settings, events: int, *, counted: bool) -> tuple[float, float]:
    """Handle so many events that wait in a queue; return the seconds it took by the clock, and
    those that this process computed, which other work on the machine does not stretch."""
    consumer = Consumer("metrics", concurrency=64)
    done, all_done = 0, asyncio.Event()
    began, computed = 0.0, 0.0

    @consumer.on("ORDER_PLACED")
    async def handle(event: Event[Order]) -> None:
        nonlocal done, began, computed
        done += 1
        if done == 1:
            began, computed = time.perf_counter(), time.process_time()
        elif done == events:
            all_done.set()

    runtime = ConsumerRuntime(consumer, settings)
    tasks = [asyncio.create_task(runtime.run())]
    if counted:
        tasks.append(asyncio.create_task(_told(runtime)))
    await all_done.wait()
    took = time.perf_counter() - began, time.process_time() - computed
    runtime.stop()
    await tasks[0]
    for task in tasks[1:]:
        task.cancel()
    return took


async def _told(runtime: ConsumerRuntime) -> None:
    """Do once a second what a child and its supervisor do, both in this process."""
    registry = CollectorRegistry()
    registry.register(
        WorkerCollector(
            lambda: {
                "metrics": ConsumerState(is_up=True, handled=runtime.handling.metrics.figures())
            }
        )
    )
    while True:
        await asyncio.sleep(1)
        json.dumps(asdict(runtime.beat()))
        generate_latest(registry)


async def fill(settings: Settings, events: int) -> None:
    """Announce so many events."""
    async with Publisher(settings=settings) as publisher:
        await publisher.publish_many(
            Event(type="ORDER_PLACED", data={"orderId": f"ORD-{number}", "amount": number})
            for number in range(events)
        )


async def remove(settings: Settings) -> None:
    """Remove what the benchmark declared."""
    topology = consumer_topology("metrics", ["ORDER_PLACED"], RETRY_BUCKETS_S, settings)
    topology += control_topology(settings)
    connection = await connect(settings, "rabbitflow benchmark")
    try:
        async with throwaway_channel(connection, settings) as channel:
            for queue in topology.queues:
                await channel.queue_delete(queue.name)
            for exchange in topology.exchanges:
                await channel.exchange_delete(exchange.name)
    finally:
        await close(connection)


def cost_us() -> float:
    """What counting one event takes, in microseconds."""
    metrics, loops = HandlerMetrics(), 200_000
    event = Event[Any](type="ORDER_PLACED", data={})

    def count() -> None:
        metrics.succeeded(time.perf_counter(), event.timestamp)

    def nothing() -> None:
        pass

    def took_s(function: Any) -> float:
        began = time.perf_counter()
        for _ in range(loops):
            function()
        return time.perf_counter() - began

    best = min(took_s(count) for _ in range(5)) - min(took_s(nothing) for _ in range(5))
    return best / loops * 1e6


async def race(events: int, rounds: int) -> int:
    """Run both in turns and print them."""
    settings = load_settings(namespace=f"bench-{secrets.token_hex(3)}", event_log=False)
    took: dict[bool, list[tuple[float, float]]] = {True: [], False: []}
    try:
        # Declares the queue, and warms everything up.
        warming = asyncio.create_task(handle_waiting(settings, 1000, counted=True))
        await asyncio.sleep(1)
        await fill(settings, 1000)
        await warming
        for number in range(rounds):
            for counted in (True, False) if number % 2 else (False, True):
                await fill(settings, events)
                if counted:
                    took[counted].append(await handle_waiting(settings, events, counted=True))
                    continue
                with uncounted():
                    took[counted].append(await handle_waiting(settings, events, counted=False))
    finally:
        await remove(settings)
    table = Table("metrics", "events/s", "lowest", "highest", "events per second of computing")
    medians: dict[bool, tuple[float, float]] = {}
    for counted, name in ((True, "on"), (False, "off")):
        rates = sorted(events / clock_s for clock_s, _ in took[counted])
        computing = statistics.median(events / computed_s for _, computed_s in took[counted])
        medians[counted] = statistics.median(rates), computing
        shown = (medians[counted][0], rates[0], rates[-1], computing)
        table.add_row(name, *(f"{rate:,.0f}" for rate in shown))
    console.print(table)
    by_clock, computed = (on / off for on, off in zip(medians[True], medians[False], strict=True))
    console.print(
        f"on / off = {by_clock:.3f} by the clock, {computed:.3f} of computing;"
        f" counting one event takes {cost_us():.2f} µs"
    )
    return 0


@click.command()
@click.option("--events", default=20_000)
@click.option("--rounds", default=5)
def main(events: int, rounds: int) -> None:
    """Run the comparison."""
    new_event_loop_runner()(race(events, rounds))


if __name__ == "__main__":
    main()
