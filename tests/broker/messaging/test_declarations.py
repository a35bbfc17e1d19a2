"""Queues and exchanges: declared, declared again, looked at, deleted; and what is refused how."""

from __future__ import annotations

from typing import Any

import pytest
from aiormq.exceptions import (
    ChannelAccessRefused,
    ChannelClosed,
    ChannelLockedResource,
    ChannelNotFoundEntity,
    ChannelPreconditionFailed,
    ConnectionCommandInvalid,
    ConnectionNotImplemented,
)

from tests.harness.amqp import Client
from tests.harness.waiting import eventually


async def test_declaring_the_same_again_changes_nothing(client: Client, kind: str) -> None:
    queue = await client.queue(kind=kind, x_max_length=5)
    await client.publish(queue, b"x")
    found = await client.declare(queue, kind, x_max_length=5)
    assert (found.queue, found.message_count, found.consumer_count) == (queue, 1, 0)


async def test_looking_counts_what_waits_and_who_consumes(client: Client, kind: str) -> None:
    queue = await client.queue(kind=kind)
    await client.publish(queue, b"1", b"2", b"3")
    assert await client.state(queue) == (3, 0)
    inbox = await client.consume(queue, prefetch=1)
    await inbox.has(1)

    async def counted() -> bool:
        return await client.state(queue) == (2, 1)

    await eventually(counted)


DIFFERENT: list[tuple[str, dict[str, Any], dict[str, Any], str]] = [
    ("quorum", {"x_delivery_limit": 2}, {"x_delivery_limit": 3}, "received '3' but current is '2'"),
    ("quorum", {"x_delivery_limit": 2}, {}, "received none but current is the value '2' of type"),
    ("classic", {}, {"x_max_length": 9}, "received the value '9' of type '.*' but current is none"),
    ("classic", {"x_message_ttl": 5}, {"x_message_ttl": 6}, "received '6' but current is '5'"),
    ("stream", {"x_max_age": "7D"}, {"x_max_age": "1D"}, "received '1D' but current is '7D'"),
]


@pytest.mark.parametrize(("type_", "first", "second", "said"), DIFFERENT)
async def test_declaring_with_other_arguments_is_refused_with_both_values(
    client: Client, type_: str, first: dict[str, Any], second: dict[str, Any], said: str
) -> None:
    queue = await client.queue(kind=type_, **first)
    (argument,) = first.keys() | second.keys()
    where = f"inequivalent arg '{argument.replace('_', '-')}' for queue '{queue}' in vhost '/': "
    with pytest.raises(ChannelPreconditionFailed, match=where + said):
        await client.declare(queue, type_, on=await client.channel(), **second)


async def test_the_type_of_a_queue_does_not_change(client: Client) -> None:
    queue = await client.queue(kind="classic")
    said = "inequivalent arg 'x-queue-type' .* received 'quorum' but current is 'classic'"
    with pytest.raises(ChannelPreconditionFailed, match=said):
        await client.declare(queue, "quorum", on=await client.channel())


async def test_a_durable_queue_stays_durable(client: Client) -> None:
    queue = await client.queue()
    said = (
        f"inequivalent arg 'durable' for queue '{queue}' .* received 'false' but current is 'true'"
    )
    with pytest.raises(ChannelPreconditionFailed, match=said):
        await (await client.channel()).queue_declare(queue, durable=False)


