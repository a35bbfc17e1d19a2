"""The embedded broker: start it, look into it, make it fail."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Self
from urllib.parse import quote

from pamqp.commands import Basic

from rabbitflow.devbroker.access import User
from rabbitflow.devbroker.activity import Activity, Counters
from rabbitflow.devbroker.clock import Clock, LoopClock
from rabbitflow.devbroker.connection import Connection, Surroundings
from rabbitflow.devbroker.queue import MessageQueue
from rabbitflow.devbroker.session import Faults
from rabbitflow.devbroker.stream import Queue
from rabbitflow.devbroker.vhost import VirtualHost

GUEST = {"guest": User("guest")}
STOP_WITHIN_S = 2.0


@dataclass(frozen=True, slots=True)
class QueueState:
    """A queue at one moment.

    Fields:
        type: ``classic``, ``quorum`` or ``stream``.
        ready: messages that wait; of a stream, all it keeps.
        unacked: messages that consumers hold.
        held: dead letters that their next queue has not taken yet.
        consumers: how many.
    """

    name: str
    type: str
    ready: int
    unacked: int
    held: int
    consumers: int


@dataclass(frozen=True, slots=True)
class StoredMessage:
    """A message that waits in a queue. Looking at it takes nothing.

    Fields:
        position: in a stream, its offset.
        returns: how often it came back unsettled.
        expires_at: in seconds since the epoch; None where it waits for ever.
    """

    exchange: str
    routing_key: str
    properties: Basic.Properties
    body: bytes
    position: int
    returns: int
    expires_at: float | None


class DevBroker:
    """An AMQP 0-9-1 broker in this process, for development and tests. It keeps nothing on disk.

    ``async with DevBroker() as broker`` starts and stops it.

    Args:
        host: address to listen on.
        port: 0 for any that is free; :attr:`port` and :attr:`url` say which.
        clock: by which messages expire; a VirtualClock lets a test move it.
        heartbeat_clock: by which silent peers are given up. The real time also where messages have
            a virtual one, else five minutes that pass at once would end every connection.
        heartbeat_s: that the broker proposes to its clients.
        users: by name; ``guest`` with the password ``guest`` where not given.
        vhosts: names of the virtual hosts.
    """

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        clock: Clock | None = None,
        heartbeat_clock: Clock | None = None,
        heartbeat_s: int = 60,
        users: Mapping[str, User] | None = None,
        vhosts: Iterable[str] = ("/",),
    ) -> None:
        self.host = host
        self.port = port
        self.clock: Clock = clock or LoopClock()
        self._users = GUEST if users is None else users
        self._activity = Activity()
        self._faults = Faults()
        self._vhosts = {
            name: VirtualHost(name, self.clock, self._activity.counters) for name in vhosts
        }
        self._around = Surroundings(
            users=self._users,
            vhosts=self._vhosts,
            connections=set(),
            activity=self._activity,
            faults=self._faults,
            heartbeat_s=heartbeat_s,
            heartbeat_clock=heartbeat_clock or LoopClock(),
        )
        self._server: asyncio.Server | None = None
        self._was_stopped = False

    async def start(self) -> None:
        """Listen. After :meth:`stop` on the same port again, with what a restart keeps.

        Raises:
            OSError: the port is taken, or the address is not of this machine.
        """
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: Connection(self._around), self.host, self.port
        )
        self.port = self._server.sockets[0].getsockname()[1]
        if self._was_stopped:
            self._was_stopped = False
            for vhost in self._vhosts.values():
                vhost.resume()

    async def stop(self) -> None:
        """Stop listening and end every connection. What a restart of RabbitMQ keeps stays in
        memory: durable queues, what they hold of quorum, streams and persistent messages."""
        if self._server is None:
            return
        server, self._server = self._server, None
        server.close()
        self.drop_connections()
        await self._activity.until(lambda: not self._around.connections, STOP_WITHIN_S)
        await server.wait_closed()
        for vhost in self._vhosts.values():
            vhost.forget_what_is_transient()
            vhost.suspend()
        self._was_stopped = True
        self._activity.touch()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.stop()

    @property
    def url(self) -> str:
        """Where a client connects, with the first user's password."""
        name, user = next(iter(self._users.items()))
        host = f"[{self.host}]" if ":" in self.host else self.host
        credentials = f"{quote(name, safe='')}:{quote(user.password, safe='')}"
        return f"amqp://{credentials}@{host}:{self.port}/"

    # Looking into it

    @property
    def counters(self) -> Counters:
        """What it has done so far."""
        return self._activity.counters

    @property
    def connections(self) -> int:
        """How many clients are connected."""
        return len(self._around.connections)

    def queues(self, vhost: str = "/") -> dict[str, QueueState]:
        """Return every queue, by name."""
        return {
            queue.name: QueueState(
                name=queue.name,
                type=queue.declared.policy.type,
                ready=queue.ready,
                unacked=queue.unacked,
                held=len(queue.held) if isinstance(queue, MessageQueue) else 0,
                consumers=len(queue.consumers),
            )
            for queue in self._vhosts[vhost].queues.values()
        }

    def messages(self, queue: str, vhost: str = "/") -> list[StoredMessage]:
        """Return what waits in a queue, the next first; nothing where there is no such queue."""
        found = self._vhosts[vhost].queues.get(queue)
        return [
            StoredMessage(
                exchange=entry.message.exchange,
                routing_key=entry.message.routing_key,
                properties=entry.message.properties,
                body=entry.message.body,
                position=entry.position,
                returns=entry.returns,
                expires_at=entry.expires_at,
            )
            for entry in ([] if found is None else found.entries)
        ]

    async def until(self, condition: Callable[[], bool], *, within_s: float = 10.0) -> None:
        """Return when ``condition`` holds; it is looked at after everything that happens.

        Raises:
            TimeoutError: not within ``within_s`` seconds of real time.
        """
        await self._activity.until(condition, within_s)

    # Making it fail

    def drop_connections(self) -> int:
        """Reset every connection, as a failing network does; return how many there were."""
        connections = tuple(self._around.connections)
        for connection in connections:
            connection.hush()
        for connection in connections:
            connection.abort()
        return len(connections)

    async def restart(self) -> None:
        """Stop and start again on the same port."""
        await self.stop()
        await self.start()

    def hold_confirms(self) -> None:
        """Keep what is published and confirm nothing, until :meth:`release_confirms`."""
        self._faults.holds_confirms = True

    def release_confirms(self) -> None:
        """Send the confirms that were held, and confirm again from now on."""
        self._faults.holds_confirms = False
        for connection in tuple(self._around.connections):
            connection.confirm()

    def duplicate_next(self, queue: str, times: int = 1, vhost: str = "/") -> None:
        """Lose the next ``times`` acks of a queue: what was handled is delivered again.

        Raises:
            KeyError: there is no such queue that acks could be lost of.
        """
        found: Queue | None = self._vhosts[vhost].queues.get(queue)
        if not isinstance(found, MessageQueue):
            raise KeyError(queue)
        found.lost_acks += times
