"""While a fault hits rating, payment's latency stays what it was."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from tests.faults.conftest import as_user
from tests.harness.broker import Probe
from tests.harness.node import PrivateNode
from tests.harness.scene import PAYMENT, SETTLED_AFTER, Scene, rating
from tests.harness.table import NEIGHBOURS, Neighbour
from tests.harness.waiting import eventually
from tests.harness.workers import Worker

# A hundredth of these are six or nine events: more say more, and take longer.
HEALTHY = 600
BROKEN = 900

# On two cores that the broker, the publisher, the ledger and every restarted process share, a few
# milliseconds are the scheduler's: below this a p99 is as good as any.
NOTICEABLE_MS = 10.0

# A disk that stands still for a moment hits a hundredth of six seconds, broken or healthy. What a
# fault does to its neighbour, it does as long as it lasts.
LOOKS = 3


@pytest.fixture(scope="session")
def healthy_ms() -> list[list[float]]:
    """What payment's orders took while all was well, in every scene so far: a hundredth of one
    scene's are six orders, which says little."""
    return []


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


@dataclass(frozen=True)
class Harm:
    """What the broker does to rating alone, which runs by a command, and as a user, of its own.

    Fields:
        name: as the table has it.
        takes, gives: what the broker does in turns, each for half a second, in Erlang, with the
            user ``U`` and its password ``P``.
        behaviour: what rating's handler does with every event, once it began.
        delivery_timeout_s: the broker's, throughout.
    """

    name: str
    takes: str = "ok"
    gives: str = "ok"
    behaviour: str = "pass"
    delivery_timeout_s: float = 1_800.0


CLOSES = ' rabbit_networking:close_all_user_connections(U, <<"on purpose">>)'

HARMS = [
    Harm(
        "loses its permissions, again and again",
        'rabbit_auth_backend_internal:clear_permissions(U, <<"/">>, <<"test">>),' + CLOSES,
        'rabbit_auth_backend_internal:set_permissions(U, <<"/">>, <<".*">>, <<".*">>, <<".*">>,'
        ' <<"test">>)',
    ),
    Harm(
        "is refused its password, again and again",
        'rabbit_auth_backend_internal:change_password(U, <<"another">>, <<"test">>),' + CLOSES,
        'rabbit_auth_backend_internal:change_password(U, P, <<"test">>)',
    ),
    Harm(
        "outlives the broker's delivery time-out, every time",
        behaviour="await asyncio.sleep(3600)",
        delivery_timeout_s=1.0,
    ),
]

# In the broker itself: a command would need the processor for a second each time.
HARMING = """
spawn(fun() ->
    register(harm, self()),
    U = <<"{user}">>, P = <<"{password}">>,
    Turn = fun(Again) ->
        {takes},
        timer:sleep(500),
        {gives},
        timer:sleep(500),
        Again(Again)
    end,
    Turn(Turn)
end), ok.
"""


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name.replace(" ", "-"))
async def test_payment_is_as_fast_while_rating_breaks(
    scene: Scene, fault: Fault, healthy_ms: list[list[float]], request: pytest.FixtureRequest
) -> None:
    behaviour = f"if Path('broken').exists(): {fault.behaviour}"
    source = rating(behaviour, options=fault.options, kind=fault.kind)
    await scene.begin(source, RABBITFLOW_STALL_TIMEOUT_S="2")

    @asynccontextmanager
    async def breaking() -> AsyncIterator[None]:
        (scene.worker.directory / "broken").touch()
        happening = asyncio.create_task(_meanwhile(fault, scene))
        try:
            yield
        finally:
            happening.cancel()
            await asyncio.gather(happening, return_exceptions=True)

    await _compare(fault.name, scene, breaking(), healthy_ms, request)


@pytest.mark.slow
@pytest.mark.parametrize("harm", HARMS, ids=lambda harm: harm.name.replace(" ", "-"))
async def test_payment_is_as_fast_while_the_broker_harms_rating(
    scene: Scene,
    node: PrivateNode,
    user: tuple[str, str],
    harm: Harm,
    healthy_ms: list[list[float]],
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    async def evaluate(expression: str) -> None:
        await asyncio.to_thread(node.ctl, "eval", expression)

    def timeout(seconds: float, tick_s: float) -> str:
        return (
            f"application:set_env(rabbit, consumer_timeout, {round(seconds * 1000)}),"
            f" application:set_env(rabbit, channel_tick_interval, {round(tick_s * 1000)})."
        )

    @asynccontextmanager
    async def harming() -> AsyncIterator[None]:
        (worker.directory / "broken").touch()
        name, password = user
        await evaluate(
            HARMING.format(user=name, password=password, takes=harm.takes, gives=harm.gives)
        )
        try:
            yield
        finally:
            await evaluate("exit(whereis(harm), kill).")

    own = as_user(scene.settings, *user).model_copy(update={"state_dir": tmp_path / "own-state"})
    (tmp_path / "own").mkdir()
    await evaluate(timeout(harm.delivery_timeout_s, 1))
    try:
        with Worker(own, tmp_path / "own") as worker:
            worker.module("rating", rating(f"if Path('broken').exists(): {harm.behaviour}"))
            worker.start()
            scene.worker.module("payment", PAYMENT).start()
            await worker.ready("rating")
            await scene.worker.ready("payment")
            async with scene.announcer.running():
                await scene.confirmed(SETTLED_AFTER)
            await _compare(harm.name, scene, harming(), healthy_ms, request)
            assert worker.said("rating lost its subscription"), worker.log()
    finally:
        await evaluate(timeout(1_800, 60))


async def _compare(
    name: str,
    scene: Scene,
    broken: AbstractAsyncContextManager[None],
    healthy_ms: list[list[float]],
    request: pytest.FixtureRequest,
) -> None:
    """Look at payment while all is well, then while rating is ``broken``."""
    async with scene.announcer.running():
        healthy_ms.append(await _look(scene, HEALTHY))
        async with broken:
            looks: list[Neighbour] = []
            while len(looks) < LOOKS and not (looks and looks[-1].is_within_twice):
                looks.append(Neighbour(name, healthy_ms, await _look(scene, BROKEN)))
    seen = min(looks, key=lambda look: look.percentiles(99)[1])
    request.node.user_properties.append((NEIGHBOURS, seen.cells()))
    assert seen.is_within_twice or seen.percentiles(99)[1] <= NOTICEABLE_MS


async def _look(scene: Scene, orders: int) -> list[float]:
    """Return what the next orders take from being announced to payment's effect."""
    since = time.time()
    await scene.confirmed(orders)
    until = time.time()
    confirmed = set(scene.announcer.confirmed)
    await eventually(lambda: confirmed <= scene.effects("payment").keys(), within_s=60)
    return scene.payment_latencies_ms(since, until)


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