@pytest.mark.parametrize(
    ("type_", "arguments", "said"),
    [
        ("classic", {"x_delivery_limit": 5}, "of queue type rabbit_classic_queue"),
        ("quorum", {"x_max_priority": 5}, "of queue type rabbit_quorum_queue"),
        ("stream", {"x_message_ttl": 5}, "of queue type rabbit_stream_queue"),
        ("stream", {"x_dead_letter_exchange": ""}, "of queue type rabbit_stream_queue"),
        ("classic", {"x_message_ttl": -1}, "value_negative,-1"),
        ("classic", {"x_message_ttl": "1"}, "expected integer, got longstr"),
        ("classic", {"x_expires": 0}, "value_zero,0"),
        ("classic", {"x_overflow": "other"}, "invalid_overflow"),
        ("classic", {"x_dead_letter_routing_key": "a"}, "routing_key_but_no_dlx_defined"),
        ("quorum", {"x_dead_letter_strategy": "other"}, "invalid_dlx_strategy"),
        ("other", {}, "x-queue-type"),
    ],
)
async def test_arguments_that_do_not_fit_are_refused(
    client: Client, type_: str, arguments: dict[str, Any], said: str
) -> None:
    with pytest.raises(ChannelPreconditionFailed, match=said):
        await client.declare(client.name(), type_, on=await client.channel(), **arguments)


@pytest.mark.parametrize("type_", ["quorum", "stream"])
@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"durable": False}, "non-durable"),
        ({"durable": True, "auto_delete": True}, "auto-delete"),
        ({"durable": True, "exclusive": True}, "exclusive-owner"),
    ],
)
async def test_replicated_queues_are_durable_and_for_everybody(
    client: Client, type_: str, options: dict[str, bool], said: str
) -> None:
    with pytest.raises(ChannelPreconditionFailed, match=f"invalid property '{said}'"):
        await (await client.channel()).queue_declare(
            client.name(), arguments={"x-queue-type": type_}, **options
        )


async def test_what_is_not_there_is_not_found(client: Client) -> None:
    name = client.name("nowhere")

    async def refused(call: str, *args: Any, **options: Any) -> str:
        channel = await client.channel()
        with pytest.raises(ChannelNotFoundEntity) as error:
            await getattr(channel, call)(*args, **options)
        return str(error.value)

    no_queue, no_exchange = (f"no {what} '{name}' in vhost '/'" for what in ("queue", "exchange"))
    queue = await client.queue()
    assert no_queue in await refused("queue_declare", name, passive=True)
    assert no_queue in await refused("queue_purge", name)
    assert no_queue in await refused("queue_bind", name, "amq.fanout")
    assert no_queue in await refused("basic_consume", name, print)
    assert no_exchange in await refused("exchange_declare", name, passive=True)
    assert no_exchange in await refused("queue_bind", queue, name)
    assert no_exchange in await refused("basic_publish", b"x", exchange=name)


async def test_removing_what_is_not_there_is_no_fault(client: Client) -> None:
    channel, name = await client.channel(), client.name("nowhere")
    assert (await channel.queue_delete(name)).message_count == 0
    await channel.exchange_delete(name)
    await channel.queue_unbind(name, "amq.fanout")


async def test_exchanges_keep_their_properties(client: Client) -> None:
    exchange = await client.exchange("fanout", durable=True)
    for options, said in (
        (
            {"exchange_type": "direct", "durable": True},
            "'type' .* 'direct' but current is 'fanout'",
        ),
        (
            {"exchange_type": "fanout", "durable": False},
            "'durable' .* 'false' but current is 'true'",
        ),
    ):
        with pytest.raises(ChannelPreconditionFailed, match=said):
            await (await client.channel()).exchange_declare(exchange, **options)


async def test_an_exchange_of_a_type_that_nobody_knows_ends_the_connection(client: Client) -> None:
    with pytest.raises(ConnectionCommandInvalid, match="invalid exchange type 'other'"):
        await (await client.channel()).exchange_declare(client.name(), exchange_type="other")


async def test_reserved_names_are_refused(client: Client) -> None:
    for call, args in (
        ("queue_declare", ("amq.mine",)),
        ("exchange_declare", ("amq.mine",)),
        ("exchange_delete", ("amq.fanout",)),
        ("queue_bind", (await client.queue(), "")),
    ):
        with pytest.raises(ChannelAccessRefused):
            await getattr(await client.channel(), call)(*args)


