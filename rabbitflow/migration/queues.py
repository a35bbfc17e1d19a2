"""One queue being replaced: which step it is at, read off the broker alone, and each step."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from enum import Enum

from aiormq.exceptions import ChannelLockedResource

from rabbitflow.broker import (
    Connection,
    close,
    connect,
    lost_connections,
    open_channel,
    throwaway_channel,
)
from rabbitflow.confirmed import ConfirmedChannel
from rabbitflow.declaration import compare, declare
from rabbitflow.errors import BrokerUnavailable
from rabbitflow.inspection import look_at, queue_exists
from rabbitflow.migration.moving import QUIET_S, Copy, Mover
from rabbitflow.settings import Settings
from rabbitflow.topology import Binding, Queue, Topology, holding

SETTLE_S = 4.0
"""How long a queue is watched, once unbound, before it is deleted, and how long a new one stands
before messages are moved into it. What was routed to a queue earlier is there within milliseconds;
a quorum queue declared half a second before RabbitMQ 3.10.8 was killed came back empty."""

STILL_ARRIVING_AFTER_S = 30.0


class Phase(Enum):
    """Where the replacement of a queue stands. A step that was interrupted is done again."""

    DONE = "has the wanted arguments"
    MISSING = "is not there"
    LEAVING = "has other arguments; its messages are to be taken out"
    GONE = "is deleted; its messages are held"
    RETURNING = "is new; its messages are to come back"


@dataclass(slots=True)
class Progress:
    """Who is told how far a migration is.

    Fields:
        step: called after each step, with what was done.
        moved: called with how many messages were moved.
    """

    step: Callable[[str], None] = lambda done: None
    moved: Callable[[int], None] = lambda count: None


class Bench:
    """Where queues are replaced: the connections, and what is done on them.

    Args:
        connection: consumes, declares and holds the locks.
        copies: publishes, confirmed.
        settings: of the namespace.
        progress: is told of every step.
        settle_s: how long queues are watched, and stand before they are used, in seconds.
    """

    def __init__(
        self,
        connection: Connection,
        copies: ConfirmedChannel,
        settings: Settings,
        progress: Progress,
        settle_s: float,
    ) -> None:
        self.connection = connection
        self.settings = settings
        self.progress = progress
        self.settle_s = settle_s
        self.copies = copies

    @classmethod
    @asynccontextmanager
    async def opened(
        cls, settings: Settings, name: str, progress: Progress, settle_s: float
    ) -> AsyncIterator[Bench]:
        """Connect. Raises as :func:`rabbitflow.broker.connect`."""
        async with AsyncExitStack() as stack:
            connection = await connect(settings, name)
            stack.push_async_callback(close, connection)
            copies = ConfirmedChannel(settings, f"{name} copies")
            stack.push_async_callback(copies.close)
            yield cls(connection, copies, settings, progress, settle_s)

    async def lock(self, lock: str, what: str) -> None:
        """Keep others away from ``what`` until this connection ends.

        Raises:
            BrokerUnavailable: somebody else is at it.
        """
        channel = await open_channel(self.connection, self.settings, confirms=False)
        with lost_connections():
            try:
                await channel.queue_declare(lock, exclusive=True)
            except ChannelLockedResource as error:
                raise BrokerUnavailable(
                    f"another command is at work on {what} just now; wait until it has ended"
                ) from error

    async def exists(self, queue: str) -> bool:
        """Whether a queue is there."""
        return await queue_exists(self.connection, queue, self.settings)

    async def standing(self, queues: Iterable[Queue]) -> frozenset[str]:
        """Return the names of those queues that are there."""
        names = [queue.name for queue in queues]
        return frozenset(await look_at(self.connection, names, self.settings))

    async def begun(self, queues: Iterable[Queue]) -> frozenset[str]:
        """Return the names of those queues whose replacement was begun."""
        names = {holding(queue, self.settings).name: queue.name for queue in queues}
        there = await self.standing(map(Queue, names))
        return frozenset(names[name] for name in there)

    async def phase(self, queue: Queue) -> Phase:
        """Read off the broker where the replacement of a queue stands."""
        is_held = await self.exists(holding(queue, self.settings).name)
        if not await self.exists(queue.name):
            return Phase.GONE if is_held else Phase.MISSING
        if await compare(self.connection, queue, self.settings) is not None:
            return Phase.LEAVING
        return Phase.RETURNING if is_held else Phase.DONE

    async def declare(self, *queues: Queue) -> None:
        """Declare queues."""
        await declare(self.connection, Topology(queues=queues), self.settings)

    async def hold(self, queue: Queue) -> str:
        """Declare the queue that keeps the messages of ``queue``, and return its name.

        One that was declared with other arguments by an earlier attempt does as well.
        """
        stand_in = holding(queue, self.settings)
        if not await self.exists(stand_in.name):
            await self.declare(stand_in)
        return stand_in.name

    async def settle(self) -> None:
        """Wait until what was declared is sure to be kept."""
        await asyncio.sleep(self.settle_s)

    async def bind(self, queue: str, exchanges: Iterable[str]) -> None:
        """Bind a queue to events."""
        bindings = tuple(Binding(queue, exchange) for exchange in exchanges)
        await declare(self.connection, Topology(bindings=bindings), self.settings)

    async def unbind(self, queue: str, exchanges: Iterable[str]) -> None:
        """Unbind a queue from events; one that is not bound stays so."""
        for exchange in exchanges:
            async with throwaway_channel(self.connection, self.settings) as channel:
                with lost_connections():
                    async with asyncio.timeout(self.settings.connect_timeout_s):
                        await channel.queue_unbind(queue, exchange)

    async def delete(self, queue: str) -> None:
        """Delete a queue, if it is there. Only for a queue whose messages are safe."""
        async with throwaway_channel(self.connection, self.settings) as channel:
            with lost_connections():
                async with asyncio.timeout(self.settings.connect_timeout_s):
                    await channel.queue_delete(queue)

    def mover(self, source: str, target: str, copy: Copy, *, is_stream: bool = False) -> Mover:
        """Return what moves the messages of one queue into another."""
        return Mover(
            self.connection,
            self.copies,
            source,
            target,
            copy,
            self.settings,
            self.progress.moved,
            is_stream=is_stream,
        )

    async def empty(self, source: str, target: str, copy: Copy) -> None:
        """Move everything out of a queue that stays, and to which nobody publishes now."""
        async with self.mover(source, target, copy) as mover:
            await mover.until_quiet(QUIET_S, within_s=STILL_ARRIVING_AFTER_S)

    async def remove(
        self, source: str, target: str, copy: Copy, *, quiet_s: float = QUIET_S
    ) -> None:
        """Move everything out of a queue that nothing is routed to any more, and delete it.

        Raises:
            StillArriving: something is routed to it still; it is not deleted.
        """
        async with self.mover(source, target, copy) as mover:
            await mover.until_quiet(quiet_s, within_s=quiet_s + STILL_ARRIVING_AFTER_S)
            self.progress.step(f"{source} is empty")
            await self.delete(source)
            await mover.rest()
        self.progress.step(f"{source} is deleted")
