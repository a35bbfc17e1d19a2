"""Workers are killed, stopped and poisoned: nothing is lost, and payment does not notice."""

from __future__ import annotations

import signal
import time

import psutil
import pytest

from tests.faults.conftest import Note
from tests.harness.scene import CONSUMERS, Scene, rating
from tests.harness.waiting import eventually

NOTHING_LOST = "nothing lost"


def once(name: str, then: str) -> str:
    """Code that does ``then`` in the first process that comes by, and in no other."""
    return f"""if not Path('{name}').exists():
            Path('{name}').touch()
            {then}"""


SLOW = "await asyncio.sleep(0.05)"


@pytest.mark.parametrize(
    ("fault", "victim"),
    [
        ("rating kill -9 in the handler", "rating"),
        pytest.param("payment kill -9 in the handler", "payment", marks=pytest.mark.slow),
    ],
)
async def test_a_killed_process_is_replaced_and_its_events_come_again(
    scene: Scene, note: Note, fault: str, victim: str
) -> None:
    await scene.begin(rating(SLOW))
    async with scene.announcer.running():
        await scene.confirmed(50)
        child = scene.worker.child(victim)
        killed_at = time.time()
        child.kill()
        recovery_s = await scene.consumes_again(killed_at, without=child.pid)
        await scene.confirmed(50)
    note(fault, NOTHING_LOST, await scene.account(), recovery_s)


KILLED_BETWEEN = """
    from rabbitflow.worker.delivery import Delivery
    ack = Delivery.ack
    def ack_or_die(delivery):
        if not Path('killed').exists() and b'"number":30' in delivery.body:
            Path('killed').touch()
            os.kill(os.getpid(), signal.SIGKILL)
        ack(delivery)
    Delivery.ack = ack_or_die
"""


@pytest.mark.parametrize(
    ("copied_to", "behaviour", "options"),
    [
        ("retry", "if context.attempt == 1: raise ValueError('once')", "retry=Retry.fixed(3, 1)"),
        ("dead letter", "raise DeadLetter('all')", "retry=Retry.none()"),
    ],
)
async def test_a_kill_between_the_confirm_of_a_copy_and_the_ack_loses_nothing(
    scene: Scene, note: Note, copied_to: str, behaviour: str, options: str
) -> None:
    await scene.begin(KILLED_BETWEEN + rating(behaviour, options=options))
    assert scene.worker.said("rating died (signal 9 (SIGKILL))") == 1
    account = await scene.account()
    note(f"worker kill -9 between confirm of the {copied_to} and ack", "twice, not lost", account)


@pytest.mark.slow
async def test_a_worker_killed_while_it_drains_gives_its_events_back(
    scene: Scene, note: Note
) -> None:
    await scene.begin(rating("await asyncio.sleep(0 if Path('again').exists() else 0.5)"))
    async with scene.announcer.running():
        await scene.confirmed(50)
        scene.worker.signal()
        await eventually(lambda: scene.worker.said("rating stops;"))
        scene.worker.child("rating").kill()
    scene.worker.exit_code()
    assert scene.worker.said("; what it held goes back to its queue") == 1, scene.worker.log()
    (scene.worker.directory / "again").touch()
    await scene.begin_again()
    note("worker kill -9 during drain", NOTHING_LOST, await scene.account())


@pytest.mark.slow
async def test_a_killed_supervisor_takes_its_children_along_and_loses_nothing(
    scene: Scene, note: Note
) -> None:
    await scene.begin(rating(SLOW))
    async with scene.announcer.running():
        await scene.confirmed(50)
        children = scene.worker.children()
        scene.worker.signal(signal.SIGKILL)
        await eventually(lambda: not any(child.is_running() for child in children), within_s=20)
        scene.worker.exit_code()
        await scene.begin_again()
    note("supervisor kill -9", "no orphan, nothing lost", await scene.account())


