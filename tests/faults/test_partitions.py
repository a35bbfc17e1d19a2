"""Two minutes of an ordered consumer: workers, connections and the broker come and go."""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from rabbitflow import Publisher
from rabbitflow.settings import Settings
from tests.harness.broker import Probe, remove_namespace
from tests.harness.node import PrivateNode
from tests.harness.ordered import CONSUMER, Fleet, all_handled, announce, check
from tests.harness.waiting import eventually

KEYS = 50
MINUTES = float(os.environ.get("RABBITFLOW_ORDERED_MINUTES", "2"))
SEED = int(os.environ.get("RABBITFLOW_SOAK_SEED", "20260403"))


@pytest.fixture
def fleet(settings: Settings, tmp_path: Path) -> Iterator[Fleet]:
    fleet = Fleet(settings, tmp_path)
    yield fleet
    fleet.end()
    probe = Probe(settings)
    for number in range(8):
        probe.delete_queue(probe.names.partition(CONSUMER, number))
    probe.close()
    remove_namespace(settings, (CONSUMER,), ("ORDER_PLACED",))


@pytest.mark.slow
async def test_order_is_kept_whatever_happens_to_workers_and_broker(
    fleet: Fleet, settings: Settings, node: PrivateNode
) -> None:
    # A node takes seconds to start again, and who announces has to wait for it.
    patient = Publisher(settings=settings.model_copy(update={"publish_timeout_s": 90.0}))
    chance = random.Random(SEED)
    number = 2
    takeovers: list[float] = []

    async def come() -> None:
        nonlocal number
        number += 1
        await fleet.join(f"worker-{number}")

    async def go() -> None:
        await asyncio.to_thread(fleet.leave, chance.choice(list(fleet.workers)))

    async def die() -> None:
        victim = chance.choice(list(fleet.workers))
        fleet.kill(victim)
        began = time.time()
        keys = {f"order-{key}" for key in range(KEYS)}
        await eventually(lambda: fleet.keys_begun_after(began) == keys, within_s=60)
        takeovers.append(time.time() - began)

    async def lose_connections() -> None:
        # Runs that are cut off go on beside those that come after them elsewhere.
        with fleet.cut_off():
            await asyncio.to_thread(node.ctl, "close_all_connections", "on purpose")

    async def restart_broker() -> None:
        with fleet.cut_off():
            await asyncio.to_thread(node.restart)

    await asyncio.gather(fleet.join("worker-1"), fleet.join("worker-2"))
    stopping = asyncio.Event()
    announcing = asyncio.create_task(announce(patient, KEYS, 0.25, stopping))
    end = time.monotonic() + 60 * MINUTES
    while time.monotonic() < end:
        faults = [come] if len(fleet.workers) < 2 else [go, die, lose_connections, restart_broker]
        if len(fleet.workers) < 4:
            faults.append(come)
        await chance.choice(faults)()
        await asyncio.sleep(2.0)
    stopping.set()
    rounds = await announcing
    await patient.close()
    await all_handled(fleet, KEYS, rounds, within_s=120)
    check(fleet, KEYS, rounds)
    took = ", ".join(f"{one:.1f} s" for one in takeovers)
    Console().print(f"{rounds * KEYS} events; every key of a killed worker went on within {took}")
