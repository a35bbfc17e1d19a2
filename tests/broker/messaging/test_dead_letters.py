"""What dies goes to the dead-letter exchange, and says why."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from tests.harness.amqp import Client, headers_of


async def reject(client: Client, queue: str) -> None:
    message = await client.next(queue)
    await message.channel.basic_reject(message.delivery_tag or 0, requeue=False)


async def test_a_death_is_written_down(client: Client, kind: str) -> None:
    queue, dead = await client.dead_lettering(kind)
    await client.publish(
        queue, b"x", expiration="60000", message_id="m-1", headers={"mine": 1, "CC": ["nowhere"]}
    )
    await reject(client, queue)
    message = await client.next(dead, no_ack=True)
    headers = headers_of(message)
    (death,) = headers.pop("x-death")
    assert abs(death.pop("time") - datetime.now(UTC)) < timedelta(seconds=60)
    assert death == {
        "count": 1,
        "reason": "rejected",
        "queue": queue,
        "exchange": "",
        "routing-keys": [queue, "nowhere"],
        "original-expiration": "60000",
    }
    assert headers.pop("mine") == 1
    assert headers["x-first-death-reason"] == "rejected"
    assert headers["x-first-death-queue"] == queue
    assert headers["x-first-death-exchange"] == ""
    assert "CC" not in headers
    assert "x-delivery-count" not in headers
    assert (message.body, message.header.properties.message_id) == (b"x", "m-1")
    assert message.header.properties.expiration is None


@pytest.mark.parametrize("reason", ["expired", "maxlen", "rejected", "delivery_limit"])
async def test_each_way_to_die_has_its_reason(client: Client, reason: str) -> None:
    arguments = {
        "expired": {"x_message_ttl": 50},
        "maxlen": {"x_max_length": 1},
        "rejected": {},
        "delivery_limit": {"x_delivery_limit": 0},
    }[reason]
    queue, dead = await client.dead_lettering("quorum", **arguments)
    await client.publish(queue, b"first")
    if reason == "maxlen":
        await client.publish(queue, b"second")
    elif reason == "rejected":
        await reject(client, queue)
    elif reason == "delivery_limit":
        message = await client.next(queue)
        await message.channel.basic_nack(message.delivery_tag or 0, requeue=True)
    message = await client.next(dead, no_ack=True)
    assert message.body == b"first"
    assert headers_of(message)["x-death"][0]["reason"] == reason


async def test_a_message_returned_too_often_dies(client: Client) -> None:
    queue, dead = await client.dead_lettering("quorum", x_delivery_limit=2)
    await client.publish(queue, b"x")
    for count in range(3):
        message = await client.next(queue)
        assert message.redelivered is (count > 0)
        await message.channel.basic_nack(message.delivery_tag or 0, requeue=True)
    assert await client.drain(dead, 1) == [b"x"]
    assert await client.get(queue) is None


async def test_a_lost_channel_counts_as_a_delivery(client: Client) -> None:
    queue, dead = await client.dead_lettering("quorum", x_delivery_limit=1)
    await client.publish(queue, b"x")
    for _ in range(2):
        inbox = await client.consume(queue, prefetch=1)
        await inbox.has(1)
        await inbox.channel.close()
    assert await client.drain(dead, 1) == [b"x"]


async def test_dying_again_in_the_same_way_only_counts(client: Client, kind: str) -> None:
    queue, dead = await client.dead_lettering(kind)
    await client.publish(queue, b"x")
    for turn in range(1, 4):
        await reject(client, queue)
        message = await client.next(dead, no_ack=True)
        (death,) = headers_of(message)["x-death"]
        assert (death["count"], death["reason"]) == (turn, "rejected")
        await client.publish(queue, message.body, headers=headers_of(message))


async def test_the_latest_death_comes_first(client: Client, kind: str) -> None:
    last = await client.queue("last")
    second = await client.queue(
        "second", kind, x_dead_letter_exchange="", x_dead_letter_routing_key=last, x_message_ttl=50
    )
    first = await client.queue(
        "first", kind, x_dead_letter_exchange="", x_dead_letter_routing_key=second
    )
    await client.publish(first, b"x")
    await reject(client, first)
    headers = headers_of(await client.next(last, no_ack=True))
    assert [(death["queue"], death["reason"]) for death in headers["x-death"]] == [
        (second, "expired"),
        (first, "rejected"),
    ]
    assert headers["x-first-death-queue"] == first


async def test_a_message_that_goes_round_by_itself_is_dropped(client: Client, kind: str) -> None:
    name = client.name("round")
    await client.declare(
        name, kind, x_dead_letter_exchange="", x_dead_letter_routing_key=name, x_message_ttl=50
    )
    await client.publish(name, b"x")
    await client.has_depth(name, 0)
    assert await client.get(name) is None


async def test_a_retry_that_goes_round_by_way_of_a_rejection_is_kept(
    client: Client, kind: str
) -> None:
    retry = client.name("retry")
    queue = await client.queue(
        kind=kind, x_dead_letter_exchange="", x_dead_letter_routing_key=retry
    )
    await client.declare(
        retry, kind, x_dead_letter_exchange="", x_dead_letter_routing_key=queue, x_message_ttl=20
    )
    await client.publish(queue, b"x")
    for _ in range(4):
        await reject(client, queue)
    assert await client.drain(queue, 1) == [b"x"]


async def test_without_a_key_of_its_own_a_dead_letter_keeps_its_key(client: Client) -> None:
    exchange = await client.exchange("topic")
    dead = await client.queue("dead")
    await client.bind(dead, exchange, "#")
    queue = await client.queue(x_dead_letter_exchange=exchange)
    await client.publish(queue, b"x")
    await reject(client, queue)
    message = await client.next(dead, no_ack=True)
    assert (message.exchange, message.routing_key) == (exchange, queue)


AT_LEAST_ONCE = {"x_dead_letter_strategy": "at-least-once", "x_overflow": "reject-publish"}


async def test_at_least_once_hands_over_what_expires(client: Client) -> None:
    queue, dead = await client.dead_lettering("quorum", **AT_LEAST_ONCE)
    for number in range(50):
        await client.publish(queue, b"%d" % number, expiration="50")
    assert sorted(await client.drain(dead, 50), key=int) == [b"%d" % n for n in range(50)]
    await client.has_depth(queue, 0)


@pytest.mark.only_on("embedded", reason="RabbitMQ offers a dead letter again after minutes")
async def test_at_least_once_waits_for_a_queue_that_is_not_there(client: Client) -> None:
    target = client.name("later")
    queue = await client.queue(
        kind="quorum", x_dead_letter_exchange="", x_dead_letter_routing_key=target, **AT_LEAST_ONCE
    )
    await client.publish(queue, b"x", expiration="20")
    await client.has_depth(queue, 0)
    await client.declare(target, "quorum")
    assert await client.drain(target, 1) == [b"x"]


async def test_at_most_once_does_not(client: Client) -> None:
    target = client.name("later")
    queue = await client.queue(
        kind="quorum", x_dead_letter_exchange="", x_dead_letter_routing_key=target
    )
    await client.publish(queue, b"x", expiration="20")
    await client.has_depth(queue, 0)
    await client.declare(target)
    assert await client.depth(target) == 0
