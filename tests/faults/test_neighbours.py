"""While a fault hits rating, payment's latency stays what it was."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import psutil
import pytest

from tests.harness.broker import Probe
from tests.harness.scene import Scene, rating
from tests.harness.table import NEIGHBOURS, Neighbour
from tests.harness.waiting import eventually

# 99 of a hundred of these are six or nine events: more say more, and take longer.
HEALTHY = 600
BROKEN = 900

# On two cores that the broker, the publisher, the ledger and every restarted process share, a few
# milliseconds are the scheduler's: below this a p99 is as good as any.
NOTICEABLE_MS = 20.0

# A disk that stands still for a moment hits a hundredth of six seconds, broken or healthy. What a
# fault does to its neighbour, it does as long as it lasts.
LOOKS = 2


@dataclass(frozen=True)
class Fault:
    """What happens to rating.

    Fields:
        name: as the table has it.
        behaviour: what its handler does with every event, once the fault began.
        options: of the consumer.
        kind: of the handler.
        meanwhile: what happens besides, again and again, every half second.
    """

    name: str
    behaviour: str = "pass"
    options: str = "retry=Retry.fixed(attempts=3, wait=1)"
    kind: str = "async def"
    meanwhile: Callable[[Scene, Probe], None] | None = None


def kill(scene: Scene, probe: Probe) -> None:
    with suppress(psutil.NoSuchProcess, AssertionError):  # the next one is not there yet
        scene.worker.child("rating").kill()


def send_garbage(scene: Scene, probe: Probe) -> None:
    for _ in range(50):
        probe.publish("", probe.names.queue("rating"), b'{"type": "ORDER_PLACED", ')


def delete_queue(scene: Scene, probe: Probe) -> None:
    probe.delete_queue(probe.names.queue("rating"))


def delete_retry_queue(scene: Scene, probe: Probe) -> None:
    probe.delete_queue(probe.names.retry("rating", 1))


def delete_dead_letters(scene: Scene, probe: Probe) -> None:
    probe.delete_queue(probe.names.dead("rating"))


FAULTS = [
    Fault("raises, every time", "raise ValueError('always')"),
    Fault("raises a megabyte, every time", "raise ValueError('x' * 1_000_000)"),
    Fault("dead-letters every event", "raise DeadLetter('all')"),
    Fault("hangs", "await asyncio.sleep(3600)", "timeout=1"),
    Fault("hangs in its threads", "time.sleep(3600)", "timeout=1", "def"),
    Fault("blocks its event loop", "time.sleep(3600)"),
    Fault("kills its process, every time", "os.kill(os.getpid(), signal.SIGKILL)"),
    Fault("segfaults, every time", "ctypes.string_at(0)"),
    Fault(
        "leaks until it is killed",
        "hoard = globals().setdefault('hoard', []); hoard.append(bytearray(4 << 20));"
        " len(hoard) > 60 and os.kill(os.getpid(), signal.SIGKILL)",
    ),
    Fault("is killed from outside, again and again", meanwhile=kill),
    Fault("gets garbage, 100 a second", meanwhile=send_garbage),
    Fault("loses its queue, again and again", meanwhile=delete_queue),
    Fault("loses its retry queue and raises", "raise ValueError()", meanwhile=delete_retry_queue),
    Fault("loses its dead letters and raises", "raise DeadLetter()", meanwhile=delete_dead_letters),
]


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name.replace(" ", "-"))
async def test_payment_is_as_fast_while_rating_breaks(
    scene: Scene, fault: Fault, request: pytest.FixtureRequest
) -> None:
    behaviour = f"if Path('broken').exists(): {fault.behaviour}"
    source = rating(behaviour, options=fault.options, kind=fault.kind)
    await scene.begin(source, RABBITFLOW_STALL_TIMEOUT_S="2")
    async with scene.announcer.running():
        healthy_since = time.time()
        await scene.confirmed(HEALTHY)
        healthy = healthy_since, time.time()
        (scene.worker.directory / "broken").touch()
        breaking = asyncio.create_task(_meanwhile(fault, scene))
        for _ in range(LOOKS):
            seen = await _look(fault, scene, healthy)
            healthy_ms, broken_ms = seen.p99_ms
            if broken_ms <= max(2 * healthy_ms, NOTICEABLE_MS):
                break
        breaking.cancel()
        await asyncio.gather(breaking, return_exceptions=True)
    request.node.user_properties.append((NEIGHBOURS, seen.cells()))
    assert broken_ms <= max(2 * healthy_ms, NOTICEABLE_MS)


async def _look(fault: Fault, scene: Scene, healthy: tuple[float, float]) -> Neighbour:
    since = time.time()
    await scene.confirmed(BROKEN)
    until = time.time()
    confirmed = set(scene.announcer.confirmed)
    await eventually(lambda: confirmed <= scene.effects("payment").keys(), within_s=60)
    return Neighbour(
        fault.name,
        scene.payment_latencies_ms(*healthy),
        scene.payment_latencies_ms(since, until),
    )


async def _meanwhile(fault: Fault, scene: Scene) -> None:
    if fault.meanwhile is None:
        return
    # In a thread: this loop announces, and its pauses would be taken for payment's.
    probe = await asyncio.to_thread(Probe, scene.settings)
    try:
        while True:
            await asyncio.to_thread(fault.meanwhile, scene, probe)
            await asyncio.sleep(0.4)
    finally:
        probe.close()
