"""Whatever a peer sends, or however many there are, everybody else is served."""

from __future__ import annotations

import asyncio
import random
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pamqp import commands, frame, header
from pamqp.body import ContentBody

from rabbitflow.devbroker import DevBroker
from rabbitflow.devbroker.deadletter import dead_letter
from rabbitflow.devbroker.frames import FRAME_MAX, MALFORMED, Frame, FrameReader, read_method
from rabbitflow.devbroker.message import Content, Message, decoded
from rabbitflow.devbroker.replies import ConnectionRefusal, Refusal
from tests.harness.amqp import Client, connected

FRAMES = st.builds(
    Frame,
    st.sampled_from([1, 2, 3, 8]),
    st.integers(0, 65_535),
    st.binary(max_size=300),
)


def written(frames: list[Frame]) -> bytes:
    return b"".join(
        bytes([each.type])
        + each.channel.to_bytes(2, "big")
        + len(each.payload).to_bytes(4, "big")
        + each.payload
        + b"\xce"
        for each in frames
    )


def pieces_of(data: bytes, cuts: list[int]) -> list[bytes]:
    places = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[start:end] for start, end in pairwise(places)]


@given(st.lists(FRAMES, max_size=8), st.lists(st.integers(0, 5000), max_size=12))
def test_frames_are_the_same_however_the_bytes_are_cut(
    frames: list[Frame], cuts: list[int]
) -> None:
    reader = FrameReader()
    data = written(frames)
    assert [found for piece in pieces_of(data, cuts) for found in reader.feed(piece)] == frames


@given(st.binary(max_size=2000), st.lists(st.integers(0, 2000), max_size=5))
def test_garbage_is_refused_and_nothing_else(data: bytes, cuts: list[int]) -> None:
    reader = FrameReader()
    try:
        for piece in pieces_of(data, cuts):
            for found in reader.feed(piece):
                assert len(found.payload) <= FRAME_MAX
    except ConnectionRefusal as refusal:
        assert refusal.code == 501


METHODS = [
    commands.Basic.Publish(exchange="e", routing_key="k"),
    commands.Queue.Declare(queue="q", arguments={"x-message-ttl": 5, "list": [1, {"a": None}]}),
    commands.Exchange.Bind(destination="a", source="b", arguments={"x-match": "all"}),
    commands.Basic.Consume(queue="q", arguments={"x-stream-offset": "first"}),
    commands.Basic.Ack(7, True),
]
PROPERTIES = commands.Basic.Properties(
    content_type="text/plain",
    headers={"text": "x", "number": 2**40, "list": [1, "two", {"three": None}], "CC": ["q"]},
    delivery_mode=2,
    expiration="500",
    message_id="m-1",
    user_id="guest",
)


def mangled(data: bytes, changes: list[tuple[int, int]]) -> bytes:
    changed = bytearray(data)
    for place, value in changes:
        if changed:
            changed[place % len(changed)] = value
    return bytes(changed)


CHANGES = st.lists(st.tuples(st.integers(0, 500), st.integers(0, 255)), max_size=6)


@given(st.sampled_from(METHODS), CHANGES, st.integers(0, 400))
def test_mangled_methods_are_read_or_refused(
    method: frame.FrameTypes, changes: list[tuple[int, int]], cut: int
) -> None:
    payload = frame.marshal(method, 1)[7:-1]
    try:
        read_method(mangled(payload[: len(payload) - cut % 8], changes))
    except ConnectionRefusal as refusal:
        assert refusal.code in (502, 503)


@given(CHANGES, st.integers(0, 400))
def test_whatever_header_is_taken_can_be_delivered_and_die(
    changes: list[tuple[int, int]], cut: int
) -> None:
    payload = header.ContentHeader(body_size=0, properties=PROPERTIES).marshal()
    content = Content(commands.Basic.Publish(routing_key="q"))
    try:
        content.take_header(mangled(payload[: len(payload) - cut % 8], changes))
        message = content.message("guest")
    except Refusal as refusal:
        assert refusal.code in (406, 502)
        return
    assert decoded(message.raw_with("x-delivery-count", 3)).headers["x-delivery-count"] == 3
    dead = dead_letter(message, queue="q", reason="expired", exchange="", routing_key="d", now=1.0)
    headers = dead.headers
    assert headers["x-death"][0]["queue"] == "q"
    assert dead.properties.expiration is None
    for name, value in message.headers.items():
        # NaN is unlike itself, in a table too.
        assert name in ("CC", "x-death") or repr(headers[name]) == repr(value)


@given(
    st.dictionaries(
        st.text(max_size=20),
        st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.text(max_size=50),
        max_size=8,
    ),
    st.text(max_size=20),
)
def test_a_header_is_added_and_all_others_kept(headers: dict[str, object], text: str) -> None:
    properties = commands.Basic.Properties(headers=headers, message_id=text, content_type=text)
    message = Message.of("e", "k", properties.marshal(), b"")
    found = decoded(message.raw_with("x-stream-offset", 7))
    assert found.headers == {**headers, "x-stream-offset": 7}
    assert (found.message_id or "", found.content_type or "") == (text, text)


