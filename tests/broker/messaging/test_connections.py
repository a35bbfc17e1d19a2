"""Connections: who is let in, what ends one, and heartbeats."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import aiormq
import pytest
from aiormq.exceptions import AMQPError, ConnectionNotImplemented, ProbableAuthenticationError
from pamqp import base, commands, frame, header
from pamqp.heartbeat import Heartbeat

from tests.harness.amqp import Client

ANSWERS_WITHIN_S = 10.0


class Wire:
    """A client that says what it likes, frame by frame."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    def write(self, data: bytes) -> None:
        self._writer.write(data)

    def send(self, method: Any, channel: int = 0) -> None:
        self.write(frame.marshal(method, channel))

    async def read(self) -> Any:
        """Read one frame; None at the end."""
        async with asyncio.timeout(ANSWERS_WITHIN_S):
            try:
                head = await self._reader.readexactly(7)
                (size,) = struct.unpack(">I", head[3:])
                rest = await self._reader.readexactly(size + 1)
            except (asyncio.IncompleteReadError, ConnectionError):
                return None
        return frame.unmarshal(head + rest)[2]

    async def next(self) -> Any:
        """Read the next frame that is no heartbeat."""
        while isinstance(found := await self.read(), Heartbeat):
            pass
        return found

    async def open(self, heartbeat_s: int = 0, frame_max: int = 131_072) -> None:
        self.write(b"AMQP\x00\x00\x09\x01")
        assert isinstance(await self.next(), commands.Connection.Start)
        self.send(commands.Connection.StartOk({}, "PLAIN", "\0guest\0guest", "en_US"))
        assert isinstance(await self.next(), commands.Connection.Tune)
        self.send(commands.Connection.TuneOk(2047, frame_max, heartbeat_s))
        self.send(commands.Connection.Open("/"))
        assert isinstance(await self.next(), commands.Connection.OpenOk)
        self.send(commands.Channel.Open(), 1)
        assert isinstance(await self.next(), commands.Channel.OpenOk)

    async def code(self) -> int | None:
        """Return the code the broker closes the connection with; None where it just hangs up."""
        while (found := await self.next()) is not None:
            if isinstance(found, commands.Connection.Close):
                self.send(commands.Connection.CloseOk())
                assert await self.next() is None
                return found.reply_code
        return None


@asynccontextmanager
async def wire(url: str) -> AsyncIterator[Wire]:
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    try:
        yield Wire(reader, writer)
    finally:
        writer.transport.abort()