@pytest.mark.parametrize(
    ("fault", "signals", "may_repeat"),
    [
        ("SIGTERM under load", [signal.SIGTERM], False),
        pytest.param(
            "SIGTERM twice under load",
            [signal.SIGTERM, signal.SIGTERM],
            True,
            marks=pytest.mark.slow,
        ),
        pytest.param("SIGINT under load", [signal.SIGINT], False, marks=pytest.mark.slow),
    ],
)
async def test_a_worker_that_is_stopped_loses_nothing(
    scene: Scene, note: Note, fault: str, signals: list[signal.Signals], may_repeat: bool
) -> None:
    await scene.begin(rating(SLOW))
    async with scene.announcer.running():
        await scene.confirmed(50)
        for number in signals:
            scene.worker.signal(number)
            await eventually(lambda: scene.worker.said("payment stops;"))
        assert scene.worker.exit_code() == 0
        await scene.begin_again()
    account = await scene.account()
    note(fault, "nothing lost" if may_repeat else "nothing lost, nothing twice", account)
    assert may_repeat or account.duplicated == 0


@pytest.mark.slow
async def test_a_hang_up_under_load_loses_nothing(scene: Scene, note: Note) -> None:
    await scene.begin(rating(SLOW))
    async with scene.announcer.running():
        await scene.confirmed(50)
        scene.worker.signal(signal.SIGHUP)
        await scene.worker.ready(*CONSUMERS, times=2)
        await scene.confirmed(50)
    account = await scene.account()
    note("SIGHUP under load", "nothing lost, nothing twice", account)
    assert account.duplicated == 0


@pytest.mark.parametrize(
    ("fault", "poison"),
    [
        ("poison that segfaults among innocents", "ctypes.string_at(0)"),
        pytest.param(
            "poison that is killed for its memory among innocents",
            # What the kernel does to a process that takes too much.
            "os.kill(os.getpid(), signal.SIGKILL)",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "poison that aborts when memory ends (RLIMIT_AS) among innocents",
            "import resource; size = 1 << 30; resource.setrlimit(resource.RLIMIT_AS, (size, size));"
            " libc = ctypes.CDLL(None); libc.malloc.restype = ctypes.c_void_p;"
            " libc.malloc(ctypes.c_size_t(1 << 32)) or os.abort()",
            marks=pytest.mark.slow,
        ),
    ],
)
async def test_poison_is_dead_lettered_and_the_innocent_beside_it_are_handled(
    scene: Scene, note: Note, fault: str, poison: str
) -> None:
    await scene.begin(rating(f"if number == 40: {poison}", options="concurrency=10"))
    account = await scene.account()
    note(fault, "one dead letter, the rest handled", account)
    assert account.dead == 1
    assert len(scene.effects("rating")) == account.confirmed - 1


@pytest.mark.slow
async def test_a_handler_that_takes_all_memory_it_may_is_a_dead_letter(
    scene: Scene, note: Note
) -> None:
    leak = (
        "import resource; limit = 1 << 30;"
        " resource.setrlimit(resource.RLIMIT_AS, (limit, limit)) if number == 40 else None;"
        " kept = bytearray(1 << 31) if number == 40 else None"
    )
    await scene.begin(rating(leak, options="retry=Retry.none()"))
    account = await scene.account()
    note("handler that takes more memory than it may", "one dead letter", account)
    assert account.dead == 1


