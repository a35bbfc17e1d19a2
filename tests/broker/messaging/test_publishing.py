"""Confirms, returns, properties and bodies."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import pytest
from aiormq.abc import DeliveredMessage
from aiormq.exceptions import ChannelNotFoundEntity, DeliveryError, PublishError
from pamqp.commands import Basic

from tests.harness.amqp import Client, headers_of


async def test_what_a_queue_took_is_confirmed(client: Client, kind: str) -> None:
    queue = await client.queue(kind=kind)
    (confirm,) = await client.publish(queue, b"x")
    assert isinstance(confirm, Basic.Ack)
    assert await client.drain(queue, 1) == [b"x"]


async def test_what_no_queue_wants_is_confirmed_too(client: Client) -> None:
    (confirm,) = await client.publish("nowhere", b"x")
    assert isinstance(confirm, Basic.Ack)


async def test_every_one_of_many_in_flight_is_confirmed(client: Client, kind: str) -> None:
    queue = await client.queue(kind=kind)
    channel = await client.channel()
    confirms = await asyncio.gather(
        *(channel.basic_publish(b"%d" % n, routing_key=queue) for n in range(500))
    )
    assert all(isinstance(confirm, Basic.Ack) for confirm in confirms)
    assert await client.drain(queue, 500) == [b"%d" % n for n in range(500)]


async def test_a_mandatory_message_without_a_queue_comes_back_before_its_confirm(
    client: Client,
) -> None:
    channel = await client.channel()
    returned: list[DeliveredMessage] = []
    channel.on_return_callbacks.add(returned.append)
    confirm = await channel.basic_publish(
        b"whole body",
        exchange="amq.fanout",
        routing_key="nowhere",
        mandatory=True,
        properties=Basic.Properties(message_id="m-1", headers={"a": 1}),
    )
    # aiormq gives the returned message as the outcome of the publish.
    assert isinstance(confirm, DeliveredMessage)
    message = confirm
    assert isinstance(message.delivery, Basic.Return)
    assert (message.delivery.reply_code, message.delivery.reply_text) == (312, "NO_ROUTE")
    assert message.delivery.exchange == "amq.fanout"
    assert message.delivery.routing_key == "nowhere"
    assert message.header.properties.message_id == "m-1"
    assert headers_of(message) == {"a": 1}
    assert message.body == b"whole body"
    # The channel goes on.
    assert isinstance(await channel.basic_publish(b"x", routing_key="nowhere"), Basic.Ack)


async def test_a_mandatory_message_that_a_queue_took_does_not_come_back(client: Client) -> None:
    queue = await client.queue()
    channel = await client.channel()
    confirm = await channel.basic_publish(b"x", routing_key=queue, mandatory=True)
    assert isinstance(confirm, Basic.Ack)


@pytest.mark.parametrize("size", [0, 1, 131_064, 131_065, 400_000, 5_000_000])
async def test_a_body_of_any_size_arrives_whole(client: Client, kind: str, size: int) -> None:
    queue = await client.queue(kind=kind)
    body = bytes(range(256)) * (size // 256 + 1)
    await client.publish(queue, body[:size])
    inbox = await client.consume(queue, prefetch=1)
    (message,) = await inbox.has(1)
    assert message.body == body[:size]


async def test_properties_arrive_as_they_were(client: Client, kind: str) -> None:
    queue = await client.queue(kind=kind)
    given = {
        "content_type": "application/json",
        "content_encoding": "identity",
        "headers": {
            "text": "é" * 300,
            "number": 2**40,
            "negative": -5,
            "yes": True,
            "nothing": None,
            "list": [1, "two", {"three": 3}],
            "table": {"deep": {"deeper": "x"}},
            "time": datetime(2026, 4, 3, 10, 30, tzinfo=UTC),
            "bytes": bytearray(b"\x00\xff"),
        },
        "delivery_mode": 2,
        "priority": 4,
        "correlation_id": "c-1",
        "reply_to": "someone",
        "expiration": "60000",
        "message_id": "m-1",
        "timestamp": datetime(2026, 4, 3, 10, 30, tzinfo=UTC),
        "message_type": "ORDER_PLACED",
        "user_id": "guest",
        "app_id": "conformance",
    }
    await client.publish(queue, b"x", **given)
    message = await client.next(queue, no_ack=True)
    headers = headers_of(message)
    headers.pop("x-delivery-count", None)
    assert headers == given.pop("headers")
    for name, value in given.items():
        assert getattr(message.header.properties, name) == value, name


async def test_a_full_queue_that_rejects_nacks_the_publisher(client: Client, kind: str) -> None:
    queue = await client.queue(kind=kind, x_max_length=5, x_overflow="reject-publish")
    refused = 0
    for _ in range(20):
        try:
            await client.publish(queue, b"x")
        except DeliveryError:
            refused += 1
    # A quorum queue learns a little late that it is full.
    assert 10 <= refused <= 15
    assert 5 <= await client.depth(queue) <= 10


async def test_one_full_queue_behind_a_fanout_nacks_and_the_others_keep_the_message(
    client: Client,
) -> None:
    exchange = await client.exchange("fanout")
    full = await client.queue("full", x_max_length=0, x_overflow="reject-publish")
    free = await client.queue("free")
    for queue in (full, free):
        await client.bind(queue, exchange)
    with pytest.raises(DeliveryError):
        await client.publish("", b"x", exchange=exchange)
    assert await client.drain(free, 1) == [b"x"]


async def test_a_queue_with_a_limit_drops_its_oldest(client: Client, kind: str) -> None:
    queue = await client.queue(kind=kind, x_max_length=2)
    await client.publish(queue, b"1", b"2", b"3", b"4")
    assert await client.drain(queue, 2) == [b"3", b"4"]


async def test_a_limit_in_bytes_counts_bodies(client: Client, kind: str) -> None:
    queue = await client.queue(kind=kind, x_max_length_bytes=1000)
    await client.publish(queue, *(b"%d" % n * 400 for n in range(4)))
    assert await client.drain(queue, 2) == [b"2" * 400, b"3" * 400]


async def test_without_confirms_a_publish_arrives_all_the_same(client: Client, kind: str) -> None:
    queue = await client.queue(kind=kind)
    channel = await client.channel(confirms=False)
    for number in range(10):
        await channel.basic_publish(b"%d" % number, routing_key=queue, wait=False)
    assert await client.drain(queue, 10) == [b"%d" % number for number in range(10)]


async def test_a_closed_channel_takes_no_confirms_of_others_along(client: Client) -> None:
    queue = await client.queue()
    broken, sound = await client.channel(), await client.channel()
    outcomes = await asyncio.gather(
        broken.basic_publish(b"x", exchange="nowhere"),
        *(sound.basic_publish(b"x", routing_key=queue) for _ in range(50)),
        return_exceptions=True,
    )
    assert isinstance(outcomes[0], ChannelNotFoundEntity)
    assert all(isinstance(confirm, Basic.Ack) for confirm in outcomes[1:])
    assert await client.depth(queue) == 50


async def test_aio_pika_raises_what_came_back(client: Client) -> None:
    channel = await client.connection.channel(publisher_confirms=True, on_return_raises=True)
    with pytest.raises(PublishError):
        await channel.basic_publish(b"x", routing_key="nowhere", mandatory=True)
