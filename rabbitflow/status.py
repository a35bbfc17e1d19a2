"""How consumers stand at the broker: what waits, what failed, who is there."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

from rabbitflow.broker import Connection
from rabbitflow.inspection import look_at
from rabbitflow.settings import Settings
from rabbitflow.topology import RETRY_BUCKETS_S, Names

FORGET_AFTER_S = 60.0


@dataclass(frozen=True, slots=True)
class ConsumerStatus:
    """One consumer, as the broker counts it.

    Fields:
        consumer: its name.
        ready: events that wait in its queue and its partitions; those being handled are not
            counted. None where it has no queue.
        retries: events that wait for another attempt, by the bucket in seconds; only those buckets
            in which some do.
        dead: its dead letters.
        consuming: how many consumers the broker hands its events to.
        workers: how many of our processes may hold events of it.
        is_paused: whether an operator paused it.
        is_migrating: whether its queues are being replaced.
    """

    consumer: str
    ready: int | None
    retries: Mapping[int, int]
    dead: int
    consuming: int
    workers: int
    is_paused: bool
    is_migrating: bool

    @property
    def state(self) -> str:
        """The one word that says whether somebody has to look."""
        if self.ready is None:
            return "missing"
        if self.is_migrating:
            return "migrating"
        if self.is_paused:
            return "paused"
        if self.consuming:
            return "running"
        return "holding back" if self.workers else "absent"


class Lookout:
    """Looks at consumers again and again.

    Args:
        connection: to the broker.
        consumers: by name, into how many partitions its events are spread; 0 for none.
        settings: of the namespace.

    RabbitMQ writes a line to its log for each queue that it is asked for and does not have. So
    retry queues that were not there are looked for again only after ``FORGET_AFTER_S`` seconds.
    """

    def __init__(
        self, connection: Connection, consumers: Mapping[str, int], settings: Settings
    ) -> None:
        self._connection = connection
        self._consumers = consumers
        self._settings = settings
        self._absent: set[str] = set()
        self._forget_at = 0.0

    async def look(self) -> list[ConsumerStatus]:
        """Return how each consumer stands; needs no permission.

        Raises:
            ConnectionLost: the connection ended.
        """
        now = time.monotonic()
        if now >= self._forget_at:
            self._absent.clear()
            self._forget_at = now + FORGET_AFTER_S
        return [await self._look_at(*consumer) for consumer in self._consumers.items()]

    async def _look_at(self, consumer: str, partitions: int) -> ConsumerStatus:
        names = Names(self._settings.namespace)
        queue, dead, workers = names.queue(consumer), names.dead(consumer), names.workers(consumer)
        paused, migrating = names.paused(consumer), names.migrating(consumer)
        buckets = {names.retry(consumer, bucket_s): bucket_s for bucket_s in RETRY_BUCKETS_S}
        ready = [queue, *(names.partition(consumer, number) for number in range(partitions))]
        wanted = [*ready, dead, workers, paused, migrating]
        wanted += [name for name in buckets if name not in self._absent]
        found = await look_at(self._connection, wanted, self._settings)
        self._absent |= buckets.keys() - found.keys()
        return ConsumerStatus(
            consumer=consumer,
            ready=sum(found[name].messages for name in ready if name in found)
            if queue in found
            else None,
            retries={
                bucket_s: found[name].messages
                for name, bucket_s in buckets.items()
                if name in found and found[name].messages
            },
            dead=found[dead].messages if dead in found else 0,
            consuming=found[queue].consumers if queue in found else 0,
            workers=found[workers].consumers if workers in found else 0,
            is_paused=paused in found,
            is_migrating=migrating in found,
        )
