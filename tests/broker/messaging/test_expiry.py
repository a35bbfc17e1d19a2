"""Time-to-live: of a message, of a queue's messages, of a queue."""

from __future__ import annotations

import pytest
from aiormq.exceptions import ChannelPreconditionFailed, ConnectionInternalError
from pamqp.commands import Basic

from tests.harness.amqp import Client
from tests.harness.waiting import eventually


async def test_a_message_expires_by_its_own_wish(client: Client, kind: str) -> None:
    queue, dead = await client.dead_lettering(kind)
    await client.publish(queue, b"x", expiration="50")
    assert await client.drain(dead, 1) == [b"x"]
    assert await client.depth(queue) == 0


async def test_messages_expire_by_the_queue(client: Client, kind: str) -> None:
    queue, dead = await client.dead_lettering(kind, x_message_ttl=50)
    await client.publish(queue, b"1", b"2", b"3")
    assert await client.drain(dead, 3) == [b"1", b"2", b"3"]


async def test_the_shorter_of_both_holds(client: Client, kind: str) -> None:
    queue, dead = await client.dead_lettering(kind, x_message_ttl=60_000)
    await client.publish(queue, b"x", expiration="50")
    assert await client.drain(dead, 1) == [b"x"]


async def test_a_message_waits_behind_a_longer_lived_one(client: Client, kind: str) -> None:
    queue, dead = await client.dead_lettering(kind)
    clock = await client.queue("clock", x_dead_letter_exchange="", x_dead_letter_routing_key=dead)
    await client.publish(queue, b"long", expiration="1500")
    await client.publish(queue, b"short", expiration="50")
    # By the time this one is out, the short one would have been, were it not behind the long one.
    await client.publish(clock, b"clock", expiration="300")
    assert await client.drain(dead, 3) == [b"clock", b"long", b"short"]


async def test_what_a_consumer_holds_does_not_expire(client: Client, kind: str) -> None:
    queue, dead = await client.dead_lettering(kind)
    clock = await client.queue("clock", x_dead_letter_exchange="", x_dead_letter_routing_key=dead)
    await client.publish(queue, b"x", expiration="1000")
    message = await client.next(queue)
    await client.publish(clock, b"clock", expiration="1200")
    assert await client.drain(dead, 1) == [b"clock"]
    # It comes back too late, and dies then.
    await message.channel.basic_nack(message.delivery_tag or 0, requeue=True)
    assert await client.drain(dead, 1) == [b"x"]


async def test_no_time_at_all_is_enough_for_a_consumer_that_waits(client: Client) -> None:
    queue = await client.queue()
    await client.publish(queue, b"nobody", expiration="0")
    assert await client.depth(queue) == 0
    inbox = await client.consume(queue, no_ack=True)
    await client.publish(queue, b"somebody", expiration="0")
    await inbox.has(1)
    assert inbox.bodies == [b"somebody"]


@pytest.mark.parametrize(
    ("expiration", "why"),
    [
        ("soon", "no_integer"),
        ("-1", "value_negative"),
        ("1.5", "leftover_string"),
        ("315360000001", "value_too_large"),
    ],
)
async def test_an_expiration_that_is_none_closes_the_channel(
    client: Client, expiration: str, why: str
) -> None:
    queue = await client.queue()
    with pytest.raises(
        ChannelPreconditionFailed, match=f"invalid expiration '{expiration}'.*{why}"
    ):
        await client.publish(queue, b"x", expiration=expiration)


async def test_a_queue_that_nobody_uses_expires(client: Client, kind: str) -> None:
    queue = await client.queue(kind=kind, x_expires=300)

    async def is_gone() -> bool:
        # Asking for it by name would count as use.
        channel = await client.shared()
        try:
            outcome = await channel.basic_publish(b"x", routing_key=queue, mandatory=True)
        except ConnectionInternalError:
            # RabbitMQ 3.10 ends a connection (541) that publishes to a quorum queue as it expires.
            return False
        return not isinstance(outcome, Basic.Ack)

    await eventually(is_gone)


async def test_a_queue_that_is_consumed_does_not_expire(client: Client) -> None:
    queue, dead = await client.queue(x_expires=1000), await client.queue("dead")
    clock = await client.queue("clock", x_dead_letter_exchange="", x_dead_letter_routing_key=dead)
    inbox = await client.consume(queue, no_ack=True)
    await client.publish(clock, b"clock", expiration="1500")
    await client.drain(dead, 1)
    await client.publish(queue, b"x")
    await inbox.has(1)
