"""What a consumer needs on the broker: declared, verified, put back when it is missing."""

from __future__ import annotations

import asyncio
import logging

from rabbitflow.consumer import Consumer
from rabbitflow.declaration import declare, verify
from rabbitflow.log import backfill
from rabbitflow.publisher import Publisher
from rabbitflow.settings import Settings
from rabbitflow.topology import Topology, consumer_topology

logger = logging.getLogger(__name__)


class Provision:
    """Sees to the queues, exchanges and bindings of one consumer, and to its past where it has one.

    Args:
        consumer: whose.
        settings: whether to declare, or only to look.
        publisher: over whose connection.
    """

    def __init__(self, consumer: Consumer, settings: Settings, publisher: Publisher) -> None:
        self._consumer = consumer
        self._settings = settings
        self._publisher = publisher
        self._retry_buckets_s = consumer.retry_buckets_s()
        self._lacks_past = asyncio.Event()
        self._turn = asyncio.Lock()
        self._begun = 0
        self._declared_s: tuple[int, ...] = ()

    async def provide(self) -> None:
        """Declare everything; with ``declare`` turned off only look whether it is there.

        Raises:
            TopologyMismatch: something exists with other arguments.
            ConfigurationError: something is missing that may not be declared.
            BrokerError: the broker can't be reached, or refuses.
        """
        async with self._turn:
            await self._provide()

    async def provide_again(self, bucket_s: int | None) -> None:
        """:meth:`provide` what was missing when it was needed, be it a retry bucket of ``bucket_s``
        seconds that was not foreseen. For all who miss something at once it is done once."""
        is_foreseen = bucket_s is None or bucket_s in self._retry_buckets_s
        if bucket_s is not None and not is_foreseen:
            self._retry_buckets_s.append(bucket_s)
        is_under_way = self._turn.locked() and (bucket_s is None or bucket_s in self._declared_s)
        begun = self._begun
        async with self._turn:
            if is_under_way or self._begun > begun:
                return
            if is_foreseen:
                logger.warning(
                    "%s misses a queue of its own; declaring it again", self._consumer.name
                )
            else:
                logger.info("%s needs a queue for retries of %d s", self._consumer.name, bucket_s)
            await self._provide()

    async def _provide(self) -> None:
        self._begun += 1
        self._declared_s = tuple(self._retry_buckets_s)
        consumer, settings, topology = self._consumer, self._settings, self._topology()
        connection = await self._publisher.channel.connection()
        if consumer.from_beginning:
            if await backfill.begin(connection, consumer.name, topology, settings):
                self._lacks_past.set()
        elif settings.declare:
            await declare(connection, topology, settings)
        else:
            await verify(connection, topology, settings)

    async def copy_past(self) -> None:
        """See to it, whenever the queue was made anew, that the past is copied to it."""
        while True:
            await self._lacks_past.wait()
            await backfill.copy_past(self._consumer.name, self._topology(), self._settings)
            self._lacks_past.clear()

    def _topology(self) -> Topology:
        consumer = self._consumer
        return consumer_topology(
            consumer.name,
            consumer.event_types,
            self._retry_buckets_s,
            self._settings,
            consumer.partitions,
        )
