"""Looking at what stands on the broker, over AMQP alone, without changing any of it."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from pamqp.commands import Basic

from rabbitflow.broker import Connection, NotFound, lost_connections, throwaway_channel
from rabbitflow.declaration import Mismatch, compare
from rabbitflow.settings import Settings
from rabbitflow.topology import Exchange, Queue, Topology

# A queue may differ in every argument that RabbitMQ compares; there are fewer than this.
_MOST_DIFFERENCES = 20


@dataclass(frozen=True, slots=True)
class QueueState:
    """A queue as a passive declaration shows it.

    Fields:
        messages: that wait to be delivered; those handed out and not settled are not counted.
        consumers: that are registered on it.
    """

    messages: int
    consumers: int


@dataclass(frozen=True, slots=True)
class Difference:
    """What the broker has otherwise than ``Topology`` says.

    Fields:
        missing: exchanges and queues that are not there.
        mismatches: arguments that differ, all of them.
    """

    missing: tuple[Exchange | Queue, ...] = field(default=())
    mismatches: tuple[Mismatch, ...] = field(default=())

    def __bool__(self) -> bool:
        return bool(self.missing or self.mismatches)

    def queues(self) -> frozenset[str]:
        """The queues that have other arguments."""
        return frozenset(found.name for found in self.mismatches if found.kind == "queue")


async def look(connection: Connection, queue: str, settings: Settings) -> QueueState | None:
    """Return how a queue stands, or None where there is none. Raises as :func:`look_at`."""
    return (await look_at(connection, (queue,), settings)).get(queue)


async def queue_exists(connection: Connection, queue: str, settings: Settings) -> bool:
    """Whether the broker has a queue of this name. Raises as :func:`look_at`."""
    return await look(connection, queue, settings) is not None


async def look_at(
    connection: Connection, queues: Iterable[str], settings: Settings
) -> dict[str, QueueState]:
    """Return how queues stand, without those that are not there; needs no permission.

    Raises:
        ConnectionLost: the connection ended.
    """
    states: dict[str, QueueState] = {}
    left = deque(queues)
    while left:
        try:
            # One channel for all, until the broker closes it because a queue is missing.
            async with throwaway_channel(connection, settings) as channel:
                while left:
                    name = left.popleft()
                    with lost_connections():
                        async with asyncio.timeout(settings.connect_timeout_s):
                            found = await channel.queue_declare(name, passive=True)
                    states[name] = QueueState(found.message_count or 0, found.consumer_count or 0)
        except NotFound:
            continue
    return states


async def taken_for_empty(connection: Connection, queue: str, settings: Settings) -> int:
    """Return how many messages are in a queue that a look showed as empty: none, most of the time.

    A quorum queue whose leader does not answer within 250 ms is shown as empty, as right after the
    start of its broker (``rabbit_quorum_queue:stat`` of RabbitMQ 3.10). A get waits for the leader,
    and says what is left beside the message that it takes, which goes back at once. A queue with a
    single active consumer refuses it.

    Raises:
        ConnectionLost: the connection ended, or the leader stays silent.
    """
    async with throwaway_channel(connection, settings) as channel:
        with lost_connections():
            async with asyncio.timeout(settings.connect_timeout_s):
                found = (await channel.basic_get(queue)).delivery
    return (found.message_count or 0) + 1 if isinstance(found, Basic.GetOk) else 0


async def exchange_exists(connection: Connection, exchange: str, settings: Settings) -> bool:
    """Whether an exchange is there; needs no permission. Raises as :func:`look`."""
    try:
        async with throwaway_channel(connection, settings) as channel:
            with lost_connections():
                async with asyncio.timeout(settings.connect_timeout_s):
                    await channel.exchange_declare(exchange, passive=True)
    except NotFound:
        return False
    return True


async def difference(connection: Connection, topology: Topology, settings: Settings) -> Difference:
    """Return what is missing and what has other arguments. Bindings can't be read over AMQP.

    RabbitMQ names one differing argument at a time. Each is set to what the broker has, and the
    declaration repeated, until nothing differs. What is missing is not declared.

    Raises:
        AccessRefused: comparing takes the permission to configure.
        ConnectionLost: the connection ended.
    """
    missing: list[Exchange | Queue] = []
    mismatches: list[Mismatch] = []
    every: tuple[Exchange | Queue, ...] = (*topology.exchanges, *topology.queues)
    for stands in every:
        found = await _differences(connection, stands, settings)
        if found is None:
            missing.append(stands)
        else:
            mismatches += found
    return Difference(tuple(missing), tuple(mismatches))


async def _differences(
    connection: Connection, stands: Exchange | Queue, settings: Settings
) -> list[Mismatch] | None:
    """Return the arguments that differ, or None where it is missing."""
    if isinstance(stands, Exchange):
        if not await exchange_exists(connection, stands.name, settings):
            return None
        mismatch = await compare(connection, stands, settings)
        return [] if mismatch is None else [mismatch]
    if await look(connection, stands.name, settings) is None:
        return None
    found: list[Mismatch] = []
    queue = stands
    for _ in range(_MOST_DIFFERENCES):
        mismatch = await compare(connection, queue, settings)
        if mismatch is None:
            break
        found.append(mismatch)
        if not mismatch.argument.startswith("x-"):
            break  # durable, auto_delete: no argument that could be set to the broker's value
        arguments = dict(queue.arguments)
        arguments.pop(mismatch.argument, None)
        if mismatch.current_value is not None:
            arguments[mismatch.argument] = mismatch.current_value
        queue = Queue(queue.name, arguments)
    return found
