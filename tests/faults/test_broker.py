"""The broker crashes, restarts, blocks, drops queues and connections: nothing confirmed is lost."""

from __future__ import annotations

import asyncio
import statistics
import time

import pytest

from rabbitflow import Publisher, PublishTimeout
from tests.faults.conftest import Note
from tests.harness.broker import Probe
from tests.harness.node import PrivateNode
from tests.harness.scene import SETTLED_AFTER, Scene, rating
from tests.harness.waiting import eventually

NOTHING_LOST = "nothing lost"


async def come_back(node: PrivateNode, *, crash: bool) -> float:
    """Take the broker down and bring it back; return when its port answered."""
    await asyncio.to_thread(node.kill if crash else node.stop)
    await asyncio.to_thread(node.start)
    return time.time()


async def survive(scene: Scene, node: PrivateNode, *, crash: bool) -> float:
    """Take the broker down under load; return how soon both consumed again."""
    async with scene.announcer.running():
        await scene.confirmed(75)
        answered_at = await come_back(node, crash=crash)
        recovery_s = await scene.consumes_again(answered_at)
        await scene.confirmed(75)
    return recovery_s


@pytest.mark.parametrize(
    ("fault", "behaviour", "options"),
    [
        ("broker kill -9 during publish and consume", "pass", "retry=Retry.none()"),
        pytest.param(
            "broker kill -9 during retry hand-over",
            "if context.attempt == 1: raise ValueError('once')",
            # The circuit breaker would have ten a second handed over.
            "retry=Retry.fixed(attempts=4, wait=1), breaker=None",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "broker kill -9 during dead-lettering",
            "if number % 2: raise DeadLetter('odd')",
            "retry=Retry.none()",
            marks=pytest.mark.slow,
        ),
    ],
)
async def test_a_broker_that_crashes_loses_nothing(
    scene: Scene, node: PrivateNode, note: Note, fault: str, behaviour: str, options: str
) -> None:
    await scene.begin(rating(behaviour, options=options))
    recovery_s = await survive(scene, node, crash=True)
    note(fault, NOTHING_LOST, await scene.account(), recovery_s)


@pytest.mark.slow
async def test_consumers_are_back_soon_after_a_broker_that_restarts(
    scene: Scene, node: PrivateNode, note: Note
) -> None:
    await scene.begin()
    recovery_s = await survive(scene, node, crash=False)
    note("broker restart", NOTHING_LOST, await scene.account(), recovery_s)


@pytest.mark.slow
async def test_recovery_takes_less_than_five_seconds_by_the_median_of_five(
    scene: Scene, node: PrivateNode, note: Note
) -> None:
    await scene.begin()
    recoveries = [await survive(scene, node, crash=False) for _ in range(5)]
    median_s = statistics.median(recoveries)
    fault = f"broker restart, five times: the median; {max(recoveries):.1f} s the longest"
    note(fault, "back in 5 s (median)", await scene.account(), median_s)
    assert median_s < 5.0, recoveries


@pytest.mark.slow
async def test_connections_that_are_closed_again_and_again_lose_nothing(
    scene: Scene, node: PrivateNode, note: Note
) -> None:
    await scene.begin()
    async with scene.announcer.running():
        for _ in range(3):
            await asyncio.to_thread(node.ctl, "close_all_connections", "on purpose")
            closed_at = time.time()
            await scene.confirmed(SETTLED_AFTER)
        recovery_s = await scene.consumes_again(closed_at, is_news=True)
    note("all connections closed every 2 s", NOTHING_LOST, await scene.account(), recovery_s)


