"""Killed at the worst moment of settling, nothing is lost: what comes of an event is safe first,
then the event is acked.

Each worker here kills itself with SIGKILL on the first copy or follow-up that it publishes: just
before that, when an ack that was sent too early would have reached the broker; or when it is
confirmed, and the event is not acked.
"""

from __future__ import annotations

import json

import pytest

from rabbitflow import Event, Publisher
from tests.harness.broker import Probe
from tests.harness.waiting import eventually
from tests.harness.workers import Worker

KILLS_ITSELF = """
    from rabbitflow.confirmed import ConfirmedChannel
    publish = ConfirmedChannel.publish

    async def publish_and_die(self, *given, **more):
        dies = not Path("died").exists()
        if dies and {before}:
            await asyncio.sleep(0.2)
            Path("died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        await publish(self, *given, **more)
        if dies:
            Path("died").touch()
            os.kill(os.getpid(), signal.SIGKILL)

    ConfirmedChannel.publish = publish_and_die

    payment = Consumer("payment", retry=Retry.fixed(attempts=3, wait="1s", never=(KeyError,)))
    @payment.on("ORDER_PLACED", timeout="300ms")
"""
FAILS = """
    async def charge(event: Event, context: Context) -> None:
        if event.data["number"] == 13:
            raise KeyError("no retry mends this")
        if context.attempt == 1:
            raise ValueError("the first attempt fails")
        ledger.write("payment", event.id, event.data["number"], context.attempt)
"""
TAKES_TOO_LONG = """
    async def charge(event: Event, context: Context) -> None:
        if context.attempt == 1:
            await asyncio.sleep(60)
        ledger.write("payment", event.id, event.data["number"], context.attempt)
"""
HANGS_IN_ITS_THREAD = """
    def charge(event: Event, context: Context) -> None:
        if context.attempt == 1:
            time.sleep(60)
        ledger.write("payment", event.id, event.data["number"], context.attempt)
"""
ANNOUNCES = """
    async def charge(event: Event, context: Context) -> None:
        await context.publish("PAYMENT_COMPLETED", event.data)
"""

moments = pytest.mark.parametrize("before", [True, False], ids=["before", "confirmed"])


async def killed_and_back(worker: Worker, handler: str, before: bool) -> None:
    """Start the worker whose first copy or follow-up kills it."""
    worker.module("payment", KILLS_ITSELF.format(before=before) + handler)
    worker.start()
    await worker.ready("payment")


async def settled(worker: Worker, probe: Probe) -> None:
    """Wait until it was killed once, came back, and nothing is under way any more."""
    await worker.ready("payment", times=2)
    assert worker.said("payment died (signal 9 (SIGKILL))") == 1
    names = probe.names
    under_way = (names.queue("payment"), names.retry("payment", 1))
    await eventually(lambda: not any(map(probe.depth, under_way)))


@moments
async def test_an_event_whose_retry_was_not_acked_yet_is_handled_all_the_same(
    worker: Worker, publisher: Publisher, probe: Probe, before: bool
) -> None:
    await killed_and_back(worker, FAILS, before)
    event = await publisher.publish("ORDER_PLACED", {"number": 1})
    await settled(worker, probe)
    await eventually(lambda: set(worker.ledger.ids("payment")) == {event.id})
    assert probe.depth(probe.names.dead("payment")) == 0


@pytest.mark.parametrize("handler", [TAKES_TOO_LONG, HANGS_IN_ITS_THREAD], ids=["async", "thread"])
async def test_an_event_that_timed_out_is_acked_when_its_retry_is_safe(
    worker: Worker, publisher: Publisher, probe: Probe, handler: str
) -> None:
    await killed_and_back(worker, handler, before=True)
    event = await publisher.publish("ORDER_PLACED", {"number": 1})
    await settled(worker, probe)
    await eventually(lambda: worker.ledger.ids("payment") == [event.id])
    # The kill spent no attempt and the time-out one, also where it cost the process.
    assert [effect.attempt for effect in worker.ledger.of("payment")] == [2]
    assert probe.depth(probe.names.dead("payment")) == 0


@moments
async def test_an_event_whose_follow_up_was_not_safe_yet_comes_again(
    worker: Worker, publisher: Publisher, probe: Probe, before: bool
) -> None:
    probe.declare_exchange("PAYMENT_COMPLETED")
    tap = probe.tap("PAYMENT_COMPLETED")
    await killed_and_back(worker, ANNOUNCES, before)
    event = await publisher.publish("ORDER_PLACED", {"number": 1})
    await settled(worker, probe)
    # Confirmed and the event not acked, it is announced twice: one follow-up with one id.
    count = 1 if before else 2
    await eventually(lambda: probe.depth(tap) == count)
    follow_ups = [probe.take(tap) for _ in range(count)]
    assert {json.loads(found[2])["causation_id"] for found in follow_ups if found} == {event.id}
    assert len({found[1].message_id for found in follow_ups if found}) == 1


@moments
@pytest.mark.parametrize("body", [b"{", None], ids=["invalid", "rejected"])
async def test_an_event_whose_dead_letter_was_not_acked_yet_is_kept_all_the_same(
    worker: Worker, probe: Probe, before: bool, body: bytes | None
) -> None:
    await killed_and_back(worker, FAILS, before)
    rejected = Event(type="ORDER_PLACED", data={"number": 13}).encode()
    probe.publish(probe.names.exchange("ORDER_PLACED"), "", body or rejected)
    await settled(worker, probe)
    dead = probe.names.dead("payment")
    # Confirmed and not acked, it is there twice: duplicates are allowed, loss is not.
    await eventually(lambda: probe.depth(dead) == (1 if before else 2))
    messages = [probe.take(dead) for _ in range(probe.depth(dead))]
    assert {message[2] for message in messages if message} == {body or rejected}
