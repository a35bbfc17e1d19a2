"""The stream with shortcuts hands on what aiormq would read, less what was claimed, and no less."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from aiormq.connection import FrameReceiver
from aiormq.exceptions import AMQPConnectionError, AMQPError
from hypothesis import given
from hypothesis import strategies as st
from pamqp import commands, frame
from pamqp.body import ContentBody
from pamqp.commands import Basic
from pamqp.header import ContentHeader
from pamqp.heartbeat import Heartbeat

from rabbitflow import fastpath
from rabbitflow.claims import Confirms, Deliveries, Returned
from rabbitflow.stream import Stream
from rabbitflow.wire import Content

OURS, THEIRS = 1, 2


def message(tag: int, body: bytes, channel: int, frame_max: int) -> list[bytes]:
    """Return the frames of one delivery as a broker sends them."""
    deliver = Basic.Deliver("ctag", tag, bool(tag % 2), "events.A", "")
    header = ContentHeader(
        body_size=len(body),
        properties=Basic.Properties(content_type="application/json", message_id=str(tag)),
    )
    pieces = [body[at : at + frame_max] for at in range(0, len(body), frame_max)]
    return [frame.marshal(part, channel) for part in (deliver, header, *map(ContentBody, pieces))]


bodies = st.lists(st.binary(max_size=60), max_size=8)
chunk_sizes = st.lists(st.integers(1, 200), min_size=1, max_size=30)
between = st.lists(
    st.sampled_from(
        [
            frame.marshal(Heartbeat(), 0),
            frame.marshal(Basic.QosOk(), OURS),
            frame.marshal(Basic.ConsumeOk("ctag"), OURS),
            frame.marshal(Basic.CancelOk("ctag"), OURS),
            frame.marshal(Basic.Cancel("ctag"), OURS),
            frame.marshal(commands.Queue.DeclareOk("q", 1, 1), THEIRS),
            frame.marshal(commands.Channel.Close(404, "NOT_FOUND", 60, 40), OURS),
            frame.marshal(commands.Connection.Blocked("low on memory"), 0),
            *([b"".join(message(9, b"theirs", THEIRS, 4))]),
        ]
    ),
    max_size=4,
)


class Channel:
    """As much of a channel as claiming one needs."""

    number = OURS

    def __init__(self) -> None:
        self.closing: asyncio.Future[None] = asyncio.get_running_loop().create_future()


def feed(stream: asyncio.StreamReader, data: bytes, sizes: list[int]) -> None:
    at, turn = 0, 0
    while at < len(data):
        size = sizes[turn % len(sizes)]
        stream.feed_data(data[at : at + size])
        at, turn = at + size, turn + 1
    stream.feed_eof()


async def frames_of(stream: asyncio.StreamReader) -> list[tuple[int, str, bytes]]:
    """Return what aiormq reads in a stream, the signs of life left out."""
    found = []
    try:
        async for _, channel, read in FrameReceiver(stream):
            if not isinstance(read, Heartbeat):
                found.append((channel, read.name, frame.marshal(read, channel)))
    except AMQPError as error:
        found.append((-1, type(error).__name__, b""))
    return found


@given(bodies, between, chunk_sizes, st.integers(1, 50))
def test_for_any_chunking_deliveries_are_taken_whole_and_the_rest_is_handed_on(
    given_bodies: list[bytes], others: list[bytes], sizes: list[int], frame_max: int
) -> None:
    async def scenario() -> None:
        taken: list[tuple[Any, ...]] = []
        stream = Stream(asyncio.get_running_loop())
        Deliveries(stream, None, Channel(), lambda *parts: taken.append(parts))  # type: ignore[arg-type]
        plain = asyncio.StreamReader()
        sent = b""
        for number in range(max(len(given_bodies), len(others))):
            if number < len(given_bodies):
                sent += b"".join(message(number + 1, given_bodies[number], OURS, frame_max))
            if number < len(others):
                sent += others[number]
        feed(stream, sent, sizes)
        feed(plain, b"".join(others), [len(sent) + 1])
        assert await frames_of(stream) == await frames_of(plain)
        assert [
            (tag, redelivered, exchange, content, body)
            for tag, redelivered, exchange, _, content, body in taken
        ] == [
            (
                tag,
                bool(tag % 2),
                "events.A",
                Content(len(body), "application/json", None, None, str(tag), None),
                body,
            )
            for tag, body in enumerate(given_bodies, start=1)
        ]

    asyncio.run(scenario())


@given(st.binary(max_size=80), between, st.binary(max_size=30), chunk_sizes)
def test_what_is_no_frame_is_judged_by_the_client_library(
    before: bytes, others: list[bytes], after: bytes, sizes: list[int]
) -> None:
    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        for sent in (b"".join(others) + before + after, b"AMQP\0\0\x09\1" + after, after):
            stream, plain = Stream(loop), asyncio.StreamReader()
            feed(stream, sent, sizes)
            feed(plain, sent, sizes)
            assert await frames_of(stream) == await frames_of(plain)

    asyncio.run(scenario())


async def test_a_busy_connection_shows_the_client_library_signs_of_life(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loop = asyncio.get_running_loop()
    now = 100.0
    monkeypatch.setattr(loop, "time", lambda: now)
    stream = Stream(loop)
    Deliveries(stream, None, Channel(), lambda *parts: None)  # type: ignore[arg-type]
    for _ in range(50):
        now += 0.1
        stream.feed_data(b"".join(message(1, b"{}", OURS, 10)))
    stream.feed_eof()
    signs = [read async for _, _, read in FrameReceiver(stream)]
    assert all(isinstance(read, Heartbeat) for read in signs)
    assert 4 <= len(signs) <= 6


class Written:
    """What a writer was given."""

    def __init__(self) -> None:
        self.data = b""
        self.transport = self

    def is_closing(self) -> bool:
        return False

    def get_write_buffer_size(self) -> int:
        return 0

    def write(self, data: bytes) -> None:
        self.data += data


class PublishingChannel(Channel):
    def __init__(self) -> None:
        super().__init__()
        self.connection = self
        self.connection_tune = self
        self.frame_max = 131_072


@given(st.lists(st.tuples(st.booleans(), st.booleans(), st.integers(0, 5)), max_size=12))
def test_every_publish_is_told_its_own_end_exactly_once(
    confirms: list[tuple[bool, bool, int]],
) -> None:
    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        stream, channel, writer = Stream(loop), PublishingChannel(), Written()
        publishing = Confirms(stream, writer, channel, loop)  # type: ignore[arg-type]
        told: dict[int, list[BaseException | None]] = {tag: [] for tag in range(1, 13)}
        for tag, replies in told.items():
            publishing.send("", "q", b"{}", Basic.Properties(message_id=str(tag)), replies.append)
        await asyncio.sleep(0)
        sent = await _sent(writer.data)
        assert sent == [str(tag) for tag in told]
        expected: dict[int, str] = {}
        for is_nack, multiple, back in confirms:
            open_tags = [tag for tag in told if tag not in expected]
            if not open_tags:
                break
            tag = open_tags[min(back, len(open_tags) - 1)]
            kind = Basic.Nack if is_nack else Basic.Ack
            stream.feed_data(frame.marshal(kind(tag, multiple), OURS))
            for covered in open_tags if multiple else [tag]:
                if covered <= tag:
                    expected[covered] = "DeliveryError" if is_nack else "NoneType"
        channel.closing.set_exception(AMQPConnectionError("gone"))
        await asyncio.sleep(0)
        for tag, replies in told.items():
            assert [type(reply).__name__ for reply in replies] == [
                expected.get(tag, "AMQPConnectionError")
            ]
        with pytest.raises(ConnectionError):
            publishing.send("", "q", b"{}", Basic.Properties(message_id="x"), print)

    asyncio.run(scenario())


async def test_a_returned_message_is_told_apart_by_its_id() -> None:
    loop = asyncio.get_running_loop()
    stream, channel = Stream(loop), PublishingChannel()
    publishing = Confirms(stream, Written(), channel, loop)  # type: ignore[arg-type]
    told: dict[str, list[BaseException | None]] = {"a": [], "b": [], "c": []}
    for message_id, replies in told.items():
        properties = Basic.Properties(message_id=message_id)
        publishing.send("events.A", "", b"{}", properties, replies.append)
    properties = Basic.Properties(message_id="b")
    returned: list[Any] = [
        Basic.Return(312, "NO_ROUTE", "events.A", ""),
        ContentHeader(body_size=2, properties=properties),
        ContentBody(b"{}"),
        Basic.Ack(3, True),
    ]
    stream.feed_data(b"".join(frame.marshal(part, OURS) for part in returned))
    assert told["a"] == told["c"] == [None]
    assert isinstance(told["b"][0], Returned)


async def _sent(data: bytes) -> list[str | None]:
    ids = []
    while data:
        used, _, part = frame.unmarshal(data)
        if isinstance(part, ContentHeader):
            ids.append(part.properties.message_id)
        data = data[used:]
    return ids


@pytest.fixture
def decided_anew() -> Any:
    fastpath.is_on.cache_clear()
    yield
    fastpath.is_on.cache_clear()


@pytest.mark.usefixtures("decided_anew")
def test_it_is_used_with_the_installed_releases(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RABBITFLOW_FAST", raising=False)
    assert fastpath.is_on()


@pytest.mark.usefixtures("decided_anew")
def test_a_setting_turns_it_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RABBITFLOW_FAST", "0")
    assert not fastpath.is_on()
    assert fastpath.connection_class() is fastpath.aio_pika.Connection


@pytest.mark.usefixtures("decided_anew")
def test_an_unproven_release_of_a_library_falls_back_with_one_line(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("RABBITFLOW_FAST", raising=False)
    monkeypatch.setitem(fastpath.PROVEN, "aiormq", "6.9")
    assert not fastpath.is_on()
    assert not fastpath.is_on()
    (record,) = caplog.records
    assert "aiormq" in record.getMessage()
    assert "6.9" in record.getMessage()
