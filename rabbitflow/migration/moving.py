"""Moving every message of one queue into another: copied, confirmed, then acked."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

from aiormq.abc import DeliveredMessage
from pamqp.commands import Basic

from rabbitflow.broker import Channel, Connection, ConnectionLost, lost_connections, open_channel
from rabbitflow.confirmed import ConfirmedChannel
from rabbitflow.errors import BrokerUnavailable
from rabbitflow.inspection import look
from rabbitflow.settings import Settings
from rabbitflow.topology import FROM_FIRST

WINDOW = 500
"""How many messages are on their way at once; so many are copied twice after a kill -9."""

QUIET_S = 0.1
"""After so long without a message it is worth asking the broker whether the source is empty."""

STALLED_S = 30.0
_ROUNDS = 10

Copy = Callable[[DeliveredMessage], Basic.Properties | None]
"""Returns the properties of a message's copy, or None for a message that needs none."""


class Mover:
    """Takes messages off one queue and puts copies into another, as long as it is open.

    It stays registered as a consumer until it is closed. So whatever reaches the source before the
    source is deleted is handed to it, and kept, although the source is gone by then.

    Args:
        connection: consumes.
        copies: publishes, with confirms, over a connection of its own.
        source: the queue to empty. A stream is read from its first message, and stays as it is.
        target: the queue to fill.
        copy: makes the copy's properties.
        settings: how long each call to the broker may take.
        moved: called with the number of messages after each batch.
    """

    def __init__(
        self,
        connection: Connection,
        copies: ConfirmedChannel,
        source: str,
        target: str,
        copy: Copy,
        settings: Settings,
        moved: Callable[[int], None] | None = None,
        *,
        is_stream: bool = False,
    ) -> None:
        self._connection = connection
        self._copies = copies
        self._source = source
        self._target = target
        self._copy = copy
        self._settings = settings
        self._moved = moved or (lambda count: None)
        self._is_stream = is_stream
        self._channel: Channel | None = None
        self._arrived: deque[DeliveredMessage] = deque()
        self._told = asyncio.Event()
        self._cancelled = asyncio.Event()

    async def __aenter__(self) -> Self:
        channel = await open_channel(self._connection, self._settings, confirms=False)
        self._channel = channel
        channel.closing.add_done_callback(lambda _: self._told.set())
        channel.on_consumer_cancel_callbacks.add(lambda _: self._cancelled.set())
        await self._ask_for(WINDOW)
        with lost_connections():
            async with asyncio.timeout(self._settings.connect_timeout_s):
                await channel.basic_consume(
                    self._source,
                    self._arrive,
                    arguments={**FROM_FIRST} if self._is_stream else None,
                )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # What is open goes back to its queue.
        if self._channel is not None and not self._channel.is_closed:
            with lost_connections():
                async with asyncio.timeout(self._settings.connect_timeout_s):
                    await self._channel.close()

    async def until_quiet(self, quiet_s: float, *, within_s: float | None = None) -> None:
        """Move until the source is empty, and nothing has come for ``quiet_s`` seconds.

        Args:
            within_s: once the source was empty for the first time, how long it may take.

        Raises:
            StillArriving: messages kept coming for longer.
            BrokerUnavailable: nothing came for ``STALLED_S`` seconds, and it is not empty.
            BrokerError: a copy was not confirmed; its message stays in the source.
        """
        emptied_at: float | None = None
        moved_at = time.monotonic()
        while True:
            batch = await self._next(quiet_s)
            if batch:
                await self._move(batch)
                moved_at = time.monotonic()
            elif await self._is_empty():
                return
            elif time.monotonic() - moved_at > quiet_s + STALLED_S:
                raise self._stalled()
            if within_s is None:
                continue
            now = time.monotonic()
            if emptied_at is None and len(batch) < WINDOW and await self._is_empty():
                emptied_at = now
            if emptied_at is not None and now - emptied_at > within_s:
                raise StillArriving(self._source)

    async def until(self, done: Callable[[], bool]) -> None:
        """Move until ``done()``, which is asked after each batch.

        Raises:
            BrokerUnavailable: nothing came for ``STALLED_S`` seconds.
        """
        while not done():
            batch = await self._next(STALLED_S)
            if not batch:
                raise self._stalled()
            await self._move(batch)

    async def until_caught_up(self) -> None:
        """Move what waits in the source now, and what came meanwhile, but for a few.

        It ends although others publish to the source faster than it is emptied.
        """
        for _ in range(_ROUNDS):
            left = await self._waiting()
            is_last = left <= WINDOW
            while left > 0:
                batch = await self._next(QUIET_S)
                await self._move(batch)
                left = left - len(batch) if batch else min(left, await self._waiting())
            if is_last:
                return

    def _stalled(self) -> BrokerUnavailable:
        return BrokerUnavailable(
            f"{self._source} gave nothing for {STALLED_S:g} s, and its end is not reached;"
            " run the same command again"
        )

    async def _waiting(self) -> int:
        found = await look(self._connection, self._source, self._settings)
        return 0 if found is None else found.messages + len(self._arrived)

    async def rest(self) -> None:
        """Move what was handed out until the source was deleted.

        The broker says that a queue is gone after everything that was in it.
        """
        async with asyncio.timeout(self._settings.connect_timeout_s):
            await self._cancelled.wait()
        while batch := await self._next(0):
            await self._move(batch)

    async def _is_empty(self) -> bool:
        found = await look(self._connection, self._source, self._settings)
        if found is not None and (found.messages or not found.consumers):
            # A quorum queue whose leader is silent is shown without a message and without a
            # consumer, and we are one.
            return False
        # Handed to us and on their way? The answer to this comes after them.
        await self._ask_for(WINDOW)
        return not self._arrived

    async def _ask_for(self, prefetch: int) -> None:
        assert self._channel is not None
        with lost_connections():
            async with asyncio.timeout(self._settings.connect_timeout_s):
                await self._channel.basic_qos(prefetch_count=prefetch)

    async def _next(self, quiet_s: float) -> list[DeliveredMessage]:
        """Return what has arrived; nothing after ``quiet_s`` seconds in which nothing did."""
        deadline = time.monotonic() + quiet_s
        while not self._arrived:
            self._told.clear()
            if self._channel is None or self._channel.is_closed:
                raise ConnectionLost(f"the channel that empties {self._source} was closed")
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                return []
            try:
                async with asyncio.timeout(left_s):
                    await self._told.wait()
            except TimeoutError:
                return []
        return [self._arrived.popleft() for _ in range(min(WINDOW, len(self._arrived)))]

    async def _move(self, batch: Sequence[DeliveredMessage]) -> None:
        if not batch:
            return
        # In one turn of the loop, so that the copies leave in the order of the originals.
        done = await asyncio.gather(*map(self._publish, batch), return_exceptions=True)
        for outcome in done:
            if isinstance(outcome, BaseException):
                raise outcome
        assert self._channel is not None
        with lost_connections():
            tag = batch[-1].delivery.delivery_tag  # type: ignore[union-attr]
            await self._channel.basic_ack(tag, multiple=True, wait=True)  # type: ignore[arg-type]
        self._moved(len(batch))

    async def _publish(self, message: DeliveredMessage) -> None:
        properties = self._copy(message)
        if properties is not None:
            await self._copies.publish("", self._target, message.body, properties)

    async def _arrive(self, message: DeliveredMessage) -> None:
        self._arrived.append(message)
        self._told.set()


class StillArriving(BrokerUnavailable):
    """Messages keep coming into a queue that nobody should publish to any more."""

    def __init__(self, queue: str) -> None:
        super().__init__(
            f"messages keep coming into {queue}, which was unbound from all of its events: it has"
            " another binding (rabbitmqctl list_bindings), or a client publishes to it; stop that,"
            " or name the event with --event, then run the same command again"
        )
        self.queue = queue
