"""Shortcuts below aio-pika: the only module that knows how aiormq reads and writes.

aiormq awaits three times for every frame, copies it through two queues into a task per delivery,
and takes a lock, a future and two tasks for every publish; nine tenths of what an event costs is
spent there. A connection of this module hands aiormq a stream that it reads as ever
(``transport_factory``, an argument of ``aiormq.Connection``), and takes out of it, as bytes arrive,
the frames of channels that were claimed: deliveries of a subscription's channel, confirms and
returns of a publisher's. Handshake, heartbeats, opening and closing, declarations, errors: aiormq
does all of it, and never learns of the rest.

What holds it up, each with a test:

- aiormq writes whole frames to its StreamWriter, so whole frames of ours may be written between.
- It gives up a connection on which it saw no frame for three heartbeats. A busy broker sends no
  heartbeats, so claimed frames are reported to it as one heartbeat a second.
- A frame that can't be read is handed on, and so is all that follows: to judge it is aiormq's.

It is used with the releases it was proven with (``PROVEN``), and where ``RABBITFLOW_FAST`` is not
0. Otherwise connections are plain ones, :func:`deliveries` and :func:`confirms` return None, and
their callers go through aio-pika's public interface.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final, Protocol

import aio_pika
from aio_pika.abc import AbstractConnection
from aiormq.abc import AbstractChannel
from aiormq.connection import TransportFactory
from pamqp.commands import Basic
from yarl import URL

from rabbitflow.wire import (
    ACK,
    BODY,
    DELIVER,
    FRAME_BYTES,
    FRAME_END,
    FRAME_HEADER,
    FRAME_HEADER_BYTES,
    HEADER,
    HEARTBEAT,
    HEARTBEAT_FRAME,
    METHOD,
    NACK,
    RETURN,
    Content,
    ack,
    body_bytes,
    content,
    method_id,
    properties_of,
    publish_method,
    read_confirm,
    read_content,
    read_deliver,
)

PROVEN: Final = {"aio-pika": "10.2", "aiormq": "7.2", "pamqp": "4.0"}
"""The releases whose insides this module was tested against: major and minor version."""

SIGN_OF_LIFE_EVERY_S: Final = 1.0
_LIMIT_BYTES: Final = 2**18
_LARGEST_BUFFER_BYTES: Final = 2**20
_FRAME_MAX: Final = 2**17  # where the broker sets no limit

logger = logging.getLogger(__name__)

Receive = Callable[[int, bool, str, bytes, Content, bytes], None]
"""Takes tag, redelivered, exchange, content header, what it says, and body. Must not raise."""


@cache
def is_on() -> bool:
    """Whether connections take the shortcuts. Decided once a process."""
    if os.environ.get("RABBITFLOW_FAST", "1").strip().lower() in ("0", "false", "no", "off"):
        return False
    for package, proven in PROVEN.items():
        try:
            found = version(package)
        except PackageNotFoundError:
            found = "unknown"
        if found.split(".")[:2] != proven.split("."):
            logger.warning(
                "%s %s is not the %s.x that the fast path was proven with;"
                " taking the slower public one",
                package,
                found,
                proven,
            )
            return False
    return True


class Taker(Protocol):
    """Takes frames of one channel out of the stream."""

    def take(self, kind: int, data: bytes, start: int, end: int) -> bool:
        """Take the frame whose payload is ``data[start:end]``; False leaves it to aiormq."""
        ...


class Stream(asyncio.StreamReader):
    """The stream aiormq reads, less the frames that takers took."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(_LIMIT_BYTES, loop)
        self.takers: dict[int, Taker] = {}
        self._time = loop.time
        self._begun = b""
        self._is_plain = False
        self._reported_at = 0.0

    def feed_data(self, data: bytes) -> None:  # type: ignore[override]
        """Take what belongs to takers, and hand on the rest, as bytes arrive."""
        if self._is_plain:
            super().feed_data(data)
            return
        if self._begun:
            data = self._begun + data
        at = left = 0
        have = len(data)
        takers, unpack = self.takers, FRAME_HEADER.unpack_from
        passed: list[bytes] = []
        took = False
        while have - at >= FRAME_BYTES:
            kind, channel, size = unpack(data, at)
            end = at + size + FRAME_BYTES
            if kind not in (METHOD, HEADER, BODY, HEARTBEAT):
                self._is_plain = True
                break
            if end > have:
                break
            if data[end - 1] != FRAME_END:
                self._is_plain = True
                break
            taker = takers.get(channel)
            if taker is not None and taker.take(kind, data, at + FRAME_HEADER_BYTES, end - 1):
                took = True
                if left < at:
                    passed.append(data[left:at])
                left = end
            at = end
        if self._is_plain:
            at = have
        if left < at:
            passed.append(data[left:at])
        self._begun = data[at:]
        if took:
            self._report()
        for piece in passed:
            super().feed_data(piece)

    def feed_eof(self) -> None:
        """Hand on what had begun, so that the end is reported as on any stream."""
        if self._begun:
            begun, self._begun = self._begun, b""
            super().feed_data(begun)
        super().feed_eof()

    def _report(self) -> None:
        now = self._time()
        if now - self._reported_at > SIGN_OF_LIFE_EVERY_S:
            self._reported_at = now
            super().feed_data(HEARTBEAT_FRAME)


