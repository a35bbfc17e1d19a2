"""Copying past events into one consumer's queue: confirmed, in order, never to anybody else."""

from __future__ import annotations

import asyncio
import time
from collections import deque

from rabbitflow.confirmed import ConfirmedChannel
from rabbitflow.errors import ConfigurationError, Unroutable
from rabbitflow.log.entry import Entry
from rabbitflow.rate import Pacer, Rate
from rabbitflow.settings import Settings
from rabbitflow.topology import Names

WINDOW = 100
"""How many copies may be unconfirmed: also how many may be made twice when we are killed."""

RECENT_IDS = 10_000


class Copies:
    """Puts copies of log entries into a consumer's queue, through the default exchange.

    Args:
        channel: confirms them.
        consumer: whose queue.
        settings: of the namespace.
        rate: of copies; None for as fast as they are confirmed.

    Attributes:
        confirmed: how many copies are safe.
        progress: by event type, the offset up to which everything sent is safe.
    """

    def __init__(
        self,
        channel: ConfirmedChannel,
        consumer: str,
        settings: Settings,
        *,
        rate: Rate | None = None,
    ) -> None:
        self.confirmed = 0
        self.progress: dict[str, int] = {}
        self._channel = channel
        self._consumer = consumer
        self._names = Names(settings.namespace)
        self._pacer = None if rate is None else Pacer(rate)
        self._sent: deque[tuple[Entry, asyncio.Task[None]]] = deque()

    async def send(self, entry: Entry) -> None:
        """Copy an entry; returns while at most :data:`WINDOW` copies are unconfirmed.

        Raises:
            ConfigurationError: the consumer has no queue.
            BrokerError: this copy's or an earlier one's publish failed.
        """
        if self._pacer is not None:
            wait_s = self._pacer.reserve(time.monotonic())
            if wait_s:
                await asyncio.sleep(wait_s)
        self._sent.append((entry, asyncio.create_task(self._publish(entry))))
        while self._sent and (len(self._sent) >= WINDOW or self._sent[0][1].done()):
            await self._confirm_first()

    async def all_confirmed(self) -> None:
        """Return when every copy sent is safe. Raises as :meth:`send`."""
        while self._sent:
            await self._confirm_first()

    async def close(self) -> None:
        """Wait for nothing: what is not confirmed may or may not be in the queue."""
        for _, task in self._sent:
            task.cancel()
        await asyncio.gather(*(task for _, task in self._sent), return_exceptions=True)

    async def _confirm_first(self) -> None:
        entry, task = self._sent[0]
        await asyncio.shield(task)
        self._sent.popleft()
        self.confirmed += 1
        self.progress[entry.event_type] = entry.offset

    async def _publish(self, entry: Entry) -> None:
        queue = self._names.queue(self._consumer)
        try:
            await self._channel.publish("", queue, entry.body, entry.copied(self._names))
        except Unroutable:
            raise ConfigurationError(
                f"there is no queue {queue} on the broker, so no consumer named {self._consumer!r}"
                " ever ran there"
            ) from None


class RecentIds:
    """Remembers the last ids seen: a publisher that got no confirm announces an event again, and
    the log keeps both."""

    def __init__(self, size: int = RECENT_IDS) -> None:
        self._size = size
        self._ids: dict[str, None] = {}

    def add(self, event_id: str) -> bool:
        """Remember an id; return False where it was seen lately."""
        if event_id in self._ids:
            return False
        self._ids[event_id] = None
        if len(self._ids) > self._size:
            del self._ids[next(iter(self._ids))]
        return True
