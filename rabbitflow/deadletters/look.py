"""Looking at a dead-letter queue and leaving every message in place, and in order.

AMQP has no way to peek: a message is looked at by taking it without an ack and giving it back.
Measured on RabbitMQ 3.10.8, a quorum queue gives messages back to its front in the order of a
channel's only consumer when that channel is closed; a nack, or a channel whose consumer was
registered more than once, mixes them up. And what was given back once is given back *behind* the
other returned ones, so a look that stops half-way turns the queue round. Hence the two rules
here: one consumer a channel, and a look always goes to the end of what was there when it began.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from aiormq.abc import DeliveredMessage
from aiormq.exceptions import ChannelAccessRefused, ChannelLockedResource

from rabbitflow.broker import (
    Channel,
    Connection,
    ConnectionLost,
    NotFound,
    close,
    connect,
    lost_connections,
    open_channel,
    throwaway_channel,
)
from rabbitflow.confirmed import ConfirmedChannel
from rabbitflow.deadletters.letter import Letter
from rabbitflow.errors import BrokerError, ConfigurationError
from rabbitflow.inspection import taken_for_empty
from rabbitflow.settings import Settings
from rabbitflow.topology import HOLDING_DELIVERY_LIMIT, Names

AGED = HOLDING_DELIVERY_LIMIT // 2
"""A message looked at so often is copied anew: at the queue's limit the broker would drop it."""

LOCK_WITHIN_S = 10.0
FIRST_WINDOW = 64
LARGEST_WINDOW = 4096
WINDOW_BYTES = 32 * 1024 * 1024
"""About what is in memory at once, whatever the queue holds."""
PATIENCE_S = 3.0
"""What was counted is ready and sent at once; where nothing comes, somebody else took it."""
RETURNED_WITHIN_S = 5.0
SAFE_ACKS = 16
"""So few acks of one channel are never held back by the broker, which does so from 32 on."""

logger = logging.getLogger(__name__)


class NoDeadLetterQueue(ConfigurationError):
    """The consumer has no dead-letter queue on this broker."""


class InUse(BrokerError):
    """Somebody else works on the same dead letters."""


@dataclass(slots=True)
class _Window:
    """Messages held on a channel of their own; to close the channel gives them back in order."""

    channel: Channel
    messages: list[DeliveredMessage] = field(default_factory=list)
    removed: int = 0


@dataclass(frozen=True, slots=True)
class Held:
    """A dead letter in hand: it goes back to its place unless it is removed."""

    letter: Letter
    window: _Window
    tag: int


