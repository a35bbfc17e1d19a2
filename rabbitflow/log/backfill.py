"""The past of a new consumer: copied from the event log to its queue, without gap and double.

A live event must reach the queue by its binding or by a copy, never by both. Its binding begins at
a moment that no client sees, so at first events come by way of an exchange that is bound to the
consumer's queue and to a journal: one routing reaches both or neither. What the journal holds is in
the queue already, and is not copied (docs/architecture.md, "A consumer with a past").
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager

from aiormq.exceptions import ChannelLockedResource
from pamqp.commands import Basic

from rabbitflow.broker import (
    Channel,
    Connection,
    ConnectionLost,
    is_alive,
    lost_connections,
    throwaway_channel,
)
from rabbitflow.confirmed import ConfirmedChannel
from rabbitflow.declaration import declare
from rabbitflow.errors import (
    BrokerUnavailable,
    ConfigurationError,
    RabbitflowError,
)
from rabbitflow.event import new_event_id
from rabbitflow.inspection import queue_exists
from rabbitflow.log.copying import Copies, RecentIds
from rabbitflow.log.journal import Journal
from rabbitflow.log.reading import in_order, note_ends, open_pasts, open_stream
from rabbitflow.log.span import FIRST
from rabbitflow.publisher import PERSISTENT
from rabbitflow.settings import Settings
from rabbitflow.topology import LOG_MARK, Names, Topology, bridge_topology, journal_topology

GRACE_S = 2.0
"""How long after a binding the broker may still deliver what it routed before, at the most."""

KEEP_EVERY = 500
"""Copies between two notes of progress: also how many may be made twice when we are killed."""

ROUNDS = 5
SILENT_S = 1.0
"""A log that says nothing for so long is empty, or is copied later, up to its mark."""

SHORT_ROUND = 5_000
LOOK_EVERY_S = 2.0
LONGEST_PAUSE_S = 30.0
BEGIN_WITHIN_S = 30.0

logger = logging.getLogger(__name__)


async def begin(
    connection: Connection, consumer: str, topology: Topology, settings: Settings
) -> bool:
    """Declare the queues of a consumer that starts with the past.

    A consumer that is new gets its journal first and is not bound to any event yet; one that has a
    queue and no journal has its past, and is declared as any other. Any number of processes may do
    this at once.

    Returns:
        Whether its past is still to be copied (:func:`copy_past`).

    Raises:
        ConfigurationError: the event log is off, or this process may declare nothing; a queue
            exists with other arguments.
        BrokerError: the broker can't be reached, or refuses.
    """
    if not settings.event_log:
        raise ConfigurationError(
            f"consumer {consumer} starts from the beginning, and the event log that keeps it is"
            " turned off; set RABBITFLOW_EVENT_LOG=true, or leave from_beginning out"
        )
    if not settings.declare:
        raise ConfigurationError(
            f"consumer {consumer} starts from the beginning, and binds its queue when its past is"
            " there; start its worker without --no-declare"
        )
    names = Names(settings.namespace)
    queue, journal = names.queue(consumer), names.backfill(consumer)
    deadline = time.monotonic() + BEGIN_WITHIN_S
    # The queue first: it is made after the journal, so that a queue without one has its past.
    while not await queue_exists(connection, queue, settings):
        async with _lock(connection, consumer, settings) as is_ours:
            if is_ours and not await queue_exists(connection, queue, settings):
                await _delete(connection, journal, settings)  # of a queue that was deleted since
                await declare(connection, journal_topology(consumer, settings), settings)
                await declare(connection, _unbound(topology, queue), settings)
        if time.monotonic() > deadline:
            raise BrokerUnavailable(f"another process takes too long to declare queue {queue}")
        if not is_ours:
            await asyncio.sleep(LOOK_EVERY_S / 10)
    is_pending = await queue_exists(connection, journal, settings)
    await declare(connection, _unbound(topology, queue) if is_pending else topology, settings)
    return is_pending


async def copy_past(consumer: str, topology: Topology, settings: Settings) -> None:
    """Copy the past to the queue of a consumer, or wait until another process has.

    Returns when the queue has everything and is bound to its events. A broker that can't be reached
    is tried again; whoever is killed is followed by the next process that calls this.
    """
    pause_s = LOOK_EVERY_S
    while True:
        try:
            if await _attempt(consumer, topology, settings):
                return
            pause_s = LOOK_EVERY_S
        except RabbitflowError as error:
            logger.warning("the past of %s is not copied yet: %s", consumer, error)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
        await asyncio.sleep(pause_s)


async def _attempt(consumer: str, topology: Topology, settings: Settings) -> bool:
    """Copy the past, if nobody else does; return whether it is there."""
    channel = ConfirmedChannel(settings, f"rabbitflow {consumer} back-fill")
    names = Names(settings.namespace)
    journal = names.backfill(consumer)
    try:
        connection = await channel.connection()
        async with _lock(connection, consumer, settings) as is_ours:
            if not await queue_exists(connection, journal, settings):
                return True
            if not is_ours:
                return False
            async with open_stream(connection, journal, FIRST, settings) as reader:
                opened = Journal(journal, reader, channel)
                await opened.read()
                backfill = _Backfill(consumer, topology, channel, connection, opened, settings)
                if not opened.is_complete:
                    await backfill.run()
                    # Bound by both ways, an event still reaches the queue once.
                    await declare(connection, topology, settings)
                    await opened.write({}, is_complete=True)
                    copied = backfill.copies.confirmed
                    logger.info("%s has its past: %d events", consumer, copied)
                await backfill.unbind()
            await _delete(connection, journal, settings)
            return True
    finally:
        await channel.close()


class _Backfill:
    """One attempt, while its lock holds: what is published after the lock's connection is lost
    could be another's to copy."""

    def __init__(
        self,
        consumer: str,
        topology: Topology,
        channel: ConfirmedChannel,
        connection: Connection,
        journal: Journal,
        settings: Settings,
    ) -> None:
        self.copies = Copies(channel, consumer, settings)
        self._names = Names(settings.namespace)
        self._consumer = consumer
        queue = self._names.queue(consumer)
        bound = [binding.exchange for binding in topology.bindings if binding.queue == queue]
        self._exchanges = bound
        self._event_types = [self._names.event_type(exchange) or "" for exchange in bound]
        self._channel = channel
        self._connection = connection
        self._journal = journal
        self._settings = settings
        self._recent = RecentIds()

    async def run(self) -> None:
        """Copy everything that the queue will not get by itself."""
        try:
            if self._journal.is_fresh:
                await self._catch_up()
            await self._journal.write(self.copies.progress)
            await self._bind()
            await asyncio.sleep(GRACE_S)
            mark = new_event_id()
            for event_type in self._event_types:
                await self._set_mark(event_type, mark)
            await asyncio.sleep(GRACE_S)
            await self._journal.read()
            await self._copy(dict.fromkeys(self._event_types, mark))
        finally:
            await self.copies.close()

    async def _catch_up(self) -> None:
        """Copy the bulk while the queue is not bound, so that the past comes before the present."""
        for _ in range(ROUNDS):
            before = self.copies.confirmed
            ends = await note_ends(
                self._connection, self._event_types, self._settings, within_s=SILENT_S
            )
            await self._copy(ends)
            if self.copies.confirmed - before < SHORT_ROUND:
                break

    async def _bind(self) -> None:
        bridge = bridge_topology(self._consumer, self._settings)
        await declare(self._connection, bridge, self._settings)
        await self._each_exchange(
            lambda channel, bridge, exchange: channel.exchange_bind(bridge, exchange)
        )

    async def unbind(self) -> None:
        """Let no live event go by the bridge any more, so that nothing is on its way to it."""
        await self._each_exchange(
            lambda channel, bridge, exchange: channel.exchange_unbind(bridge, exchange)
        )
        # RabbitMQ closes the connection of a publisher whose event is on its way to a queue that is
        # deleted (3.10.8, quorum queues).
        await asyncio.sleep(GRACE_S)

    async def _set_mark(self, event_type: str, mark: str) -> None:
        """Write a mark to the log: the only way to know its end exactly, as streams tell none."""
        properties = Basic.Properties(
            delivery_mode=PERSISTENT, message_id=mark, headers={LOG_MARK: mark}
        )
        await self._channel.publish("", self._names.log(event_type), b"", properties)

    async def _copy(self, ends: Mapping[str, int | str | None]) -> None:
        async with AsyncExitStack() as stack:
            done = {event_type: self._done(event_type) for event_type in ends}
            arguments = {name: FIRST if offset < 0 else offset + 1 for name, offset in done.items()}
            pasts = await open_pasts(stack, self._connection, arguments, ends, self._settings)
            kept = self.copies.confirmed
            async for entry in in_order(pasts):
                if entry.id in self._journal.live_ids or not self._recent.add(entry.id):
                    continue
                if not is_alive(self._connection):
                    raise ConnectionLost("the connection that holds the back-fill's lock is gone")
                await self.copies.send(entry)
                if self.copies.confirmed - kept >= KEEP_EVERY:
                    kept = self.copies.confirmed
                    await self._journal.write(self.copies.progress)
            await self.copies.all_confirmed()
        await self._journal.write(self.copies.progress)

    def _done(self, event_type: str) -> int:
        progress = self.copies.progress.get(event_type)
        return self._journal.progress.get(event_type, -1) if progress is None else progress

    async def _each_exchange(self, call: Callable[[Channel, str, str], Awaitable[object]]) -> None:
        bridge = self._names.backfill(self._consumer)
        async with throwaway_channel(self._connection, self._settings) as channel:
            with lost_connections():
                for exchange in self._exchanges:
                    async with asyncio.timeout(self._settings.connect_timeout_s):
                        await call(channel, bridge, exchange)


