"""Reading event logs over AMQP: from somewhere on, live or to where they ended."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from aiormq.abc import DeliveredMessage
from pamqp.commands import Basic

from rabbitflow.broker import (
    Channel,
    Connection,
    ConnectionLost,
    NotFound,
    lost_connections,
    open_channel,
)
from rabbitflow.errors import BrokerError, ConfigurationError, EventError
from rabbitflow.log.entry import Entry
from rabbitflow.log.span import LAST
from rabbitflow.settings import Settings
from rabbitflow.topology import STREAM_OFFSET, Names

PREFETCH = 500
FIRST_ANSWER_S = 5.0
"""How long a log may be silent before it is taken to be empty, also on a machine that is busy."""

QUIET_S = 0.2
NOTE_WITHIN_S = 1.0
STALLED_S = 30.0
NOTHING_S = 5.0
_OLDEST = datetime.min.replace(tzinfo=UTC)


class StreamReader:
    """Reads a stream, message by message, in the order in which the broker stored them.

    The stream is not changed by being read: acknowledging a message only asks the broker for more.
    """

    def __init__(self, queue: str, channel: Channel) -> None:
        self._queue = queue
        self._channel = channel
        self._arrived: asyncio.Queue[DeliveredMessage | str] = asyncio.Queue()
        self._unacked = 0
        self._tag = 0
        channel.on_consumer_cancel_callbacks.add(self._on_cancel)
        channel.closing.add_done_callback(self._on_closed)

    async def consume(self, argument: Any, settings: Settings) -> None:
        """Ask the broker for everything from ``argument`` on.

        Raises:
            NotFound: there is no such stream.
            ConnectionLost: the connection is gone.
        """
        with lost_connections():
            async with asyncio.timeout(settings.connect_timeout_s):
                # A stream gives nothing to who sets no limit.
                await self._channel.basic_qos(prefetch_count=PREFETCH)
                await self._channel.basic_consume(
                    self._queue, self._on_message, arguments={STREAM_OFFSET: argument}
                )

    async def next(self, within_s: float | None = None) -> DeliveredMessage | None:
        """Return the next message; None where none came within ``within_s`` seconds.

        Raises:
            ConnectionLost: the connection, or the stream itself, is gone.
        """
        if self._arrived.empty():
            # All of them, before waiting: a delivery held for too long closes the channel.
            await self._ack()
        try:
            async with asyncio.timeout(within_s):
                arrived = await self._arrived.get()
        except TimeoutError:
            return None
        if isinstance(arrived, str):
            raise ConnectionLost(f"stream {self._queue} can't be read on: {arrived}")
        self._unacked += 1
        self._tag = arrived.delivery.delivery_tag or 0  # type: ignore[union-attr]
        if self._unacked >= PREFETCH // 2:
            await self._ack()
        return arrived

    async def _ack(self) -> None:
        if self._unacked:
            self._unacked = 0
            with lost_connections():
                await self._channel.basic_ack(self._tag, multiple=True)

    async def _on_message(self, message: DeliveredMessage) -> None:
        self._arrived.put_nowait(message)

    def _on_cancel(self, frame: Basic.Cancel) -> None:
        self._arrived.put_nowait("the broker deleted it, or lost its leader")

    def _on_closed(self, closing: asyncio.Future[None]) -> None:
        error = None if closing.cancelled() else closing.exception()
        self._arrived.put_nowait(str(error) if error else "the channel was closed")


@dataclass(frozen=True, slots=True)
class LogReader:
    """Reads the event log of one event type; use it by :func:`open_log`."""

    event_type: str
    stream: StreamReader

    async def next(self, within_s: float | None = None) -> Entry | None:
        """Return the next entry; None where none came within ``within_s`` seconds.

        Raises:
            ConnectionLost: the connection, or the log itself, is gone.
        """
        message = await self.stream.next(within_s)
        return None if message is None else Entry.of(self.event_type, message)


@asynccontextmanager
async def open_stream(
    connection: Connection, queue: str, argument: Any, settings: Settings
) -> AsyncIterator[StreamReader]:
    """Read a stream from ``argument`` on: ``first``, ``last``, ``next``, an offset or a moment.

    Raises:
        NotFound: there is no such stream.
        ConnectionLost: the connection is gone.
    """
    channel = await open_channel(connection, settings, confirms=False)
    try:
        reader = StreamReader(queue, channel)
        await reader.consume(argument, settings)
        yield reader
    finally:
        if not channel.is_closed:
            with lost_connections():
                async with asyncio.timeout(settings.connect_timeout_s):
                    await channel.close()


@asynccontextmanager
async def open_log(
    connection: Connection, event_type: str, argument: Any, settings: Settings
) -> AsyncIterator[LogReader]:
    """Read the log of an event type from ``argument`` on, as :func:`open_stream`.

    Raises:
        ConfigurationError: there is no such log.
        ConnectionLost: the connection is gone.
    """
    queue = Names(settings.namespace).log(event_type)
    try:
        async with open_stream(connection, queue, argument, settings) as reader:
            yield LogReader(event_type, reader)
    except NotFound:
        raise ConfigurationError(
            f"{settings.shown_url} keeps no event log {queue}: {event_type} was never announced"
            " there, or only with the event log turned off (RABBITFLOW_EVENT_LOG)"
        ) from None


async def note_end(
    connection: Connection,
    event_type: str,
    settings: Settings,
    *,
    within_s: float = FIRST_ANSWER_S,
) -> int | None:
    """Return the offset of the newest entry; None where the log is empty.

    A broker tells no client how long a stream is (a passive declare says 0). It delivers the last
    chunk and what comes after it, so the end is where deliveries pause, or what came within
    ``NOTE_WITHIN_S`` seconds of them.

    Raises:
        ConfigurationError: there is no such log.
    """
    async with open_log(connection, event_type, LAST, settings) as reader:
        entry = await reader.next(within_s)
        newest = entry
        deadline = time.monotonic() + NOTE_WITHIN_S
        while entry is not None and time.monotonic() < deadline:
            entry = await reader.next(QUIET_S)
            newest = entry or newest
    return None if newest is None else newest.offset


async def note_ends(
    connection: Connection,
    event_types: Sequence[str],
    settings: Settings,
    *,
    within_s: float = FIRST_ANSWER_S,
) -> dict[str, int | None]:
    """Return :func:`note_end` of several logs, all at once."""
    ends = await asyncio.gather(
        *(note_end(connection, name, settings, within_s=within_s) for name in event_types)
    )
    return dict(zip(event_types, ends, strict=True))


async def read_to(
    reader: LogReader, end: int | str, *, may_be_empty: bool = False
) -> AsyncIterator[Entry]:
    """Yield the events up to ``end``: an offset, or a mark.

    Args:
        may_be_empty: whether the reader may have begun behind ``end``, as one that begins at a
            moment; then ``NOTHING_S`` seconds without any entry are an answer.

    Raises:
        BrokerError: the log gave nothing for ``STALLED_S`` seconds, and has not reached ``end``.
    """
    while True:
        entry = await reader.next(NOTHING_S if may_be_empty else STALLED_S)
        if entry is None:
            if may_be_empty:
                return
            raise BrokerError(
                f"the event log of {reader.event_type} gave nothing for {STALLED_S:g} s, and its"
                " end is not reached"
            )
        may_be_empty = False
        is_past_end = isinstance(end, int) and entry.offset > end
        if entry.mark is None and not is_past_end:
            yield entry
        if is_past_end or end in (entry.offset, entry.mark):
            return


async def open_pasts(
    stack: AsyncExitStack,
    connection: Connection,
    arguments: Mapping[str, Any],
    ends: Mapping[str, int | str | None],
    settings: Settings,
) -> list[AsyncIterator[Entry]]:
    """Return what several logs hold from ``arguments`` on, up to ``ends``; both by event type.

    Raises:
        ConfigurationError: there is no such log.
    """
    pasts = []
    for event_type, end in ends.items():
        argument = arguments[event_type]
        if end is None or (isinstance(argument, int) and isinstance(end, int) and argument > end):
            continue
        log = open_log(connection, event_type, argument, settings)
        reader = await stack.enter_async_context(log)
        pasts.append(read_to(reader, end, may_be_empty=isinstance(argument, datetime)))
    return pasts


async def in_order(pasts: Sequence[AsyncIterator[Entry]]) -> AsyncIterator[Entry]:
    """Yield the entries of several logs as they happened, each log keeping its own order."""
    if len(pasts) == 1:
        async for entry in pasts[0]:
            yield entry
        return
    heads = [head for past in pasts if (head := await _head(past, _OLDEST)) is not None]
    while heads:
        happened_at, entry, past = head = min(heads, key=lambda one: one[0])
        heads.remove(head)
        yield entry
        if (following := await _head(past, happened_at)) is not None:
            heads.append(following)


_Head = tuple[datetime, Entry, AsyncIterator[Entry]]


async def _head(past: AsyncIterator[Entry], at_least: datetime) -> _Head | None:
    entry = await anext(past, None)
    if entry is None:
        return None
    try:
        happened_at = entry.event().timestamp
    except EventError:
        happened_at = at_least  # no event, so it stays behind the one before it
    return max(happened_at, at_least), entry, past