class Look:
    """One look at a consumer's dead letters, from the first to the last that was there.

    ``async with Look(…) as look: async for held in look: …``. While it lasts nobody else can look;
    when it ends everything that was not removed is back in its place. Killed in the middle it
    loses nothing either, though the broker may then give the messages back in another order.

    Args:
        consumer: whose dead letters.
        settings: where, and how long each call to the broker may take.

    Attributes:
        count: how many were there when it began.
        copies: confirms copies; its connection is opened when first used.

    Raises:
        NoDeadLetterQueue: there is no such queue.
        InUse: somebody else has been looking for ``LOCK_WITHIN_S`` seconds.
        BrokerError: the broker can't be reached, or refuses.
    """

    def __init__(self, consumer: str, settings: Settings) -> None:
        name = f"rabbitflow dlq {consumer}"
        self.count = 0
        self.copies = ConfirmedChannel(settings, name)
        self._consumer = consumer
        self._settings = settings
        self._names = Names(settings.namespace)
        self._queue = self._names.dead(consumer)
        self._connection_name = name
        self._connection: Connection | None = None
        self._windows: list[_Window] = []
        self._seen = 0
        self._removed = 0

    async def __aenter__(self) -> Self:
        connection = await connect(self._settings, self._connection_name)
        try:
            await self._lock(connection)
            self.count = await self._depth(connection)
            if not self.count:
                self.count = await taken_for_empty(connection, self._queue, self._settings)
        except BaseException:
            await close(connection)
            raise
        self._connection = connection
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        connection = self._connection
        assert connection is not None
        try:
            if error is None:
                await self._give_back(connection)
            else:
                # What went wrong is told; the messages are the broker's again either way.
                with suppress(BrokerError):
                    await self._give_back(connection)
        finally:
            await self.copies.close()
            await close(connection)

    async def __aiter__(self) -> AsyncIterator[Held]:
        size = FIRST_WINDOW
        while self._seen < self.count:
            window = await self._take(min(size, self.count - self._seen))
            if not window.messages:
                return
            self._seen += len(window.messages)
            size = _next_size(window.messages)
            # Taken out one by one: a window handled slowly need not be kept whole.
            window.messages.reverse()
            while window.messages:
                message = window.messages.pop()
                held = self._held(message, window)
                if held.letter.times_held >= AGED:
                    await self._renew(held)
                else:
                    yield held

    async def remove(self, held: Held) -> None:
        """Ack a dead letter: the broker forgets it. Only after what it became is safe.

        Raises:
            ConnectionLost: whether it took effect is not known.
        """
        with lost_connections():
            await held.window.channel.basic_ack(held.tag)
        held.window.removed += 1
        self._removed += 1

    async def _give_back(self, connection: Connection) -> None:
        """Go to the end, so that all of them are held; then close the channels in their order."""
        async for _ in self:
            pass
        for window in self._windows:
            # All of them before any is closed: what is given back must not be taken by a get.
            if window.removed >= SAFE_ACKS:
                await self._settle(window)
        for window in self._windows:
            with lost_connections():
                async with asyncio.timeout(self._settings.connect_timeout_s):
                    await window.channel.close()
        await self._returned(connection)

    async def _settle(self, window: _Window) -> None:
        """Return when the queue has taken the acks of a window.

        A channel of RabbitMQ holds acks to a quorum queue back while 32 are under way, and forgets
        them when it is closed then: 243 of 3,000 were measured to come back. The queue answers a
        get after everything the channel has sent it, and the second get comes after the channel
        has sent what it held back. What a get may take is new, and goes back before the others.
        """
        with lost_connections():
            async with asyncio.timeout(self._settings.connect_timeout_s):
                for _ in range(2):
                    await window.channel.basic_get(self._queue)

    async def _returned(self, connection: Connection) -> None:
        """Wait until the broker shows them again, so that the next look does not miss one."""
        deadline = time.monotonic() + RETURNED_WITHIN_S
        while await self._depth(connection) < self.count - self._removed:
            if time.monotonic() > deadline:
                return
            await asyncio.sleep(0.01)

    async def _take(self, size: int) -> _Window:
        """Take the next ``size`` messages, on a channel of their own."""
        assert self._connection is not None
        channel = await open_channel(self._connection, self._settings, confirms=False)
        window = _Window(channel)
        self._windows.append(window)
        arrived = asyncio.Event()
        channel.closing.add_done_callback(lambda closing: arrived.set())

        async def take(message: DeliveredMessage) -> None:
            window.messages.append(message)
            arrived.set()

        with lost_connections():
            async with asyncio.timeout(self._settings.connect_timeout_s):
                await channel.basic_qos(prefetch_count=size)
                consuming = await channel.basic_consume(self._queue, take)
        while len(window.messages) < size and not channel.is_closed:
            arrived.clear()
            try:
                async with asyncio.timeout(PATIENCE_S):
                    await arrived.wait()
            except TimeoutError:
                break
        if channel.is_closed:
            raise ConnectionLost(f"the broker ended the look at {self._queue}")
        with lost_connections():
            async with asyncio.timeout(self._settings.connect_timeout_s):
                await channel.basic_cancel(consuming.consumer_tag or "")
        return window

    def _held(self, message: DeliveredMessage, window: _Window) -> Held:
        letter = Letter.read(message.body, message.header.properties, self._names)
        return Held(letter, window, message.delivery_tag or 0)

    async def _renew(self, held: Held) -> None:
        """Copy a message before the queue's delivery limit ends it. The copy is read later on in
        this same look, as the last of them."""
        letter = held.letter
        await self.copies.publish("", self._queue, letter.body, letter.kept())
        await self.remove(held)
        self.count += 1

    async def _lock(self, connection: Connection) -> None:
        """Hold a queue that belongs to this connection alone, and goes with it."""
        deadline = time.monotonic() + LOCK_WITHIN_S
        while not await self._locked(connection):
            if time.monotonic() > deadline:
                raise InUse(
                    f"another command is at work on the dead letters of {self._consumer};"
                    " try again when it has ended"
                )
            await asyncio.sleep(0.1)

    async def _locked(self, connection: Connection) -> bool:
        lock = self._names.dead_lock(self._consumer)
        async with throwaway_channel(connection, self._settings) as channel:
            with lost_connections():
                try:
                    async with asyncio.timeout(self._settings.connect_timeout_s):
                        await channel.queue_declare(lock, exclusive=True)
                except ChannelLockedResource:
                    return False
                except ChannelAccessRefused:
                    # Who may only read and write may look all the same.
                    logger.warning("this user may declare no queue, so nothing keeps others away")
        return True

    async def _depth(self, connection: Connection) -> int:
        try:
            async with throwaway_channel(connection, self._settings) as channel:
                with lost_connections():
                    async with asyncio.timeout(self._settings.connect_timeout_s):
                        found = await channel.queue_declare(self._queue, passive=True)
        except NotFound:
            raise NoDeadLetterQueue(
                f"{self._settings.shown_url} has no queue {self._queue}, so no consumer named"
                f" {self._consumer!r} ever ran there"
            ) from None
        return found.message_count or 0


def _next_size(messages: list[DeliveredMessage]) -> int:
    mean_bytes = sum(len(message.body) for message in messages) / len(messages) + 1024
    return max(1, min(LARGEST_WINDOW, int(WINDOW_BYTES / mean_bytes)))
