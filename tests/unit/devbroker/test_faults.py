"""The broker does wrong when it is told to, and as real ones do: nothing confirmed is lost."""

from __future__ import annotations

import asyncio

import aiormq
import pytest
from aiormq.exceptions import AMQPError
from pamqp.commands import Basic

from rabbitflow.devbroker import DevBroker, User, VirtualClock
from tests.harness.amqp import Client, connected, headers_of


async def test_dropped_connections_give_back_what_they_held(
    broker: DevBroker, client: Client
) -> None:
    queue = await client.queue(kind="quorum", x_delivery_limit=5)
    await client.publish(queue, b"1", b"2")
    async with connected(broker.url) as other:
        await (await other.consume(queue, prefetch=5)).has(2)
        # It waits for its turn, and does not get it while its connection ends too.
        await client.consume(queue, prefetch=5)
        assert broker.drop_connections() == 2
        await broker.until(lambda: broker.connections == 0)
        assert [message.returns for message in broker.messages(queue)] == [1, 1]


async def test_a_connection_that_ends_counts_one_delivery_whatever_its_channels(
    broker: DevBroker, client: Client
) -> None:
    queue = await client.queue(kind="quorum", x_delivery_limit=5)
    async with connected(broker.url) as other:
        inboxes = [await other.consume(queue, prefetch=5) for _ in range(4)]
        await client.publish(queue, b"x")
        await broker.until(lambda: any(inbox.messages for inbox in inboxes))
    (message,) = broker.messages(queue)
    assert message.returns == 1


async def test_held_confirms_are_sent_later(broker: DevBroker, client: Client) -> None:
    queue = await client.queue()
    channel = await client.channel()
    broker.hold_confirms()
    publishes = [
        asyncio.create_task(channel.basic_publish(b"%d" % n, routing_key=queue)) for n in range(3)
    ]
    await broker.until(lambda: broker.queues()[queue].ready == 3)
    assert not any(publish.done() for publish in publishes)
    broker.release_confirms()
    assert all(isinstance(confirm, Basic.Ack) for confirm in await asyncio.gather(*publishes))


async def test_a_lost_ack_delivers_again(broker: DevBroker, client: Client) -> None:
    queue = await client.queue(kind="quorum", x_delivery_limit=5)
    broker.duplicate_next(queue)
    await client.publish(queue, b"x")
    inbox = await client.consume(queue, prefetch=1)
    (first,) = await inbox.has(1)
    await inbox.channel.basic_ack(first.delivery_tag or 0)
    _, second = await inbox.has(2)
    assert second.redelivered
    assert headers_of(second)["x-delivery-count"] == 1
    await inbox.channel.basic_ack(second.delivery_tag or 0)
    await broker.until(lambda: broker.queues()[queue].unacked == 0)
    assert broker.messages(queue) == []
    with pytest.raises(KeyError):
        broker.duplicate_next("nowhere")


async def test_a_restart_keeps_what_rabbitmq_keeps(broker: DevBroker) -> None:
    connection = await aiormq.connect(broker.url)
    channel = await connection.channel()
    for name, kind, durable in (
        ("quorum", "quorum", True),
        ("classic", "classic", True),
        ("stream", "stream", True),
        ("transient", "classic", False),
    ):
        await channel.queue_declare(name, durable=durable, arguments={"x-queue-type": kind})
    exclusive = await channel.queue_declare(exclusive=True)
    for durable in (True, False):
        await channel.exchange_declare(f"fanout-{durable}", exchange_type="fanout", durable=durable)
        await channel.queue_bind("quorum", f"fanout-{durable}")
    for mode in (1, 2):
        for name in ("quorum", "classic", "stream", "transient"):
            await channel.basic_publish(
                b"mode %d" % mode,
                routing_key=name,
                properties=Basic.Properties(delivery_mode=mode),
            )
    held = await channel.basic_get("classic")
    assert held.body == b"mode 1"
    port = broker.port
    await broker.restart()
    assert broker.port == port
    assert exclusive.queue not in broker.queues()
    bodies = {name: [message.body for message in broker.messages(name)] for name in broker.queues()}
    assert bodies == {
        "quorum": [b"mode 1", b"mode 2"],
        "classic": [b"mode 2"],
        "stream": [b"mode 1", b"mode 2"],
    }
    async with connected(broker.url) as client:
        await client.publish("", b"announced", exchange="fanout-True")
        assert broker.messages("quorum")[-1].body == b"announced"
        with pytest.raises(AMQPError):
            await client.publish("", b"x", exchange="fanout-False")


async def test_no_time_passes_while_it_is_down(broker: DevBroker, clock: VirtualClock) -> None:
    async with connected(broker.url) as client:
        dead = await client.queue("dead")
        queue = await client.queue(
            kind="quorum", x_dead_letter_exchange="", x_dead_letter_routing_key=dead
        )
        await client.publish(queue, b"x", expiration="1000", delivery_mode=2)
        await broker.stop()
        clock.advance(5)
        with pytest.raises((AMQPError, OSError)):
            await aiormq.connect(broker.url)
        assert len(broker.messages(queue)) == 1
        await broker.start()
        assert [message.body for message in broker.messages(dead)] == [b"x"]


async def test_waiting_ends_when_something_happened(broker: DevBroker, client: Client) -> None:
    queue = await client.queue()
    waiting = asyncio.create_task(broker.until(lambda: broker.counters.acked == 1))
    await client.publish(queue, b"x")
    message = await client.next(queue)
    assert not waiting.done()
    await message.channel.basic_ack(message.delivery_tag or 0)
    await waiting
    assert broker.counters.published == 1
    with pytest.raises(TimeoutError):
        await broker.until(lambda: False, within_s=0.01)


async def test_users_may_do_what_their_permissions_say() -> None:
    users = {"guest": User("guest"), "reader": User("secret", configure="^$", write="^tmp")}
    assert "secret" not in repr(users)
    async with DevBroker(users=users, vhosts=("/", "shop")) as broker:
        url = broker.url.replace("guest:guest", "reader:secret") + "shop"
        connection = await aiormq.connect(url)
        for call, args, options in (
            ("queue_declare", ("q",), {}),
            ("exchange_declare", ("e",), {}),
            ("basic_publish", (b"x",), {"exchange": "amq.fanout"}),
        ):
            channel = await connection.channel()
            with pytest.raises(AMQPError, match="refused for user 'reader'"):
                await getattr(channel, call)(*args, **options)
        await connection.close()
