"""How consumers stand at the broker: what waits, what failed, who is there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from rabbitflow.broker import Connection
from rabbitflow.inspection import look_at
from rabbitflow.settings import Settings
from rabbitflow.topology import RETRY_BUCKETS_S, Names


@dataclass(frozen=True, slots=True)
class ConsumerStatus:
    """One consumer, as the broker counts it.

    Fields:
        consumer: its name.
        ready: events that wait in its queue; those being handled are not counted. None where it
            has no queue.
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


async def status_of(
    connection: Connection, consumers: Iterable[str], settings: Settings
) -> list[ConsumerStatus]:
    """Return how each of ``consumers`` stands; needs no permission.

    Raises:
        ConnectionLost: the connection ended.
    """
    return [await _status_of(connection, consumer, settings) for consumer in consumers]


async def _status_of(connection: Connection, consumer: str, settings: Settings) -> ConsumerStatus:
    names = Names(settings.namespace)
    queue, dead, workers = names.queue(consumer), names.dead(consumer), names.workers(consumer)
    buckets = {names.retry(consumer, bucket_s): bucket_s for bucket_s in RETRY_BUCKETS_S}
    marks = (names.paused(consumer), names.migrating(consumer))
    found = await look_at(connection, (queue, dead, workers, *marks, *buckets), settings)
    return ConsumerStatus(
        consumer=consumer,
        ready=found[queue].messages if queue in found else None,
        retries={
            bucket_s: found[name].messages
            for name, bucket_s in buckets.items()
            if name in found and found[name].messages
        },
        dead=found[dead].messages if dead in found else 0,
        consuming=found[queue].consumers if queue in found else 0,
        workers=found[workers].consumers if workers in found else 0,
        is_paused=marks[0] in found,
        is_migrating=marks[1] in found,
    )