async def test_a_queue_without_a_name_is_given_one(client: Client) -> None:
    channel = await client.channel()
    first = await channel.queue_declare(exclusive=True)
    second = await channel.queue_declare(exclusive=True)
    assert first.queue != second.queue
    assert str(first.queue).startswith("amq.gen-")


async def test_an_exclusive_queue_is_its_connections_alone_and_ends_with_it(
    client: Client, other: Client
) -> None:
    name = client.name("mine")
    await (await other.channel()).queue_declare(name, exclusive=True)
    with pytest.raises(ChannelLockedResource, match=f"locked queue '{name}'"):
        await client.state(name)
    await other.connection.close()

    async def is_gone() -> bool:
        try:
            await client.state(name)
        except ChannelNotFoundEntity:
            return True
        except ChannelLockedResource:
            return False
        return False

    await eventually(is_gone)


async def test_an_auto_delete_queue_goes_with_its_last_consumer(client: Client) -> None:
    name = client.name("auto")
    channel = await client.channel()
    await channel.queue_declare(name, auto_delete=True)
    first, second = await client.consume(name, on=channel), await client.consume(name, on=channel)
    await channel.basic_cancel(first.tag)
    assert await client.state(name) == (0, 1)
    await channel.basic_cancel(second.tag)
    with pytest.raises(ChannelNotFoundEntity):
        await client.state(name)


async def test_an_auto_delete_exchange_goes_with_its_last_binding(client: Client) -> None:
    exchange = await client.exchange("fanout", auto_delete=True)
    queue = await client.queue()
    await client.bind(queue, exchange)
    await (await client.shared()).queue_unbind(queue, exchange)
    with pytest.raises(ChannelNotFoundEntity):
        await (await client.channel()).exchange_declare(exchange, passive=True)


async def test_purging_takes_what_waits_and_leaves_what_is_held(client: Client, kind: str) -> None:
    queue = await client.queue(kind=kind)
    await client.publish(queue, b"1", b"2", b"3")
    message = await client.next(queue)
    assert (await (await client.shared()).queue_purge(queue)).message_count == 2
    await message.channel.basic_nack(message.delivery_tag or 0, requeue=True)
    assert await client.drain(queue, 1) == [b"1"]


async def test_deleting_says_how_much_went_with_it(client: Client, kind: str) -> None:
    queue = await client.queue(kind=kind)
    await client.publish(queue, b"1", b"2")
    assert (await (await client.shared()).queue_delete(queue)).message_count == 2


async def test_a_queue_is_deleted_only_if_unused_or_empty_where_that_is_asked(
    client: Client,
) -> None:
    queue = await client.queue()
    await client.publish(queue, b"x")
    with pytest.raises(ChannelPreconditionFailed, match="not empty"):
        await (await client.channel()).queue_delete(queue, if_empty=True)
    await client.consume(queue)
    with pytest.raises(ChannelPreconditionFailed, match="in use"):
        await (await client.channel()).queue_delete(queue, if_unused=True)
    exchange = await client.exchange("fanout")
    await client.bind(queue, exchange)
    with pytest.raises(ChannelPreconditionFailed, match="in use"):
        await (await client.channel()).exchange_delete(exchange, if_unused=True)


async def test_quorum_queues_do_not_look_before_they_go(client: Client) -> None:
    queue = await client.queue(kind="quorum")
    with pytest.raises(ConnectionNotImplemented, match="if-empty flag set are not supported"):
        await (await client.channel()).queue_delete(queue, if_empty=True)


async def test_a_channel_that_was_closed_leaves_the_others_alone(client: Client) -> None:
    sound = await client.channel()
    for _ in range(3):
        with pytest.raises(ChannelClosed):
            await (await client.channel()).queue_declare(client.name("nowhere"), passive=True)
    assert not sound.is_closed
    await sound.queue_declare(await client.queue(), passive=True)