@asynccontextmanager
async def _lock(connection: Connection, consumer: str, settings: Settings) -> AsyncIterator[bool]:
    """Take the consumer's lock, or see that another has it. It is a queue that only its connection
    may use, so that the broker frees it when the connection ends, however it ends."""
    lock = Names(settings.namespace).backfill_lock(consumer)
    async with throwaway_channel(connection, settings) as channel:
        with lost_connections():
            try:
                async with asyncio.timeout(settings.connect_timeout_s):
                    await channel.queue_declare(lock, exclusive=True, auto_delete=True)
            except ChannelLockedResource:
                is_ours = False
            else:
                is_ours = True
    try:
        yield is_ours
    finally:
        if is_ours and is_alive(connection):
            async with throwaway_channel(connection, settings) as channel:
                with lost_connections():
                    await channel.queue_delete(lock)


async def _delete(connection: Connection, journal: str, settings: Settings) -> None:
    """Delete the journal, then the exchange that feeds it; what is not there is not missed."""
    async with throwaway_channel(connection, settings) as channel:
        with lost_connections():
            async with asyncio.timeout(settings.connect_timeout_s):
                await channel.queue_delete(journal)
                await channel.exchange_delete(journal)


def _unbound(topology: Topology, queue: str) -> Topology:
    """Return the topology without the bindings of the consumer's queue."""
    others = tuple(binding for binding in topology.bindings if binding.queue != queue)
    return Topology(topology.exchanges, topology.queues, others)
