"""What waits for a consumer is known also while the consumer is down."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from rabbitflow.settings import Settings
from rabbitflow.worker import counting
from rabbitflow.worker.counting import Counting
from rabbitflow.worker.discovery import Found
from rabbitflow.worker.plan import Plan, Terms
from rabbitflow.worker.process import Beat
from rabbitflow.worker.slot import Slot
from tests.harness.broker import Probe
from tests.harness.waiting import eventually


class Beating:
    """A child that tells what a test says."""

    has_beaten = True
    was_ready = True

    def __init__(self, messages: dict[str, int]) -> None:
        self.beat = Beat(is_ready=True, messages=messages)


@pytest.fixture
def slot(settings: Settings, tmp_path: Path) -> Slot:
    """A place without a child, whose consumer has three messages waiting."""
    found = Found("payment", "shop", ("ORDER_PLACED",), 8, (2, 4), 30.0)
    return Slot(found, 0, tmp_path, Terms.of(settings))


@asynccontextmanager
async def counted(slot: Slot, settings: Settings) -> AsyncIterator[Counting]:
    order = Terms.of(settings).order
    counts = Counting(lambda: [slot], lambda: order, Plan(("shop",)))
    running = asyncio.create_task(counts.run())
    try:
        yield counts
    finally:
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running


def counters() -> list[psutil.Process]:
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if "rabbitflow.worker.backlog" in process.cmdline():
                found.append(process)
    return found


async def test_a_consumer_that_is_refused_is_counted_until_it_is_back(
    slot: Slot, settings: Settings, probe: Probe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(counting, "NEEDED_FOR_S", 0.1)
    monkeypatch.setattr(counting, "KEPT_S", 0.0)
    for queue, waiting in ((probe.names.queue("payment"), 3), (probe.names.dead("payment"), 1)):
        probe.declare_queue(queue)
        for _ in range(waiting):
            probe.publish("", queue, b"{}")
    slot.is_refused = True
    async with counted(slot, settings) as counts:
        there = {"payment": {"ready": 3, "retry": 0, "dead": 1}}
        await eventually(lambda: counts.messages == there, what=f"{counts.messages}")
        (counter,) = counters()
        assert "guest:guest" not in " ".join(counter.cmdline())
        slot.is_refused = False
        back: Any = Beating({"ready": 2, "retry": 0, "dead": 1})
        slot.child = back
        await eventually(lambda: not counters())
        # What its child says needs no stand-in.
        await eventually(lambda: not counts.messages)
        slot.child, slot.is_refused = None, True
        await eventually(lambda: counts.messages == there, what=f"{counts.messages}")
    assert not counters()


async def test_a_restart_leaves_the_figures_of_before_and_starts_nothing(
    slot: Slot, settings: Settings
) -> None:
    before: Any = Beating({"ready": 7, "retry": 1, "dead": 0})
    slot.child = before
    async with counted(slot, settings) as counts:
        await eventually(lambda: counts.messages == {"payment": before.beat.messages})
        slot.end("died")
        assert slot.is_down
        looks = 0

        def look(original: Callable[[], None] = counts._look) -> None:
            nonlocal looks
            looks += 1
            original()

        counts._look = look  # type: ignore[method-assign]
        await eventually(lambda: looks > 2)
        assert counts.messages == {"payment": before.beat.messages}
        assert not counters()


def test_a_broker_that_is_away_is_no_reason_to_count(slot: Slot) -> None:
    slot.end("broker_lost")
    assert not slot.is_down
    slot.end("died")
    assert slot.is_down