@pytest.mark.slow
async def test_a_handler_that_leaks_until_its_process_dies_loses_nothing(
    scene: Scene, note: Note
) -> None:
    leak = (
        "hoard = globals().setdefault('hoard', []); hoard.append(bytearray(4 << 20));"
        " len(hoard) > 60 and os.kill(os.getpid(), signal.SIGKILL)"
    )
    await scene.begin(rating(leak))
    note("handler that leaks until it is killed", NOTHING_LOST, await scene.account())
    assert scene.worker.said("rating died") >= 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "hangs", "replaced"),
    [("async def", "await asyncio.sleep(3600)", 0), ("def", "time.sleep(3600)", 1)],
    ids=["async", "thread"],
)
async def test_a_handler_that_hangs_is_ended_and_its_event_retried(
    scene: Scene, note: Note, kind: str, hangs: str, replaced: int
) -> None:
    """A thread can't be ended, so the process is replaced for it."""
    await scene.begin(rating(once("hung", hangs), kind=kind, handler_options="timeout=1"))
    account = await scene.account()
    note(f"{kind} handler that hangs", NOTHING_LOST, account)
    assert account.dead == 0
    assert scene.worker.said("rating is started again: a handler hangs") == replaced


async def test_an_event_loop_that_is_blocked_is_noticed_and_replaced(
    scene: Scene, note: Note
) -> None:
    await scene.begin(rating(once("hung", "time.sleep(3600)")), RABBITFLOW_STALL_TIMEOUT_S="3")
    account = await scene.account()
    note("event loop that is blocked", NOTHING_LOST, account)
    assert scene.worker.said("rating gave no sign of life") == 1


async def test_a_cause_of_a_megabyte_is_cut_and_kept(scene: Scene, note: Note) -> None:
    behaviour = "if number == 40: raise ValueError('x' * 1_000_000)"
    await scene.begin(rating(behaviour, options="retry=Retry.none()"))
    account = await scene.account()
    note("traceback of 1 MB", "one dead letter", account)
    assert account.dead == 1


@pytest.mark.slow
async def test_duplicates_are_handled_as_often_as_they_come(scene: Scene, note: Note) -> None:
    """A duplicate is the consumer's to drop, by the event's id: it always has the same."""
    scene.announcer.times = 5
    await scene.begin()
    account = await scene.account()
    note("every event published five times", "the same id each time", account)
    await eventually(lambda: set(scene.effects("payment").values()) == {5})


CLOCK_IS_OFF = """
    from datetime import timedelta
    from rabbitflow.worker import clock
    off, tells = timedelta(hours={hours}), time.time
    class Off(clock.datetime):
        @classmethod
        def now(cls, tz=None):
            return super().now(tz) + off
    clock.datetime = Off
    time.time = lambda: tells() + off.total_seconds()
"""


@pytest.mark.slow
@pytest.mark.parametrize(("hours", "word"), [(-1, "slow"), (1, "fast")])
async def test_clocks_that_are_an_hour_off_change_nothing(
    scene: Scene, note: Note, hours: int, word: str
) -> None:
    behaviour = "if context.attempt < 3: raise ValueError('twice')"
    options = "retry=Retry.fixed(attempts=3, wait=1, max_age='5m'), breaker=None"
    await scene.begin(CLOCK_IS_OFF.format(hours=hours) + rating(behaviour, options=options))
    account = await scene.account()
    note(f"clock of a worker an hour {word}", "retries as usual", account)
    assert account.dead == 0
    off_s = [effect.at - time.time() for effect in scene.worker.ledger.of("rating")]
    assert max(abs(one - hours * 3600) for one in off_s) < 600, "the clock was not off"


@pytest.mark.slow
async def test_memory_and_descriptors_stay_flat_over_restarts_of_a_crashing_child(
    scene: Scene, note: Note
) -> None:
    await scene.begin(rating("if number % 200 == 0: os._exit(9)", options="retry=Retry.none()"))
    supervisor = psutil.Process(scene.worker.pid)
    before = supervisor.num_fds(), supervisor.memory_info().rss
    async with scene.announcer.running():
        await eventually(lambda: scene.worker.said("rating died") >= 5, within_s=60)
    assert supervisor.num_fds() <= before[0] + 8
    assert supervisor.memory_info().rss < before[1] + (32 << 20)
    note(
        "child that crashes again and again",
        "crash by crash isolated",
        await scene.account(within_s=240),
    )
