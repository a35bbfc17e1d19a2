"""How many messages wait in the queues of consumers, asked of the broker again and again.

A child asks for its own consumer. For one that has no child the supervisor starts a process of
this module (:mod:`rabbitflow.worker.counting`): a consumer that died, or was refused, is when
somebody has to know.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from rabbitflow.broker import Connection
from rabbitflow.confirmed import ConfirmedChannel
from rabbitflow.errors import BrokerError
from rabbitflow.inspection import look_at
from rabbitflow.observe.logs import configure_logging
from rabbitflow.settings import Settings
from rabbitflow.topology import RETRY_BUCKETS_S, Names

LOOK_EVERY_S = 5.0
SEARCH_EVERY = 12

Messages = dict[str, dict[str, int]]
"""By consumer, then by state: ready, retry, dead."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Counted:
    """A consumer whose messages are counted.

    Fields:
        name: of the consumer.
        retry_buckets_s: that it is known to use, in seconds.
        partitions: 0 where it keeps no order.
    """

    name: str
    retry_buckets_s: tuple[int, ...]
    partitions: int = 0


class Backlog:
    """Counts messages every ``LOOK_EVERY_S`` seconds.

    Args:
        consumers: whose.
        settings: how long each call to the broker may take, and the names' prefix.
        connection: returns the connection to ask over, or None while there is none. One that
            publishes will not do: the broker stops hearing it in a memory alarm.

    Attributes:
        messages: empty while the broker can't be asked: an old figure would pass for a new one. It
            is replaced and never changed.
    """

    def __init__(
        self,
        consumers: Iterable[Counted],
        settings: Settings,
        connection: Callable[[], Awaitable[Connection | None]],
    ) -> None:
        self.messages: Messages = {}
        self._consumers = tuple(consumers)
        self._buckets_s = {found.name: set(found.retry_buckets_s) for found in self._consumers}
        self._settings = settings
        self._names = Names(settings.namespace)
        self._connection = connection
        self._rounds = 0

    async def watch(self, counted: Callable[[Messages], object] = lambda _: None) -> NoReturn:
        """Count until cancelled; ``counted`` is called with what was found each time."""
        while True:
            try:
                connection = await self._connection()
                self.messages = {} if connection is None else await self._look(connection)
            except BrokerError as error:
                logger.debug("the backlog is not known: %s", error)
                self.messages = {}
            counted(self.messages)
            # Soon again while nothing is known: at the start the connection is on its way.
            await asyncio.sleep(LOOK_EVERY_S if self.messages else LOOK_EVERY_S / 5)

    async def _look(self, connection: Connection) -> Messages:
        # A handler may ask for a delay that its policy never gives, so all are tried at times.
        is_search = self._rounds % SEARCH_EVERY == 0
        counts = await self._count(connection, RETRY_BUCKETS_S if is_search else None)
        if is_search:
            for name, buckets_s in self._buckets_s.items():
                buckets_s |= {b for b in RETRY_BUCKETS_S if self._names.retry(name, b) in counts}
        self._rounds += 1
        return {consumer.name: self._by_state(consumer, counts) for consumer in self._consumers}

    async def _count(
        self, connection: Connection, buckets_s: Iterable[int] | None
    ) -> Mapping[str, int]:
        """Return how many messages wait, by queue, without those that are not there."""
        queues: list[str] = []
        for consumer in self._consumers:
            name = consumer.name
            queues += [*self._ready(consumer), self._names.dead(name)]
            its_buckets_s = sorted(self._buckets_s[name]) if buckets_s is None else buckets_s
            queues += [self._names.retry(name, bucket_s) for bucket_s in its_buckets_s]
        found = await look_at(connection, queues, self._settings)
        return {queue: state.messages for queue, state in found.items()}

    def _ready(self, consumer: Counted) -> Iterator[str]:
        yield self._names.queue(consumer.name)
        for number in range(consumer.partitions):
            yield self._names.partition(consumer.name, number)

    def _by_state(self, consumer: Counted, counts: Mapping[str, int]) -> dict[str, int]:
        names, name = self._names, consumer.name
        return {
            "ready": sum(counts.get(queue, 0) for queue in self._ready(consumer)),
            "retry": sum(counts.get(names.retry(name, b), 0) for b in RETRY_BUCKETS_S),
            "dead": counts.get(names.dead(name), 0),
        }


async def _tell(consumers: Iterable[Counted], settings: Settings) -> None:
    """Count, and tell each time, until the supervisor closes standard input."""
    loop = asyncio.get_running_loop()
    asked = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(asked), sys.stdin)
    channel = ConfirmedChannel(settings, "rabbitflow backlog")
    backlog = Backlog(consumers, settings, channel.connection)
    watching = asyncio.create_task(
        backlog.watch(lambda messages: print(json.dumps(messages), flush=True))  # noqa: T201
    )
    leaving = asyncio.create_task(asked.read(1))
    try:
        done, _ = await asyncio.wait((watching, leaving), return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in (watching, leaving):
            task.cancel()
        await asyncio.gather(watching, leaving, return_exceptions=True)
        await channel.close()


def main() -> None:
    """Read what to count, and count."""
    told: dict[str, Any] = json.loads(sys.stdin.readline())
    configure_logging(told["log_format"], told["log_level"])
    consumers = [
        Counted(name, tuple(buckets_s), partitions)
        for name, buckets_s, partitions in told["consumers"]
    ]
    try:
        asyncio.run(_tell(consumers, Settings(**told["settings"])))
    except BrokenPipeError:
        os._exit(0)  # the supervisor is gone, and nobody reads what is still to be flushed


if __name__ == "__main__":
    main()
