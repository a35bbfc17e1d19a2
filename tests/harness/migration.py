"""A consumer whose queues are to be replaced, publishers that run meanwhile, and the account."""

from __future__ import annotations

import asyncio
import os
import sys
import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pika

from rabbitflow import Publisher
from rabbitflow.broker import close, connect
from rabbitflow.inspection import difference
from rabbitflow.migration.consumer import Migrated, migrate
from rabbitflow.settings import Settings
from rabbitflow.topology import RETRY_BUCKETS_S, Topology, consumer_topology, holding_queue
from tests.harness.broker import Probe
from tests.harness.waiting import eventually

EVENT_TYPES = ("ORDER_PLACED",)
SETTLE_S = 0.05


def wanted(settings: Settings, event_types: tuple[str, ...] = EVENT_TYPES) -> Topology:
    return consumer_topology("payment", event_types, RETRY_BUCKETS_S[:3], settings)


def declare_otherwise(probe: Probe, changes: Mapping[str, Mapping[str, Any]]) -> None:
    """Declare the wanted topology, with other arguments for the queues whose names end so."""
    topology = wanted(probe.settings)
    for exchange in topology.exchanges:
        probe.declare_exchange(exchange.name.rpartition("events.")[2])
    for queue in topology.queues:
        suffix = queue.name.removeprefix(f"{probe.settings.namespace}.")
        arguments = {**queue.arguments, **changes.get(suffix, {})}
        probe.declare_queue(
            queue.name, {name: value for name, value in arguments.items() if value is not None}
        )
    for binding in topology.bindings:
        probe.bind(binding.queue, binding.exchange.rpartition("events.")[2])


def fill(probe: Probe, queue: str, count: int, expiration: str | None = None) -> set[str]:
    """Put messages into a queue, each confirmed, and return their ids."""
    ids = [uuid.uuid4().hex for _ in range(count)]
    with probe.confirming() as channel:
        for one in ids:
            properties = pika.BasicProperties(
                message_id=one, expiration=expiration, delivery_mode=2
            )
            channel.basic_publish("", queue, b"{}", properties)
    return set(ids)


async def run(settings: Settings, **options: Any) -> Migrated:
    return await migrate("payment", wanted(settings), settings, settle_s=SETTLE_S, **options)


async def differs(settings: Settings) -> bool:
    connection = await connect(settings, "test")
    try:
        return bool(await difference(connection, wanted(settings), settings))
    finally:
        await close(connection)


@asynccontextmanager
async def announcing(
    settings: Settings, event_type: str = "ORDER_PLACED"
) -> AsyncIterator[list[str]]:
    """Announce events all the time; the ids are those that the broker confirmed."""
    confirmed: list[str] = []
    stopping = asyncio.Event()

    async def announce() -> None:
        async with Publisher(settings=settings) as publisher:
            while not stopping.is_set():
                event = await publisher.publish(event_type, {"number": len(confirmed)})
                confirmed.append(event.id)
                await asyncio.sleep(0.01)

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(announce())
        await eventually(lambda: len(confirmed) > 10)
        try:
            yield confirmed
        finally:
            stopping.set()


async def killed(settings: Settings, every: int) -> list[str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.harness.migrating",
        str(every),
        "payment",
        *EVENT_TYPES,
        stdout=asyncio.subprocess.PIPE,
        cwd=Path(__file__).parents[2],
        env={
            **os.environ,
            "RABBITFLOW_URL": settings.broker_url,
            "RABBITFLOW_NAMESPACE": settings.namespace or "",
            "RABBITFLOW_QUEUE_TYPE": settings.queue_type,
        },
    )
    async with asyncio.timeout(400):
        said, _ = await process.communicate()
    assert process.returncode == 0
    return said.decode().splitlines()


async def account_of_kills(settings: Settings, probe: Probe, every: int) -> None:
    """Replace every queue of a consumer and its log while a publisher runs, killed at every
    ``every``-th step; then nothing may be missing, of what was there and of what came."""
    names = probe.names
    other = {"x-delivery-limit": 20} if settings.queue_type == "quorum" else {"x-max-priority": 3}
    changes = dict.fromkeys(("payment", "payment.dead", "payment.retry.2s"), other)
    declare_otherwise(probe, {**changes, "events.ORDER_PLACED.log": {"x-max-age": "1D"}})
    waiting = fill(probe, names.queue("payment"), 700)
    dead = fill(probe, names.dead("payment"), 20)
    later = fill(probe, names.retry("payment", 2), 20, "600000")
    later |= fill(probe, names.retry("payment", 4), 20, "600000")
    due = {
        one
        for delay_ms in range(500, 20_000, 500)
        for one in fill(probe, names.retry("payment", 1), 1, str(delay_ms))
    }
    # A publisher that runs has the settings it was started with.
    before = settings.model_copy(update={"event_log_max_age": "1D"})
    async with announcing(before) as announced:
        steps = await killed(settings, every)
    assert len(steps) > 20 // every
    assert not await differs(settings)
    retried = probe.ids(names.retry("payment", 2)) + probe.ids(names.retry("payment", 4))
    assert set(retried) == later
    assert set(probe.ids(names.dead("payment"))) == dead
    there = set(probe.ids(names.queue("payment")))
    assert waiting <= there
    assert set(announced) <= there
    assert due <= there | set(probe.ids(names.retry("payment", 1)))
    assert set(probe.ids(names.log("ORDER_PLACED"), is_log=True)) >= set(announced)
    for queue in wanted(settings).queues:
        assert probe.depth(holding_queue(queue.name)) == -1