@pytest.mark.parametrize("said", [b"GET / HTTP/1.1\r\n\r\n", b"AMQP\x00\x01\x00\x00", b"\x00" * 64])
async def test_who_speaks_another_protocol_is_told_which_one(amqp_url: str, said: bytes) -> None:
    parts = urlsplit(amqp_url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    writer.write(said)
    async with asyncio.timeout(ANSWERS_WITHIN_S):
        assert await reader.readexactly(8) == b"AMQP\x00\x00\x09\x01"
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await reader.readexactly(1)
    writer.transport.abort()


async def test_a_wrong_password_is_refused(amqp_url: str) -> None:
    url = amqp_url.replace("guest:guest@", "guest:wrong@")
    with pytest.raises(ProbableAuthenticationError):
        await aiormq.connect(url)


async def test_a_virtual_host_that_is_not_there_is_refused(amqp_url: str) -> None:
    async with wire(amqp_url) as peer:
        peer.write(b"AMQP\x00\x00\x09\x01")
        await peer.next()
        peer.send(commands.Connection.StartOk({}, "PLAIN", "\0guest\0guest", "en_US"))
        await peer.next()
        peer.send(commands.Connection.TuneOk(2047, 131_072, 0))
        peer.send(commands.Connection.Open("nowhere"))
        close = await peer.next()
        assert (close.reply_code, close.reply_text) == (
            530,
            "NOT_ALLOWED - vhost nowhere not found",
        )


METHOD, HEADER, BODY = 1, 2, 3
PUBLISH = commands.Basic.Publish(routing_key="nowhere")


def raw(kind: int, payload: bytes, channel: int = 1, end: bytes = b"\xce") -> bytes:
    return struct.pack(">BHI", kind, channel, len(payload)) + payload + end


@pytest.mark.parametrize(
    ("said", "code"),
    [
        (raw(METHOD, b"ab", end=b"x"), 501),
        (raw(9, b"a"), 501),
        (raw(BODY, b"x" * 131_073), 501),
        (frame.marshal(commands.Queue.Declare(), 0), 504),
        (frame.marshal(commands.Queue.Declare(), 7), 504),
        (frame.marshal(commands.Channel.Open(), 1), 504),
        (frame.marshal(commands.Queue.DeclareOk("q", 1, 1), 1), 503),
        (raw(BODY, b"x"), 505),
        (raw(BODY, b"x" * 131_072), 505),
        (frame.marshal(header.ContentHeader(body_size=1), 1), 505),
        (frame.marshal(PUBLISH, 1) + frame.marshal(commands.Queue.Declare(), 1), 505),
        (frame.marshal(PUBLISH, 1) + raw(BODY, b"x"), 505),
        (frame.marshal(commands.Channel.Flow(False), 1), 540),
        (frame.marshal(commands.Basic.Qos(prefetch_size=5), 1), 540),
    ],
)
async def test_what_breaks_the_protocol_ends_the_connection_with_its_code(
    amqp_url: str, said: bytes, code: int
) -> None:
    async with wire(amqp_url) as peer:
        await peer.open()
        peer.write(said)
        assert await peer.code() == code


async def test_frames_are_no_larger_than_agreed(amqp_url: str, client: Client) -> None:
    queue = await client.queue()
    body = bytes(range(256)) * 64
    await client.publish(queue, body)
    async with wire(amqp_url) as peer:
        await peer.open(frame_max=4096)
        peer.send(commands.Basic.Get(queue=queue, no_ack=True), 1)
        assert isinstance(await peer.next(), commands.Basic.GetOk)
        assert (await peer.next()).body_size == len(body)
        pieces = [(await peer.next()).value for _ in range(5)]
    assert max(map(len, pieces)) == 4088
    assert b"".join(pieces) == body


async def test_a_silent_broker_is_heard_and_a_silent_client_given_up(amqp_url: str) -> None:
    async with wire(amqp_url) as peer:
        await peer.open(heartbeat_s=1)
        assert isinstance(await peer.read(), Heartbeat)
        # It never answers, so it hears some more and is then sent away.
        while isinstance(found := await peer.read(), Heartbeat | base.Frame):
            assert isinstance(found, Heartbeat)


async def test_flow_is_answered(amqp_url: str) -> None:
    async with wire(amqp_url) as peer:
        await peer.open()
        peer.send(commands.Channel.Flow(True), 1)
        found = await peer.next()
        assert isinstance(found, commands.Channel.FlowOk)
        assert found.active


async def test_a_refused_connection_gives_everything_back(client: Client, other: Client) -> None:
    queue = await client.queue()
    await client.publish(queue, b"x")
    await (await other.consume(queue, prefetch=1)).has(1)
    with pytest.raises(ConnectionNotImplemented):
        await (await other.channel()).basic_qos(prefetch_size=5)
    message = await client.next(queue, no_ack=True)
    assert message.redelivered


async def test_a_client_that_vanishes_within_a_body_leaves_no_message(
    amqp_url: str, client: Client
) -> None:
    queue = await client.queue()
    async with wire(amqp_url) as peer:
        await peer.open()
        peer.send(commands.Basic.Publish(routing_key=queue), 1)
        peer.send(header.ContentHeader(body_size=100), 1)
        peer.write(raw(BODY, b"x" * 50) + raw(BODY, b"y" * 50)[:20])
        # Whatever was read of it is read now.
        peer.send(Heartbeat())
    await client.publish(queue, b"whole")
    assert await client.drain(queue, 1) == [b"whole"]
    assert await client.depth(queue) == 0


async def test_many_connections_stand_beside_each_other(amqp_url: str, client: Client) -> None:
    queue = await client.queue()
    connections = await asyncio.gather(*(aiormq.connect(amqp_url) for _ in range(30)))
    try:
        for connection in connections:
            channel = await connection.channel()
            await channel.basic_publish(b"x", routing_key=queue)
        await client.has_depth(queue, 30)
    finally:
        await asyncio.gather(*(connection.close() for connection in connections))
    with pytest.raises((AMQPError, RuntimeError)):
        await connections[0].channel()
