"""What is promised holds on the fast path and on the client library's public one alike."""

from __future__ import annotations

import asyncio

import pytest
from pamqp.commands import Basic

from rabbitflow import Consumer, Event, Publisher, Unroutable
from rabbitflow.broker import NotFound
from rabbitflow.confirmed import ConfirmedChannel
from rabbitflow.settings import Settings
from rabbitflow.topology import Names
from rabbitflow.worker.delivery import Delivery
from rabbitflow.worker.runtime import ConsumerRuntime
from rabbitflow.worker.subscription import Subscription
from tests.harness.broker import Probe
from tests.harness.waiting import eventually

pytestmark = pytest.mark.usefixtures("path")


def properties(message_id: str) -> Basic.Properties:
    return Basic.Properties(message_id=message_id, delivery_mode=2)


async def test_the_path_asked_for_is_the_one_taken(settings: Settings, path: str) -> None:
    channel = ConfirmedChannel(settings, "test")
    await channel.open()
    assert (channel.confirms is not None) == (path == "fast")
    await channel.close()


async def test_bodies_of_several_frames_arrive_as_they_were_sent(
    settings: Settings, publisher: Publisher, probe: Probe
) -> None:
    payment = Consumer("payment")
    received: list[str] = []

    @payment.on("ORDER_PLACED")
    async def note(data: dict[str, str]) -> None:
        received.append(data["text"])

    runtime = ConsumerRuntime(payment, settings)
    running = asyncio.create_task(runtime.run())
    await eventually(lambda: runtime.is_ready)
    sizes = (0, 1, 131_000, 131_064, 131_072, 300_000, 700_000)
    texts = [chr(ord("a") + number) * size for number, size in enumerate(sizes)]
    events = (Event(type="ORDER_PLACED", data={"text": text}) for text in texts)
    assert await publisher.publish_many(events, window=3) == len(texts)
    await eventually(lambda: sorted(received) == sorted(texts))
    runtime.stop()
    await running
    assert probe.depth(probe.names.queue("payment")) == 0


async def test_one_unroutable_message_fails_alone_among_many_in_flight(
    settings: Settings, probe: Probe
) -> None:
    queue = Names(settings.namespace).queue("payment")
    probe.declare_queue(queue)
    channel = ConfirmedChannel(settings, "test")
    targets = [queue if number % 5 else f"{queue}-is-not-there" for number in range(40)]
    outcomes = await asyncio.gather(
        *(
            channel.publish("", target, b"{}", properties(str(number)))
            for number, target in enumerate(targets)
        ),
        return_exceptions=True,
    )
    await channel.close()
    for target, outcome in zip(targets, outcomes, strict=True):
        assert (outcome is None) == (target == queue)
        assert outcome is None or isinstance(outcome, Unroutable)
    assert probe.depth(queue) == 32


async def test_a_channel_that_one_publish_ended_loses_none_of_the_others(
    settings: Settings, probe: Probe
) -> None:
    queue = Names(settings.namespace).queue("payment")
    probe.declare_queue(queue)
    channel = ConfirmedChannel(settings, "test")
    await channel.open()
    missing = f"{queue}-is-no-exchange"
    outcomes = await asyncio.gather(
        *(
            channel.publish("" if number != 7 else missing, queue, b"{}", properties(str(number)))
            for number in range(20)
        ),
        return_exceptions=True,
    )
    await channel.close()
    assert isinstance(outcomes[7], NotFound)
    assert outcomes[:7] + outcomes[8:] == [None] * 19
    assert probe.depth(queue) >= 19


async def test_a_subscription_hears_that_its_queue_is_gone(
    settings: Settings, probe: Probe
) -> None:
    queue = Names(settings.namespace).queue("payment")
    probe.declare_queue(queue)
    received: list[Delivery] = []
    subscription = await Subscription.open(settings, "test", queue, received.append)
    await subscription.consume(10)
    probe.publish("", queue, b"{}")
    await eventually(lambda: len(received) == 1)
    probe.delete_queue(queue)
    async with asyncio.timeout(10):
        why = await subscription.lost
    assert "cancelled" in why
    received[0].ack()  # the broker's again: nothing happens, above all no error
    await subscription.close()


async def test_what_was_handed_out_before_a_pause_can_still_be_settled(
    settings: Settings, probe: Probe
) -> None:
    queue = Names(settings.namespace).queue("payment")
    probe.declare_queue(queue)
    for _ in range(5):
        probe.publish("", queue, b"{}")
    received: list[Delivery] = []
    subscription = await Subscription.open(settings, "test", queue, received.append)
    await subscription.consume(5)
    await eventually(lambda: len(received) == 5)
    await subscription.pause()
    await subscription.consume(2)
    for delivery in received:
        delivery.ack()
    await subscription.close()
    assert probe.depth(queue) == 0
