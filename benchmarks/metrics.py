"""What do the metrics cost? Events of one queue handled with and without counting, in turns.

    python -m benchmarks.metrics [--events 60000] [--rounds 10]

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
from contextlib import ExitStack, contextmanager
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

TURN = 5_000
"""Events of a turn."""


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


class Turns:
    """Counts for so many events, then does not for as many, and so on; measures each turn.

    The machine's moods last longer than a turn, so a turn and the next one have the same.

    Args:
        length: of a turn, in events.
    """

    def __init__(self, length: int) -> None:
        self.took: dict[bool, list[tuple[float, float]]] = {True: [], False: []}
        self._length = length
        self._counted = True
        self._done = 0
        self._stand_ins = ExitStack()
        self._began = self._computed = self._told_after_s = 0.0
        self._registry = CollectorRegistry()

    def begin(self, runtime: ConsumerRuntime) -> None:
        """Before the first event of a queue."""
        self._runtime = runtime
        self._done = 0
        self._registry = CollectorRegistry()
        self._registry.register(WorkerCollector(self._states))
        self._start()

    def end(self) -> None:
        """After the last event of a queue; the next one begins with the other kind."""
        self._stand_ins.close()

    def event(self) -> None:
        """Another event is being handled."""
        self._done += 1
        if self._done % self._length:
            return
        if self._counted:
            self._tell()
        took = time.perf_counter() - self._began, time.process_time() - self._computed
        self.took[self._counted].append(took)
        if self._counted:
            self._told_after_s += took[0]
        self._stand_ins.close()
        self._counted = not self._counted
        self._start()

    def _start(self) -> None:
        if not self._counted:
            self._stand_ins.enter_context(uncounted())
        self._began, self._computed = time.perf_counter(), time.process_time()

    def _tell(self) -> None:
        """Do once a second what a child and its supervisor do, both in this process."""
        if self._told_after_s < 1.0:
            return
        self._told_after_s = 0.0
        json.dumps(asdict(self._runtime.beat()))
        generate_latest(self._registry)

    def _states(self) -> dict[str, ConsumerState]:
        figures = self._runtime.handling.metrics.figures()
        return {"metrics": ConsumerState(is_up=True, handled=figures)}


async def handle_waiting(settings: Settings, events: int, turns: Turns | None = None) -> None:
    """Handle so many events that wait in a queue."""
    consumer = Consumer("metrics", concurrency=64)
    done, all_done = 0, asyncio.Event()
    runtime: ConsumerRuntime

    @consumer.on("ORDER_PLACED")
    async def handle(event: Event[Order]) -> None:
        nonlocal done
        done += 1
        if turns is not None:
            if done == 1:
                turns.begin(runtime)
            turns.event()
        if done == events:
            all_done.set()

    runtime = ConsumerRuntime(consumer, settings)
    running = asyncio.create_task(runtime.run())
    await all_done.wait()
    if turns is not None:
        turns.end()
    runtime.stop()
    await running


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
    turns = Turns(TURN)
    try:
        # Declares the queue, and warms everything up.
        warming = asyncio.create_task(handle_waiting(settings, 1000))
        await asyncio.sleep(1)
        await fill(settings, 1000)
        await warming
        for _ in range(rounds):
            await fill(settings, events)
            await handle_waiting(settings, events, turns)
    finally:
        await remove(settings)
    table = Table("metrics", "events/s", "lowest", "highest", "events per second of computing")
    for counted, name in ((True, "on"), (False, "off")):
        rates = sorted(TURN / clock_s for clock_s, _ in turns.took[counted])
        computing = statistics.median(TURN / computed_s for _, computed_s in turns.took[counted])
        shown = (statistics.median(rates), rates[0], rates[-1], computing)
        table.add_row(name, *(f"{rate:,.0f}" for rate in shown))
    console.print(table)
    pairs = list(zip(*turns.took.values(), strict=False))
    by_clock, computed = (
        statistics.median(off[kind] / on[kind] for on, off in pairs) for kind in (0, 1)
    )
    console.print(
        f"on / off = {by_clock:.3f} by the clock, {computed:.3f} of computing (medians of"
        f" {len(pairs)} pairs of turns);\ncounting one event takes {cost_us():.2f} µs"
    )
    return 0


@click.command()
@click.option("--events", default=60_000)
@click.option("--rounds", default=10)
def main(events: int, rounds: int) -> None:
    """Run the comparison."""
    new_event_loop_runner()(race(events, rounds))


if __name__ == "__main__":
    main()
