"""Queues with a single active consumer: who takes over, when, and with which messages first."""

from __future__ import annotations

import pytest
from aiormq.exceptions import ChannelLockedResource

from tests.harness.amqp import Client, headers_of
from tests.harness.waiting import eventually

NUMBERS = [b"%d" % number for number in range(10)]


async def test_a_full_active_consumer_is_not_helped_by_those_that_wait(
    client: Client, other: Client, kind: str
) -> None:
    queue = await client.queue(kind=kind, x_single_active_consumer=True)
    first = await client.consume(queue, prefetch=3)
    second = await other.consume(queue, prefetch=100)
    await client.publish(queue, *NUMBERS)
    await first.has(3)
    await client.has_depth(queue, 7)
    assert second.messages == []
    assert first.bodies == NUMBERS[:3]


async def test_only_a_classic_queue_counts_those_that_wait(
    client: Client, other: Client, kind: str
) -> None:
    queue = await client.queue(kind=kind, x_single_active_consumer=True)
    await client.consume(queue)
    await other.consume(queue)
    assert await client.state(queue) == (0, 2 if kind == "classic" else 1)


async def test_a_quorum_queue_is_only_consumed(client: Client) -> None:
    queue = await client.queue(kind="quorum", x_single_active_consumer=True)
    await client.publish(queue, *NUMBERS)
    with pytest.raises(ChannelLockedResource, match=r"basic\.get operations are not supported"):
        await client.get(queue, on=await client.channel())
    first = await client.consume(queue)
    await first.has(10)


async def test_one_that_waits_leaves_and_nothing_changes(
    client: Client, other: Client, kind: str
) -> None:
    queue = await client.queue(kind=kind, x_single_active_consumer=True)
    first = await client.consume(queue, prefetch=100)
    second = await other.consume(queue, prefetch=100)
    await second.channel.basic_cancel(second.tag)
    await client.publish(queue, *NUMBERS)
    await first.has(10)
    assert first.bodies == NUMBERS


@pytest.mark.parametrize("ends", ["channel", "connection"])
async def test_the_next_one_begins_with_what_the_one_before_had_not_settled(
    client: Client, other: Client, kind: str, ends: str
) -> None:
    """In the order in which it was, and before what comes later."""
    queue = await client.queue(kind=kind, x_single_active_consumer=True)
    first = await client.consume(queue, prefetch=6)
    second = await other.consume(queue, prefetch=100)
    await client.publish(queue, *NUMBERS)
    await first.has(6)
    for settled in (2, 4):
        await first.channel.basic_ack(settled)
    await first.has(8)
    if ends == "channel":
        await first.channel.close()
    else:
        await client.connection.close()
    await second.has(8)
    assert second.bodies == [NUMBERS[0], NUMBERS[2], *NUMBERS[4:]]
    if kind == "quorum":
        counts = [headers_of(message).get("x-delivery-count", 0) for message in second.messages]
        assert counts == [1] * 6 + [0] * 2
    # The connection that declared it may be the one that is gone.
    await (await other.shared()).queue_delete(queue)


async def test_one_that_is_cancelled_with_nothing_open_hands_over(
    client: Client, other: Client, kind: str
) -> None:
    queue = await client.queue(kind=kind, x_single_active_consumer=True)
    first = await client.consume(queue, prefetch=100)
    second = await other.consume(queue, prefetch=100)
    await client.publish(queue, *NUMBERS[:5])
    await first.has(5)
    await first.channel.basic_cancel(first.tag)
    await first.channel.basic_ack(5, multiple=True)
    await client.publish(queue, *NUMBERS[5:])
    await second.has(5)
    assert second.bodies == NUMBERS[5:]


async def test_one_that_is_cancelled_with_messages_open_lets_later_ones_overtake_them(
    client: Client, other: Client
) -> None:
    """So whoever wants an order closes its channel, and never cancels before it has settled."""
    queue = await client.queue(kind="quorum", x_single_active_consumer=True)
    first = await client.consume(queue, prefetch=6)
    second = await other.consume(queue, prefetch=100)
    await client.publish(queue, *NUMBERS)
    await first.has(6)
    await first.channel.basic_cancel(first.tag)
    await second.has(4)
    assert second.bodies == NUMBERS[6:]
    await first.channel.close()
    await eventually(lambda: len(second.messages) == 10)
    assert second.bodies == NUMBERS[6:] + NUMBERS[:6]
