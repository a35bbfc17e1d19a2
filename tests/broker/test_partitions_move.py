"""Workers of an ordered consumer join, leave and are killed, while a publisher goes on."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rabbitflow import Publisher
from rabbitflow.settings import Settings
from tests.harness.broker import Probe
from tests.harness.ordered import Fleet, all_handled, announce, check
from tests.harness.waiting import eventually

KEYS = 50


@pytest.fixture
def fleet(settings: Settings, probe: Probe, tmp_path: Path) -> Iterator[Fleet]:
    """Workers that are gone when the test ends, and with them the partitions."""
    fleet = Fleet(settings, tmp_path)
    yield fleet
    fleet.end()
    for number in range(8):
        probe.delete_queue(probe.names.partition("payment", number))


@pytest.mark.only_on("rabbitmq", reason="about processes, which take seconds to start")
async def test_order_is_kept_while_workers_join_leave_and_are_killed(
    fleet: Fleet, publisher: Publisher
) -> None:
    await asyncio.gather(fleet.join("first"), fleet.join("second"))
    stopping = asyncio.Event()
    announcing = asyncio.create_task(announce(publisher, KEYS, 0.25, stopping))
    await fleet.join("third")
    assert await asyncio.to_thread(fleet.leave, "first") == 0
    fleet.kill("second")
    killed_at = time.time()
    keys = {f"order-{key}" for key in range(KEYS)}
    await eventually(lambda: keys == fleet.keys_begun_after(killed_at), within_s=30)
    stopping.set()
    rounds = await announcing
    await all_handled(fleet, KEYS, rounds, within_s=30)
    check(fleet, KEYS, rounds)
    pids = {effect.pid for effect in fleet.ledger.of("payment")}
    assert len(pids) == 3, "each of the three had its share"