class _Transports(TransportFactory):
    """Opens what aiormq would, with our stream in it."""

    def __init__(self) -> None:
        self.stream: Stream | None = None
        self.writer: asyncio.StreamWriter | None = None

    async def create(
        self, url: URL, *, ssl_context_provider: Any = None, **kwargs: Any
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        loop = asyncio.get_running_loop()
        tls = await ssl_context_provider.get_context() if url.scheme == "amqps" else None
        stream = Stream(loop)
        transport, protocol = await loop.create_connection(
            lambda: asyncio.StreamReaderProtocol(stream, loop=loop),
            url.host or "localhost",
            url.port or 5672,
            ssl=tls,
            **kwargs,
        )
        self.stream = stream
        self.writer = asyncio.StreamWriter(transport, protocol, stream, loop)
        return stream, self.writer


class _FastConnection(aio_pika.Connection):
    """A connection whose channels can be claimed."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.transports = _Transports()
        self.kwargs["transport_factory"] = self.transports


def connection_class() -> type[aio_pika.Connection]:
    """Return what ``aio_pika.connect`` shall make."""
    return _FastConnection if is_on() else aio_pika.Connection


class _Output:
    """What is written to one connection in one turn of the event loop, in one piece."""

    def __init__(self, writer: asyncio.StreamWriter, loop: asyncio.AbstractEventLoop) -> None:
        self._writer = writer
        self._loop = loop
        self._parts: list[bytes] = []

    @property
    def is_open(self) -> bool:
        return not self._writer.is_closing()

    @property
    def is_full(self) -> bool:
        """Whether the broker takes less than is sent."""
        return self._writer.transport.get_write_buffer_size() > _LARGEST_BUFFER_BYTES

    def write(self, frames: bytes) -> None:
        parts = self._parts
        if not parts:
            self._loop.call_soon(self._flush)
        parts.append(frames)

    async def drain(self) -> None:
        self._flush()
        await self._writer.drain()

    def _flush(self) -> None:
        parts = self._parts
        if parts:
            if not self._writer.is_closing():
                self._writer.write(parts[0] if len(parts) == 1 else b"".join(parts))
            parts.clear()


class Deliveries:
    """Takes every delivery of one channel, and writes its acks."""

    def __init__(
        self,
        stream: Stream,
        writer: asyncio.StreamWriter,
        channel: AbstractChannel,
        receive: Receive,
    ) -> None:
        self._writer = writer
        self._channel = channel.number
        self._receive = receive
        self._deliver: tuple[int, bool, str] | None = None
        self._header = b""
        self._content: Content | None = None
        self._pieces: list[bytes] = []
        self._missing_bytes = 0
        stream.takers[channel.number] = self
        channel.closing.add_done_callback(
            lambda closing: _release(stream.takers, self._channel, self)
        )

    def ack(self, tag: int, multiple: bool) -> None:
        """Write an ack. On a connection that is gone it is dropped, as the broker drops it."""
        if not self._writer.is_closing():
            self._writer.write(ack(self._channel, tag, multiple=multiple))

    def take(self, kind: int, data: bytes, start: int, end: int) -> bool:
        """Take deliveries; what belongs to none is left to aiormq."""
        if kind == METHOD:
            if method_id(data, start) != DELIVER:
                return False
            self._deliver = read_deliver(data, start)
        elif self._deliver is None:
            return False
        elif kind == HEADER:
            return self._take_header(data[start:end])
        else:
            self._take_body(data[start:end])
        return True

    def _take_header(self, header: bytes) -> bool:
        try:
            self._content = content = read_content(header)
        except ValueError:
            self._deliver = None
            return False
        self._header, self._missing_bytes = header, content.body_bytes
        if not content.body_bytes:
            self._complete(b"")
        return True

    def _take_body(self, piece: bytes) -> None:
        self._missing_bytes -= len(piece)
        if self._missing_bytes > 0:
            self._pieces.append(piece)
        elif self._pieces:
            pieces, self._pieces = [*self._pieces, piece], []
            self._complete(b"".join(pieces))
        else:
            self._complete(piece)

    def _complete(self, body: bytes) -> None:
        deliver, content = self._deliver, self._content
        assert deliver is not None
        assert content is not None
        self._deliver = self._content = None
        self._receive(*deliver, self._header, content, body)


class Returned(Exception):
    """The broker found no queue for a mandatory message."""


class Nacked(Exception):
    """The broker did not keep a message."""


Settle = Callable[[BaseException | None], None]
"""Told the end of one publish: None for confirmed, else Returned, Nacked, or what ended the
channel. Must not raise."""


class Confirms:
    """Publishes on one channel in confirm mode, and hears what became of each message."""

    def __init__(
        self,
        stream: Stream,
        writer: asyncio.StreamWriter,
        channel: AbstractChannel,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._number = channel.number
        self._frame_max = channel.connection.connection_tune.frame_max or _FRAME_MAX
        self._loop = loop
        self._output = _Output(writer, loop)
        self._methods: dict[tuple[str, str], bytes] = {}
        self._pending: dict[int, tuple[Settle, str | None]] = {}
        self._returned: set[int] = set()
        self._newest = 0
        self._oldest = 1
        self._returning = False
        self._returned_bytes = 0
        self._ended: BaseException | None = None
        self._takers = stream.takers
        stream.takers[channel.number] = self
        channel.closing.add_done_callback(self._end)

    @property
    def is_open(self) -> bool:
        """Whether a message can still be sent here."""
        return self._ended is None and self._output.is_open

    @property
    def is_full(self) -> bool:
        """Whether the broker takes less than is sent; then :meth:`drain`."""
        return self._output.is_full

    async def drain(self) -> None:
        """Return when the broker has taken most of what was sent."""
        await self._output.drain()

    def send(
        self,
        exchange: str,
        routing_key: str,
        body: bytes,
        properties: Basic.Properties,
        settle: Settle,
    ) -> None:
        """Send a mandatory message; ``settle`` is told what became of it.

        Raises:
            ConnectionError: the channel is gone; nothing was sent.
        """
        if not self.is_open:
            raise ConnectionResetError("the channel is closed")
        method = self._methods.get((exchange, routing_key))
        if method is None:
            method = publish_method(self._number, exchange, routing_key)
            if len(self._methods) < 1000:
                self._methods[exchange, routing_key] = method
        message = content(self._number, properties_of(properties), body, self._frame_max)
        self._newest += 1
        self._pending[self._newest] = (settle, properties.message_id)
        self._output.write(method + message)

    async def publish(
        self, exchange: str, routing_key: str, body: bytes, properties: Basic.Properties
    ) -> None:
        """Send a mandatory message and return when it is confirmed.

        Raises:
            Returned: no queue took it.
            Nacked: the broker did not keep it.
            AMQPError, ConnectionError: what ended the channel; whether it was kept is not known.
        """
        confirmed: asyncio.Future[None] = self._loop.create_future()

        def settle(error: BaseException | None) -> None:
            if confirmed.done():
                return
            if error is None:
                confirmed.set_result(None)
            else:
                confirmed.set_exception(error)

        self.send(exchange, routing_key, body, properties, settle)
        if self._output.is_full:
            await self._output.drain()
        await confirmed

    def take(self, kind: int, data: bytes, start: int, end: int) -> bool:
        """Take confirms and returns; what belongs to neither is left to aiormq."""
        if kind == METHOD:
            method = method_id(data, start)
            if method in (ACK, NACK):
                tag, multiple = read_confirm(data, start)
                self._confirm(tag, multiple, None if method == ACK else Nacked())
                return True
            self._returning = method == RETURN
            return self._returning
        if not self._returning:
            return False
        if kind == HEADER:
            self._note_return(data[start:end])
            self._returned_bytes = body_bytes(data, start)
        else:
            self._returned_bytes -= end - start
        self._returning = self._returned_bytes > 0
        return True

    def _note_return(self, header: bytes) -> None:
        """A returned message comes before its ack, and is known by its id alone."""
        message_id = read_content(header).message_id
        for tag, (_, pending_id) in self._pending.items():
            if pending_id == message_id and tag not in self._returned:
                self._returned.add(tag)
                return

    def _confirm(self, tag: int, multiple: bool, reply: BaseException | None) -> None:
        if not multiple:
            self._settle(tag, reply)
            if tag == self._oldest:
                self._oldest += 1
            return
        for settled in range(self._oldest, tag + 1):
            self._settle(settled, reply)
        self._oldest = max(self._oldest, tag + 1)

    def _settle(self, tag: int, reply: BaseException | None) -> None:
        pending = self._pending.pop(tag, None)
        if pending is None:
            return
        if self._returned and tag in self._returned:
            self._returned.discard(tag)
            reply = Returned()
        pending[0](reply)

    def _end(self, closing: asyncio.Future[Any]) -> None:
        _release(self._takers, self._number, self)
        error = None if closing.cancelled() else closing.exception()
        self._ended = error or ConnectionResetError("the channel was closed")
        pending, self._pending = self._pending, {}
        for settle, _ in pending.values():
            settle(self._ended)


def deliveries(
    connection: AbstractConnection, channel: AbstractChannel, receive: Receive
) -> Deliveries | None:
    """Claim the deliveries of a channel; None on a connection without shortcuts."""
    ends = _ends_of(connection)
    return None if ends is None else Deliveries(*ends, channel, receive)


def confirms(connection: AbstractConnection, channel: AbstractChannel) -> Confirms | None:
    """Claim publishing on a channel in confirm mode; None on a connection without shortcuts."""
    ends = _ends_of(connection)
    if ends is None:
        return None
    return Confirms(*ends, channel, asyncio.get_running_loop())


def _release(takers: dict[int, Taker], number: int, taker: Taker) -> None:
    # The number may belong to a new channel by now.
    if takers.get(number) is taker:
        del takers[number]


def _ends_of(connection: AbstractConnection) -> tuple[Stream, asyncio.StreamWriter] | None:
    if not isinstance(connection, _FastConnection):
        return None
    stream, writer = connection.transports.stream, connection.transports.writer
    return None if stream is None or writer is None else (stream, writer)
