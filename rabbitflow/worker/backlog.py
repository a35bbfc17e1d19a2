"""How many messages wait in the consumers' queues, asked of the broker by the supervisor.

A child that is dead, or was refused, counts nothing, and that is when somebody has to know.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping

from rabbitflow.broker import (
    Connection,
    close,
    connect,
)
from rabbitflow.errors import BrokerError
from rabbitflow.inspection import look_at
from rabbitflow.settings import Settings
from rabbitflow.topology import RETRY_BUCKETS_S, Names
from rabbitflow.worker.discovery import Found

LOOK_EVERY_S = 5.0
SEARCH_EVERY = 12

logger = logging.getLogger(__name__)


class Backlog:
    """Counts messages every ``LOOK_EVERY_S`` seconds, over one connection.

    Attributes:
        messages: by consumer, then by state: ready, retry, dead. Empty while the broker can't be
            asked: an old figure would pass for a new one. It is replaced and never changed, so any
            thread may read it.
    """

    def __init__(self, settings: Settings) -> None:
        self.messages: Mapping[str, Mapping[str, int]] = {}
        self._settings = settings
        self._names = Names(settings.namespace)

    async def watch(self, consumers: Callable[[], Iterable[Found]]) -> None:
        """Count until cancelled; ``consumers`` are those that are run now."""
        while True:
            try:
                connection = await connect(self._settings, "rabbitflow backlog")
                try:
                    await self._watch_over(connection, consumers)
                finally:
                    await close(connection)
            except BrokerError as error:
                logger.debug("the backlog is not known: %s", error)
            finally:
                self.messages = {}
            await asyncio.sleep(LOOK_EVERY_S)

    async def _watch_over(
        self, connection: Connection, consumers: Callable[[], Iterable[Found]]
    ) -> None:
        unforeseen: dict[str, list[int]] = {}
        rounds = 0
        while True:
            # A handler may ask for a delay that its policy never gives, so all are tried at times.
            is_search = rounds % SEARCH_EVERY == 0
            looked_at = {
                found.name: RETRY_BUCKETS_S
                if is_search
                else {*found.retry_buckets_s, *unforeseen.get(found.name, ())}
                for found in consumers()
            }
            partitions = {found.name: found.partitions for found in consumers()}
            queues = [*self._queues(looked_at), *self._partitions(partitions)]
            counts = await self._count(connection, queues)
            if is_search:
                unforeseen = {
                    name: [b for b in RETRY_BUCKETS_S if self._names.retry(name, b) in counts]
                    for name in looked_at
                }
            self.messages = {
                name: self._by_state(name, partitions.get(name, 0), counts) for name in looked_at
            }
            rounds += 1
            await asyncio.sleep(LOOK_EVERY_S)

    def _queues(self, buckets_s: Mapping[str, Iterable[int]]) -> Iterator[str]:
        for name, its_buckets_s in buckets_s.items():
            yield self._names.queue(name)
            yield self._names.dead(name)
            for bucket_s in its_buckets_s:
                yield self._names.retry(name, bucket_s)

    def _partitions(self, consumers: Mapping[str, int]) -> Iterator[str]:
        for name, partitions in consumers.items():
            for number in range(partitions):
                yield self._names.partition(name, number)

    def _by_state(
        self, consumer: str, partitions: int, counts: Mapping[str, int]
    ) -> dict[str, int]:
        names = self._names
        ready = [names.queue(consumer), *self._partitions({consumer: partitions})]
        return {
            "ready": sum(counts.get(queue, 0) for queue in ready),
            "retry": sum(counts.get(names.retry(consumer, b), 0) for b in RETRY_BUCKETS_S),
            "dead": counts.get(names.dead(consumer), 0),
        }

    async def _count(self, connection: Connection, queues: Iterable[str]) -> dict[str, int]:
        """Return how many messages wait, by queue, without those that are not there."""
        found = await look_at(connection, queues, self._settings)
        return {queue: state.messages for queue, state in found.items()}