def test_what_the_codec_raises_is_known() -> None:
    # A date beyond all calendars, a table in a table a thousand times over, a decimal of any scale.
    for table in (
        b"\x01aT" + b"\x7f" * 8,
        b"\x01aD\xff" + b"\xff" * 4,
        b"\x01aS\xff\xff\xff\xff",
        b"\x01aA\x00\x00\x10\x00",
    ):
        raw = b"\x20\x00" + len(table).to_bytes(4, "big") + table
        try:
            decoded(raw)
        except MALFORMED:
            continue
    nested = b"\x01aF"
    for _ in range(5000):
        nested = b"\x01aF" + len(nested).to_bytes(4, "big") + nested
    with pytest.raises(MALFORMED):
        decoded(b"\x20\x00" + len(nested).to_bytes(4, "big") + nested)


async def serves(broker: DevBroker) -> bool:
    async with connected(broker.url) as client:
        queue = await client.queue()
        await client.publish(queue, b"x")
        return await client.drain(queue, 1) == [b"x"]


OPENED = b"".join(
    (
        b"AMQP\x00\x00\x09\x01",
        frame.marshal(commands.Connection.StartOk({}, "PLAIN", "\0guest\0guest", "en_US"), 0),
        frame.marshal(commands.Connection.TuneOk(2047, 131_072, 0), 0),
        frame.marshal(commands.Connection.Open("/"), 0),
        frame.marshal(commands.Channel.Open(), 1),
        frame.marshal(commands.Queue.Declare(queue="fuzz"), 1),
    )
)
BUSY = b"".join(
    (
        *(frame.marshal(method, 1) for method in METHODS[1:4]),
        frame.marshal(commands.Basic.Publish(routing_key="fuzz"), 1),
        frame.marshal(header.ContentHeader(body_size=3, properties=PROPERTIES), 1),
        frame.marshal(ContentBody(b"abc"), 1),
        frame.marshal(commands.Basic.Get(queue="fuzz"), 1),
        frame.marshal(commands.Basic.Nack(1, False, True), 1),
    )
)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(changes=CHANGES, cut=st.integers(0, 1000))
async def test_a_mangled_conversation_ends_that_connection_at_most(
    changes: list[tuple[int, int]], cut: int
) -> None:
    async with DevBroker() as broker:
        reader, writer = await asyncio.open_connection(broker.host, broker.port)
        writer.write(OPENED + mangled(BUSY, changes)[: len(BUSY) - cut % len(BUSY)])
        writer.write_eof()
        await reader.read()
        writer.close()
        await broker.until(lambda: broker.connections == 0)
        assert await serves(broker)


async def test_ten_thousand_queues(broker: DevBroker) -> None:
    async with connected(broker.url) as client:
        channel = await client.channel()
        await channel.exchange_declare("all", exchange_type="fanout")
        for start in range(0, 10_000, 500):
            async with asyncio.TaskGroup() as group:
                for number in range(start, start + 500):
                    group.create_task(channel.queue_declare(f"q{number}"))
        await channel.queue_bind("q9999", "all")
        await client.publish("", b"x", exchange="all")
        await client.publish("q5000", b"y")
        assert [broker.messages(name)[0].body for name in ("q9999", "q5000")] == [b"x", b"y"]


async def test_two_hundred_connections_that_come_and_vanish(broker: DevBroker) -> None:
    async with connected(broker.url) as client:
        queue = await client.queue(kind="quorum", x_delivery_limit=5)
        await client.publish(queue, *(b"%d" % number for number in range(200)))
        writers = []
        for _ in range(200):
            _, writer = await asyncio.open_connection(broker.host, broker.port)
            writer.write(OPENED + frame.marshal(commands.Basic.Get(queue=queue), 1))
            writers.append(writer)
        await broker.until(lambda: broker.queues()[queue].unacked == 200)
        random.Random(1).shuffle(writers)
        for count, writer in enumerate(writers, 1):
            writer.transport.abort()
            if count == 100:
                await broker.until(lambda: broker.connections == 101)
                assert broker.queues()[queue].ready == 100
        await broker.until(lambda: broker.connections == 1)
        assert broker.queues()[queue].ready == 200


async def test_a_client_that_does_not_read_is_not_buffered_for_without_end(
    broker: DevBroker, client: Client
) -> None:
    queue = await client.queue()
    _, writer = await asyncio.open_connection(broker.host, broker.port, limit=1024)
    writer.write(OPENED + frame.marshal(commands.Basic.Consume(queue=queue, no_ack=True), 1))
    await broker.until(lambda: broker.queues()[queue].consumers == 1)
    for _ in range(300):
        await client.publish(queue, b"x" * 100_000)
    # Of 30 MB it was sent what sockets and one buffer take; the rest waits in the queue.
    assert broker.queues()[queue].ready > 100
    writer.transport.abort()
    await broker.until(lambda: broker.queues()[queue].consumers == 0)
    assert await serves(broker)
