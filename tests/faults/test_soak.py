"""Ten minutes of load with a random fault every ten seconds: nothing lost, nothing grows."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import statistics
import time
from collections.abc import Awaitable, Callable

import psutil
import pytest
from rich.console import Console

from tests.faults.conftest import Note
from tests.harness.node import PrivateNode
from tests.harness.scene import CONSUMERS, RATE, Scene, rating

SOAK_S = float(os.environ.get("RABBITFLOW_SOAK_S", "600"))
FAULT_EVERY = int(10 * RATE)
SEED = int(os.environ.get("RABBITFLOW_SOAK_SEED", "20260403"))

FAILS = "if number % 10 == 0 and context.attempt == 1: raise ValueError('once in ten')"

Use = tuple[int, int]


def use_of(scene: Scene) -> Use:
    """Memory in bytes and open descriptors of the worker's processes together."""
    memory = descriptors = 0
    for process in (psutil.Process(scene.worker.pid), *scene.worker.children()):
        memory += process.memory_info().rss
        descriptors += process.num_fds()
    return memory, descriptors


@pytest.mark.slow
async def test_random_faults_for_ten_minutes_lose_nothing_and_nothing_grows(
    scene: Scene, node: PrivateNode, note: Note
) -> None:
    async def kill_a_child() -> None:
        scene.worker.child(chance.choice(CONSUMERS)).kill()

    async def start_anew() -> None:
        scene.worker.signal(signal.SIGHUP)

    async def close_connections() -> None:
        await asyncio.to_thread(node.ctl, "close_all_connections", "on purpose")

    async def restart_broker() -> None:
        await asyncio.to_thread(node.restart)

    async def crash_broker() -> None:
        await asyncio.to_thread(node.kill)
        await asyncio.to_thread(node.start)

    async def raise_alarm() -> None:
        await asyncio.to_thread(node.ctl, "set_vm_memory_high_watermark", "0.00001")
        await asyncio.to_thread(node.ctl, "set_vm_memory_high_watermark", "absolute", "1500MB")

    faults: list[Callable[[], Awaitable[None]]] = [
        kill_a_child,
        start_anew,
        close_connections,
        restart_broker,
        crash_broker,
        raise_alarm,
    ]
    chance = random.Random(SEED)
    Console().print(f"RABBITFLOW_SOAK_SEED={SEED}")  # shown when it fails
    await scene.begin(rating(FAILS))
    ends_at = time.monotonic() + SOAK_S
    used: list[Use] = []
    recoveries: list[float] = []
    async with scene.announcer.running():
        while time.monotonic() < ends_at:
            await chance.choice(faults)()
            recoveries.append(await scene.consumes_again(time.time(), is_news=True, within_s=60))
            await scene.confirmed(FAULT_EVERY, within_s=60)
            used.append(use_of(scene))
    account = await scene.account(within_s=120)
    fault = f"soak: {len(recoveries)} random faults in {SOAK_S:g} s, seed {SEED}"
    note(fault, "nothing lost, nothing grows", account, statistics.median(recoveries))
    settled = used[len(used) // 4]
    assert used[-1][0] < 1.3 * settled[0], f"memory grows: {used}"
    assert used[-1][1] <= settled[1] + 16, f"descriptors grow: {used}"
