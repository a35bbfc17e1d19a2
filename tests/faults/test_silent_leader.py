"""A quorum queue whose leader is silent is shown as empty: nobody takes it for that."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from rabbitflow.deadletters.look import Look
from rabbitflow.errors import BrokerUnavailable
from rabbitflow.migration import moving
from rabbitflow.migration.copying import held
from rabbitflow.migration.queues import Bench, Progress
from rabbitflow.settings import Settings
from tests.harness.broker import Probe
from tests.harness.migration import declare_otherwise, fill
from tests.harness.node import PrivateNode
from tests.harness.waiting import eventually

LOOKED_AFTER_S = 2.0


@asynccontextmanager
async def silent(node: PrivateNode, probe: Probe, queue: str) -> AsyncIterator[None]:
    """Let the leader of a queue stand still."""
    leader = f"'%2F_{queue}'"
    await asyncio.to_thread(node.ctl, "eval", f"sys:suspend({leader}).")
    try:
        assert probe.depth(queue) == 0, "the broker shows it as empty"
        yield
    finally:
        await asyncio.to_thread(node.ctl, "eval", f"sys:resume({leader}).")


@asynccontextmanager
async def moving_half(
    node: PrivateNode, settings: Settings, probe: Probe
) -> AsyncIterator[asyncio.Task[None]]:
    """Empty a queue whose leader falls silent when about half of it is on its way."""
    declare_otherwise(probe, {})
    source, target = probe.names.queue("payment"), probe.names.dead("payment")
    fill(probe, source, moving.WINDOW + 200)
    await eventually(lambda: probe.depth(source) == moving.WINDOW + 200)
    async with (
        Bench.opened(settings, "test", Progress(), 0.0) as bench,
        bench.mover(source, target, held) as mover,
    ):
        await eventually(lambda: probe.depth(source) == 200)
        async with silent(node, probe, source):
            emptying = asyncio.create_task(mover.until_quiet(0.1))
            await eventually(lambda: probe.depth(target) == moving.WINDOW)
            yield emptying
        await asyncio.wait({emptying})


async def test_a_migration_goes_on_when_the_leader_answers(
    node: PrivateNode, settings: Settings, probe: Probe
) -> None:
    async with moving_half(node, settings, probe) as emptying:
        done, _ = await asyncio.wait({emptying}, timeout=LOOKED_AFTER_S)
        assert not done
    await emptying
    assert probe.depth(probe.names.dead("payment")) == moving.WINDOW + 200


async def test_a_migration_ends_when_the_leader_stays_silent(
    node: PrivateNode, settings: Settings, probe: Probe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(moving, "STALLED_S", 1.0)
    async with moving_half(node, settings, probe) as emptying:
        with pytest.raises(BrokerUnavailable, match="run the same command again"):
            await emptying


async def test_a_look_at_dead_letters_waits_for_the_leader(
    node: PrivateNode, settings: Settings, probe: Probe
) -> None:
    declare_otherwise(probe, {})
    dead = probe.names.dead("payment")
    fill(probe, dead, 5)
    await eventually(lambda: probe.depth(dead) == 5)

    async def count() -> int:
        async with Look("payment", settings) as look:
            return look.count

    async with silent(node, probe, dead):
        looking = asyncio.create_task(count())
        done, _ = await asyncio.wait({looking}, timeout=LOOKED_AFTER_S)
        assert not done
    assert await looking == 5
