"""What keeping an order costs: a backlog of a plain consumer and of an ordered one, worked off.

    python -m benchmarks.ordered [EVENTS]

One process, an empty handler, quorum queues on the RabbitMQ at RABBITFLOW_URL. An ordered event is
written and read once more, by way of its partition. ``one key`` is the worst case: each event of it
waits for the confirm of the one before, and for its end.
"""

from __future__ import annotations

import asyncio
import secrets
import sys
import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from rabbitflow import Consumer, Event, Publisher
from rabbitflow.broker import close, connect, throwaway_channel
from rabbitflow.declaration import declare
from rabbitflow.settings import Settings, load_settings
from rabbitflow.topology import Topology, consumer_topology
from rabbitflow.worker.runtime import ConsumerRuntime

EVENTS = 20_000
WITHIN_S = 300.0

CASES: Mapping[str, tuple[int | None, int]] = {
    "plain": (None, 1_000),
    "8 partitions, 1,000 keys": (8, 1_000),
    "32 partitions, 1,000 keys": (32, 1_000),
    "8 partitions, one key": (8, 1),
}
"""What is measured: the number of partitions, and of keys."""


async def _rate(partitions: int | None, keys: int, events: int, settings: Settings) -> float:
    consumer = Consumer("ledger", partitions=partitions, concurrency=32)
    done = asyncio.Event()
    count = 0

    @consumer.on("ORDER_PLACED")
    async def note(event: Event[dict[str, Any]]) -> None:
        nonlocal count
        count += 1
        if count == events:
            done.set()

    topology = consumer_topology("ledger", ("ORDER_PLACED",), (), settings, partitions or 0)
    connection = await connect(settings, "rabbitflow benchmark")
    try:
        await declare(connection, topology, settings)
        async with Publisher(settings=settings) as publisher:
            await publisher.publish_many(
                [
                    Event(
                        type="ORDER_PLACED",
                        data={"orderId": f"ORD-{number}", "userId": "USR-789", "amount": 1500},
                        key=f"key-{number % keys}",
                    )
                    for number in range(events)
                ]
            )
        runtime = ConsumerRuntime(consumer, settings)
        began = time.perf_counter()
        running = asyncio.create_task(runtime.run())
        async with asyncio.timeout(WITHIN_S):
            await done.wait()
        took_s = time.perf_counter() - began
        runtime.stop()
        await running
        await _remove(connection, topology, settings)
    finally:
        await close(connection)
    return events / took_s


async def _remove(connection: Any, topology: Topology, settings: Settings) -> None:
    async with throwaway_channel(connection, settings) as channel:
        for queue in topology.queues:
            await channel.queue_delete(queue.name)
        for exchange in topology.exchanges:
            await channel.exchange_delete(exchange.name)


async def _measure(events: int) -> None:
    table = Table("consumer", "events/s")
    for case, (partitions, keys) in CASES.items():
        settings = load_settings(namespace=f"bench-{secrets.token_hex(4)}", metrics_port=0)
        table.add_row(case, f"{await _rate(partitions, keys, events, settings):,.0f}")
    Console().print(table)


def main() -> None:
    """Measure and print."""
    asyncio.run(_measure(int(sys.argv[1]) if len(sys.argv) > 1 else EVENTS))


if __name__ == "__main__":
    main()
