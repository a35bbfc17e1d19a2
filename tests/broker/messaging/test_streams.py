"""Streams: read from anywhere, by anybody, again and again."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from aiormq.exceptions import ChannelPreconditionFailed, ConnectionNotImplemented

from tests.harness.amqp import Client, Inbox, headers_of
from tests.harness.waiting import eventually

NUMBERS = [b"%d" % number for number in range(10)]


async def read(client: Client, stream: str, offset: Any, prefetch: int = 100) -> Inbox:
    return await client.consume(
        stream, prefetch=prefetch, arguments={"x-stream-offset": offset} if offset != "" else None
    )


async def stream_of(client: Client, *bodies: bytes) -> str:
    stream = await client.queue("stream", "stream")
    await client.publish(stream, *bodies)
    return stream


@pytest.mark.parametrize(
    ("offset", "expected"),
    [
        ("first", NUMBERS),
        (0, NUMBERS),
        (4, NUMBERS[4:]),
        (9, NUMBERS[9:]),
        (timedelta(hours=-1), NUMBERS),
        ("1h", NUMBERS),
    ],
)
async def test_a_stream_is_read_from_where_one_likes(
    client: Client, offset: Any, expected: list[bytes]
) -> None:
    stream = await stream_of(client, *NUMBERS)
    if isinstance(offset, timedelta):
        offset = datetime.now(UTC) + offset
    inbox = await read(client, stream, offset)
    messages = await inbox.has(len(expected))
    assert inbox.bodies == expected
    offsets = [headers_of(message)["x-stream-offset"] for message in messages]
    assert offsets == list(range(10 - len(expected), 10))


@pytest.mark.parametrize("offset", ["next", "", 10, timedelta(hours=1)])
async def test_a_stream_is_read_from_its_end(client: Client, offset: Any) -> None:
    stream = await stream_of(client, *NUMBERS)
    if isinstance(offset, timedelta):
        offset = datetime.now(UTC) + offset
    inbox = await read(client, stream, offset)
    await client.publish(stream, b"new")
    await inbox.has(1)
    assert inbox.bodies == [b"new"]


async def test_last_begins_with_what_came_last(client: Client) -> None:
    stream = await stream_of(client, *NUMBERS)
    inbox = await read(client, stream, "last")
    await client.publish(stream, b"new")
    # RabbitMQ begins with the last chunk, which may hold more than one message.
    await eventually(lambda: inbox.bodies[-1:] == [b"new"])
    assert inbox.bodies[-2:] == [b"9", b"new"]


async def test_a_reader_gets_as_much_as_it_acks(client: Client) -> None:
    stream = await stream_of(client, *NUMBERS)
    inbox = await read(client, stream, "first", prefetch=2)
    await inbox.has(2)
    await inbox.channel.basic_ack(2, multiple=True)
    await inbox.has(4)
    await inbox.channel.basic_ack(4, multiple=True)
    await inbox.has(6)
    assert inbox.bodies == NUMBERS[:6]


async def test_reading_takes_nothing_away(client: Client) -> None:
    stream = await stream_of(client, *NUMBERS)
    for _ in range(2):
        inbox = await read(client, stream, "first")
        await inbox.has(10)
        await inbox.channel.basic_ack(10, multiple=True)
        await inbox.channel.close()


async def test_readers_go_on_beside_each_other(client: Client) -> None:
    stream = await stream_of(client, *NUMBERS)
    inboxes = [await read(client, stream, "first") for _ in range(3)]
    for inbox in inboxes:
        await inbox.has(10)
        assert inbox.bodies == NUMBERS


async def test_a_stream_behind_a_fanout_keeps_what_was_announced(client: Client) -> None:
    exchange = await client.exchange("fanout")
    stream = await client.queue("stream", "stream")
    await client.bind(stream, exchange)
    await client.publish("key", b"x", exchange=exchange, message_id="m-1", headers={"a": 1})
    inbox = await read(client, stream, "first")
    (message,) = await inbox.has(1)
    assert (message.exchange, message.routing_key) == (exchange, "key")
    assert message.header.properties.message_id == "m-1"
    assert headers_of(message)["a"] == 1


async def test_a_large_body_comes_out_of_a_stream_whole(client: Client) -> None:
    body = bytes(range(256)) * 2000
    stream = await stream_of(client, body)
    inbox = await read(client, stream, "first")
    (message,) = await inbox.has(1)
    assert message.body == body


async def test_a_reader_needs_a_prefetch(client: Client) -> None:
    stream = await stream_of(client)
    with pytest.raises(ChannelPreconditionFailed, match="consumer prefetch count is not set"):
        await client.consume(stream)


async def test_a_stream_is_not_taken_from(client: Client) -> None:
    stream = await stream_of(client, b"x")
    with pytest.raises(ConnectionNotImplemented, match=r"basic\.get not supported"):
        await client.get(stream)


async def test_a_stream_is_not_purged(client: Client) -> None:
    stream = await stream_of(client, b"x")
    with pytest.raises(ConnectionNotImplemented, match=r"queue\.purge not supported"):
        await (await client.channel()).queue_purge(stream)


async def test_a_deleted_stream_cancels_its_readers(client: Client, other: Client) -> None:
    stream = await stream_of(client, b"x")
    inbox = await read(other, stream, "first")
    await inbox.has(1)
    cancelled: list[Any] = []
    inbox.channel.on_consumer_cancel_callbacks.add(cancelled.append)
    await (await client.shared()).queue_delete(stream)
    await eventually(lambda: cancelled)
