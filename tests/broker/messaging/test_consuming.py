"""Deliveries: prefetch, settling, what comes back, and in which order."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from aiormq.abc import DeliveredMessage
from aiormq.exceptions import (
    ChannelAccessRefused,
    ChannelPreconditionFailed,
    ConnectionNotAllowed,
    ConnectionNotImplemented,
)
from pamqp.commands import Basic

from tests.harness.amqp import Client, headers_of
from tests.harness.waiting import eventually

NUMBERS = [b"%d" % number for number in range(10)]


def tag_of(message: DeliveredMessage) -> int:
    tag = message.delivery_tag
    assert tag is not None
    return tag


async def test_deliveries_come_in_order_with_tags_from_one(client: Client, kind: str) -> None:
    queue = await client.queue(kind=kind)
    await client.publish(queue, *NUMBERS)
    inbox = await client.consume(queue)
    messages = await inbox.has(10)
    assert inbox.bodies == NUMBERS
    assert [message.delivery_tag for message in messages] == list(range(1, 11))
    assert {message.consumer_tag for message in messages} == {inbox.tag}
    assert not any(message.redelivered for message in messages)


async def test_a_consumer_holds_no_more_than_its_prefetch(client: Client, kind: str) -> None:
    queue = await client.queue(kind=kind)
    await client.publish(queue, *NUMBERS)
    inbox = await client.consume(queue, prefetch=3)
    await inbox.has(3)
    await client.has_depth(queue, 7)
    await inbox.channel.basic_ack(2)
    await inbox.has(4)
    await client.has_depth(queue, 6)
    await inbox.channel.basic_ack(4, multiple=True)
    await inbox.has(7)
    await client.has_depth(queue, 3)
    assert inbox.bodies == NUMBERS[:7]


async def test_prefetch_holds_for_each_consumer_and_those_that_come_after(client: Client) -> None:
    queue = await client.queue()
    channel = await client.channel()
    first = await client.consume(queue, prefetch=1, on=channel)
    second = await client.consume(queue, prefetch=2, on=channel)
    await client.publish(queue, *NUMBERS)
    await eventually(lambda: (len(first.messages), len(second.messages)) == (1, 2))
    await client.has_depth(queue, 7)


async def test_a_global_prefetch_holds_for_the_channel(client: Client) -> None:
    queue = await client.queue()
    channel = await client.channel()
    await channel.basic_qos(prefetch_count=3, global_=True)
    inboxes = [await client.consume(queue, on=channel) for _ in range(2)]
    await client.publish(queue, *NUMBERS)
    await client.has_depth(queue, 7)
    assert sum(len(inbox.messages) for inbox in inboxes) == 3
    await channel.basic_ack(3, multiple=True)
    await client.has_depth(queue, 4)


async def test_quorum_queues_refuse_a_global_prefetch(client: Client) -> None:
    queue = await client.queue(kind="quorum")
    channel = await client.channel()
    await channel.basic_qos(prefetch_count=3, global_=True)
    with pytest.raises(ConnectionNotImplemented, match="does not support global qos"):
        await client.consume(queue, on=channel)


async def test_consumers_take_turns(client: Client, kind: str) -> None:
    queue = await client.queue(kind=kind)
    inboxes = [await client.consume(queue, prefetch=100) for _ in range(2)]
    await client.publish(queue, *NUMBERS)
    await eventually(lambda: sum(len(inbox.messages) for inbox in inboxes) == 10)
    assert [len(inbox.messages) for inbox in inboxes] == [5, 5]


async def test_a_consumer_of_higher_priority_is_served_first(client: Client) -> None:
    queue = await client.queue()
    low = await client.consume(queue, prefetch=10)
    high = await client.consume(queue, prefetch=4, arguments={"x-priority": 5})
    await client.publish(queue, *NUMBERS)
    await eventually(lambda: len(low.messages) + len(high.messages) == 10)
    assert high.bodies == NUMBERS[:4]


async def test_a_single_active_consumer_gets_everything_until_it_is_gone(
    client: Client, kind: str
) -> None:
    queue = await client.queue(kind=kind, x_single_active_consumer=True)
    first = await client.consume(queue, prefetch=100)
    second = await client.consume(queue, prefetch=100)
    await client.publish(queue, *NUMBERS)
    await first.has(10)
    assert second.messages == []
    await first.channel.close()
    await second.has(10)


async def test_what_needs_no_ack_is_gone_at_once(client: Client, kind: str) -> None:
    queue = await client.queue(kind=kind)
    await client.publish(queue, *NUMBERS)
    inbox = await client.consume(queue, no_ack=True)
    await inbox.has(10)
    await inbox.channel.close()
    await client.has_depth(queue, 0)


async def test_an_ack_of_many_settles_every_one_before(client: Client, kind: str) -> None:
    queue = await client.queue(kind=kind)
    await client.publish(queue, *NUMBERS)
    inbox = await client.consume(queue, prefetch=100)
    await inbox.has(10)
    await inbox.channel.basic_ack(3)
    await inbox.channel.basic_ack(7, multiple=True)
    await inbox.channel.close()
    await client.has_depth(queue, 3)
    assert await client.drain(queue, 3) == NUMBERS[7:]


async def test_tag_zero_stands_for_all(client: Client, kind: str) -> None:
    queue = await client.queue(kind=kind)
    await client.publish(queue, *NUMBERS)
    inbox = await client.consume(queue, prefetch=100)
    await inbox.has(10)
    await inbox.channel.basic_ack(0, multiple=True)
    await inbox.channel.close()
    assert await client.depth(queue) == 0


@pytest.mark.parametrize(("tag", "multiple"), [(7, False), (7, True), (1, False), (0, False)])
async def test_a_tag_that_is_not_open_closes_the_channel(
    client: Client, tag: int, multiple: bool
) -> None:
    queue = await client.queue()
    await client.publish(queue, b"x")
    channel = await client.channel()
    await client.next(queue, on=channel)
    await channel.basic_ack(1)
    with pytest.raises(ChannelPreconditionFailed, match=f"unknown delivery tag {tag}"):
        await channel.basic_ack(tag, multiple=multiple)
        await channel.closing


async def test_what_a_closed_channel_held_comes_back_as_redelivered(
    client: Client, kind: str
) -> None:
    queue = await client.queue(kind=kind)
    await client.publish(queue, *NUMBERS)
    inbox = await client.consume(queue, prefetch=4)
    await inbox.has(4)
    await inbox.channel.close()
    await client.has_depth(queue, 10)
    again = await client.consume(queue, prefetch=100)
    messages = await again.has(10)
    assert again.bodies == NUMBERS
    assert [message.redelivered for message in messages] == [True] * 4 + [False] * 6


async def test_what_a_lost_connection_held_comes_back(
    client: Client, other: Client, kind: str
) -> None:
    queue = await client.queue(kind=kind)
    await client.publish(queue, b"x")
    await (await other.consume(queue, prefetch=1)).has(1)
    await other.connection.close()
    message = await client.next(queue, no_ack=True)
    assert (message.body, message.redelivered) == (b"x", True)


async def test_only_quorum_queues_count_deliveries(client: Client, kind: str) -> None:
    queue = await client.queue(kind=kind)
    await client.publish(queue, b"x")
    counts: list[Any] = []
    for _ in range(3):
        message = await client.next(queue)
        # Brokers from 4.0 on leave a zero out.
        counts.append(headers_of(message).get("x-delivery-count", 0))
        await message.channel.basic_nack(tag_of(message), requeue=True)
    assert counts == ([0, 1, 2] if kind == "quorum" else [0, 0, 0])


async def test_a_classic_queue_puts_back_where_it_was(client: Client) -> None:
    queue = await client.queue()
    await client.publish(queue, *NUMBERS[:5])
    channel = await client.channel()
    tags = [tag_of(await client.next(queue, on=channel)) for _ in range(4)]
    for turn in (2, 0, 3, 1):
        await channel.basic_nack(tags[turn], requeue=True)
    await client.has_depth(queue, 5)
    assert await client.drain(queue, 5) == NUMBERS[:5]


async def test_a_quorum_queue_serves_first_what_came_back_first(client: Client) -> None:
    queue = await client.queue(kind="quorum", x_delivery_limit=10)
    await client.publish(queue, *NUMBERS[:5])
    channel = await client.channel()
    tags = [tag_of(await client.next(queue, on=channel)) for _ in range(4)]
    for turn in (2, 0, 3, 1):
        await channel.basic_nack(tags[turn], requeue=True)
    await client.has_depth(queue, 5)
    assert await client.drain(queue, 5) == [b"2", b"0", b"3", b"1", b"4"]


async def test_a_quorum_queue_without_a_limit_serves_last_what_came_back(client: Client) -> None:
    # From 4.0 on every quorum queue has a limit.
    queue = await client.queue(kind="quorum")
    await client.publish(queue, *NUMBERS[:5])
    message = await client.next(queue)
    await message.channel.basic_nack(tag_of(message), requeue=True)
    await client.has_depth(queue, 5)
    assert await client.drain(queue, 5) == [*NUMBERS[1:5], NUMBERS[0]]


async def test_a_nack_of_many_puts_them_back_in_order(client: Client, kind: str) -> None:
    limit = {"x_delivery_limit": 10} if kind == "quorum" else {}
    queue = await client.queue(kind=kind, **limit)
    await client.publish(queue, *NUMBERS)
    channel = await client.channel()
    for _ in range(5):
        await client.next(queue, on=channel)
    await channel.basic_nack(4, multiple=True, requeue=True)
    await client.has_depth(queue, 9)
    assert await client.drain(queue, 9) == [*NUMBERS[:4], *NUMBERS[5:]]


async def test_a_rejected_message_without_a_dead_letter_exchange_is_gone(
    client: Client, kind: str
) -> None:
    queue = await client.queue(kind=kind)
    await client.publish(queue, b"1", b"2")
    message = await client.next(queue)
    await message.channel.basic_reject(tag_of(message), requeue=False)
    assert await client.drain(queue, 1) == [b"2"]
    assert await client.get(queue) is None


async def test_recover_gives_everything_back(client: Client, kind: str) -> None:
    queue = await client.queue(kind=kind)
    await client.publish(queue, *NUMBERS[:3])
    channel = await client.channel()
    for _ in range(3):
        await client.next(queue, on=channel)
    await channel.basic_recover(requeue=True)
    await client.has_depth(queue, 3)
    assert await client.drain(queue, 3) == NUMBERS[:3]


async def test_a_cancelled_consumer_keeps_what_it_holds(client: Client, kind: str) -> None:
    queue = await client.queue(kind=kind)
    await client.publish(queue, *NUMBERS)
    inbox = await client.consume(queue, prefetch=2)
    await inbox.has(2)
    await inbox.channel.basic_cancel(inbox.tag)
    await client.publish(queue, b"more")
    await client.has_depth(queue, 9)
    await inbox.channel.basic_ack(2, multiple=True)
    await inbox.channel.close()
    assert await client.drain(queue, 9) == [*NUMBERS[2:], b"more"]
    assert await client.get(queue) is None
    assert len(inbox.messages) == 2


async def test_a_deleted_queue_cancels_its_consumers(
    client: Client, other: Client, kind: str
) -> None:
    queue = await client.queue(kind=kind)
    await client.publish(queue, b"x")
    cancelled: list[Basic.Cancel] = []
    channel = await other.channel()
    channel.on_consumer_cancel_callbacks.add(cancelled.append)
    inbox = await other.consume(queue, on=channel, prefetch=1)
    await inbox.has(1)
    await (await client.shared()).queue_delete(queue)
    await eventually(lambda: cancelled)
    assert cancelled[0].consumer_tag == inbox.tag
    # The delivery is still open on the channel, and so is the channel.
    await channel.basic_ack(1)
    await client.declare(queue)
    assert await other.depth(queue) == 0


async def test_get_takes_one_and_says_how_many_are_left(client: Client, kind: str) -> None:
    queue = await client.queue(kind=kind)
    await client.publish(queue, b"1", b"2", b"3")
    message = await client.next(queue)
    assert message.body == b"1"
    assert isinstance(message.delivery, Basic.GetOk)
    assert message.delivery.message_count == 2
    assert await client.drain(queue, 2) == [b"2", b"3"]
    assert await client.get(queue) is None


async def test_an_exclusive_consumer_shuts_others_out(client: Client) -> None:
    queue = await client.queue()
    await client.consume(queue, exclusive=True)
    with pytest.raises(ChannelAccessRefused, match="in exclusive use"):
        await client.consume(queue)


async def test_a_consumer_tag_is_used_once(client: Client) -> None:
    queue = await client.queue()
    inbox = await client.consume(queue)
    channel = inbox.channel

    async def ignore(message: DeliveredMessage) -> None: ...

    # The client would refuse by itself; the broker has to.
    channel.consumers.clear()
    with pytest.raises(ConnectionNotAllowed, match="attempt to reuse consumer tag"):
        await channel.basic_consume(queue, ignore, consumer_tag=inbox.tag)


async def test_a_slow_reader_delays_nobody_else(client: Client, other: Client) -> None:
    queue, quick = await client.queue("slow"), await client.queue("quick")
    body = b"x" * 100_000
    slow_channel = await other.channel()
    stop = asyncio.Event()

    async def linger(message: DeliveredMessage) -> None:
        await stop.wait()

    await slow_channel.basic_qos(prefetch_count=50)
    await slow_channel.basic_consume(queue, linger, no_ack=False)
    for _ in range(100):
        await client.publish(queue, body)
    inbox = await client.consume(quick, no_ack=True)
    await client.publish(quick, *NUMBERS)
    await inbox.has(10)
    stop.set()