@pytest.mark.parametrize(
    ("fault", "raise_alarm", "clear_alarm"),
    [
        (
            "memory alarm",
            ("set_vm_memory_high_watermark", "0.00001"),
            ("set_vm_memory_high_watermark", "absolute", "1500MB"),
        ),
        pytest.param(
            "disk alarm",
            ("set_disk_free_limit", "100000GB"),
            ("set_disk_free_limit", "50MB"),
            marks=pytest.mark.slow,
        ),
    ],
)
async def test_under_an_alarm_a_publish_ends_with_a_clear_error_in_bounded_time(
    scene: Scene,
    node: PrivateNode,
    note: Note,
    fault: str,
    raise_alarm: tuple[str, ...],
    clear_alarm: tuple[str, ...],
) -> None:
    timeout_s = 1.5
    scene.announcer.settings = scene.settings.model_copy(update={"publish_timeout_s": timeout_s})
    await scene.begin()
    async with (
        Publisher(settings=scene.announcer.settings) as publisher,
        scene.announcer.running(),
    ):
        await publisher.publish("ALARM_TESTED", {})
        connection = await publisher.channel.connection()
        await asyncio.to_thread(node.ctl, *raise_alarm)
        try:
            await eventually(
                lambda: scene.announcer.refused["PublishTimeout"] > 0,
                within_s=timeout_s + 10,
                what="publishes time out while the broker blocks them",
            )
            with pytest.raises(PublishTimeout):
                await publisher.publish("ALARM_TESTED", {})
            # Its successor would be blocked as well.
            assert await publisher.channel.connection() is connection
        finally:
            await asyncio.to_thread(node.ctl, *clear_alarm)
        cleared_at = time.time()
        recovery_s = await scene.consumes_again(cleared_at, is_news=True)
    assert set(scene.announcer.refused) == {"PublishTimeout"}
    assert scene.announcer.slowest_s < timeout_s + 2.0  # no hang; the machine may be busy
    note(fault, "clear error in bounded time", await scene.account(), recovery_s)


async def test_a_queue_deleted_under_its_consumer_is_declared_again_and_its_events_are_in_the_log(
    scene: Scene, note: Note
) -> None:
    await scene.begin()
    probe = Probe(scene.settings)
    async with scene.announcer.running():
        await scene.confirmed(50)
        probe.delete_queue(probe.names.queue("rating"))
        deleted_at = time.time()
        recovery_s = await scene.consumes_again(deleted_at, is_news=True)
    probe.close()
    account = await scene.account(within_s=5, is_log_counted=True)
    note("queue deleted under its consumer", "in the log; others untouched", account, recovery_s)
    paid = await scene.account(consumers=("payment",))
    assert paid.lost == paid.left == 0


@pytest.mark.parametrize(
    ("fault", "behaviour", "options", "suffix"),
    [
        (
            "retry queue missing",
            "if context.attempt == 1: raise ValueError('once')",
            "retry=Retry.fixed(attempts=3, wait=1)",
            "retry.1s",
        ),
        (
            "dead-letter queue missing",
            "if number % 5 == 0: raise DeadLetter('fifth')",
            "retry=Retry.none()",
            "dead",
        ),
    ],
)
@pytest.mark.slow
async def test_a_queue_of_its_own_that_is_missing_is_declared_again(
    scene: Scene, note: Note, fault: str, behaviour: str, options: str, suffix: str
) -> None:
    await scene.begin(rating(behaviour, options=options))
    # What is in a queue when it is deleted goes with it; so it is deleted while it is empty.
    assert (await scene.account()).lost == 0
    probe = Probe(scene.settings)
    probe.delete_queue(f"{probe.names.queue('rating')}.{suffix}")
    probe.close()
    async with scene.announcer.running():
        await scene.confirmed(150)
    note(fault, "declared again, nothing lost", await scene.account())


@pytest.mark.slow
async def test_a_delivery_that_outlives_the_brokers_time_out_comes_again(
    scene: Scene, node: PrivateNode, note: Note
) -> None:
    def set_time_out(milliseconds: int, tick: int) -> None:
        node.ctl(
            "eval",
            f"application:set_env(rabbit,consumer_timeout,{milliseconds}),"
            f" application:set_env(rabbit,channel_tick_interval,{tick}).",
        )

    await asyncio.to_thread(set_time_out, 3000, 1000)
    try:
        slow_once = (
            "if number == 20 and not Path('slept').exists():\n"
            "            Path('slept').touch()\n"
            "            await asyncio.sleep(20)"
        )
        await scene.begin(rating(slow_once))
        await eventually(
            lambda: scene.worker.said("rating lost its subscription"),
            within_s=30,
            what="the broker closes the channel of a delivery that takes too long",
        )
        note("broker's delivery time-out", NOTHING_LOST, await scene.account())
    finally:
        await asyncio.to_thread(set_time_out, 1_800_000, 60_000)
