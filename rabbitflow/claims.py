"""Claims on a channel's frames: deliveries and their acks, publishes and their confirms."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final

from aiormq.abc import AbstractChannel
from aiormq.exceptions import DeliveryError
from pamqp.commands import Basic

from rabbitflow.stream import Stream, release
from rabbitflow.wire import (
    ACK,
    DELIVER,
    HEADER,
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

_LARGEST_BUFFER_BYTES: Final = 2**20
_FRAME_MAX: Final = 2**17  # where the broker sets no limit

Receive = Callable[[int, bool, str, bytes, Content, bytes], None]
"""Takes tag, redelivered, exchange, content header, what it says, and body. Must not raise."""


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
            lambda closing: release(stream.takers, self._channel, self)
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


Settle = Callable[[BaseException | None], None]
"""Told the end of one publish: None for confirmed, else Returned, DeliveryError (a nack), or what
ended the channel. Must not raise."""


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
            DeliveryError: the broker nacked it.
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
                self._confirm(
                    tag, multiple, None if method == ACK else DeliveryError(None, Basic.Nack(tag))
                )
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
        release(self._takers, self._number, self)
        error = None if closing.cancelled() else closing.exception()
        self._ended = error or ConnectionResetError("the channel was closed")
        pending, self._pending = self._pending, {}
        for settle, _ in pending.values():
            settle(self._ended)
