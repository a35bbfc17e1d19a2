"""A plain AMQP client on aiormq: what any client of a broker sees, with nothing of ours between."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiormq
from aiormq.abc import AbstractChannel, AbstractConnection, DeliveredMessage
from aiormq.exceptions import AMQPError
from pamqp.commands import Basic, Queue

from tests.harness.waiting import eventually


def headers_of(message: DeliveredMessage) -> dict[str, Any]:
    """The headers of a message."""
    return dict(message.header.properties.headers or {})


@dataclass
class Inbox:
    """What a consumer got, in the order in which it came."""

    channel: AbstractChannel
    tag: str
    messages: list[DeliveredMessage] = field(default_factory=list)

    @property
    def bodies(self) -> list[bytes]:
        """Of all of them."""
        return [message.body for message in self.messages]

    async def has(self, count: int) -> list[DeliveredMessage]:
        """Wait for ``count`` messages."""
        await eventually(lambda: len(self.messages) >= count, what=f"{count} of {self.bodies}")
        return self.messages


class Client:
    """One connection; it removes at the end what it declared."""

    def __init__(self, connection: AbstractConnection) -> None:
        self.connection = connection
        self._prefix = f"conformance-{secrets.token_hex(4)}"
        self._declared: list[tuple[str, str]] = []
        self._channel: AbstractChannel | None = None

    def name(self, what: str = "q") -> str:
        """A name of this test's own."""
        return f"{self._prefix}.{what}"

    async def channel(self, *, confirms: bool = True) -> AbstractChannel:
        """A channel for one purpose; a mandatory message that comes back raises nothing."""
        return await self.connection.channel(publisher_confirms=confirms, on_return_raises=False)

    async def shared(self) -> AbstractChannel:
        """The channel for what will not fail; on a new connection where the broker ended it."""
        if self.connection.is_closed:
            self.connection = await aiormq.connect(self.connection.url)
        if self._channel is None or self._channel.is_closed:
            self._channel = await self.channel()
        return self._channel

    async def queue(self, what: str = "q", kind: str = "classic", **arguments: Any) -> str:
        """Declare a durable queue; ``x_message_ttl=5`` is an argument."""
        name = self.name(what)
        await self.declare(name, kind, **arguments)
        return name

    async def dead_lettering(self, kind: str = "classic", **arguments: Any) -> tuple[str, str]:
        """Declare a queue and the one its dead letters go to."""
        dead = await self.queue("dead")
        queue = await self.queue(
            kind=kind, x_dead_letter_exchange="", x_dead_letter_routing_key=dead, **arguments
        )
        return queue, dead

    async def declare(
        self,
        name: str,
        kind: str = "classic",
        *,
        on: AbstractChannel | None = None,
        **arguments: Any,
    ) -> Queue.DeclareOk:
        """Declare a durable queue of a name that may be there."""
        self._declared.append(("queue", name))
        return await (on or await self.shared()).queue_declare(
            name,
            durable=True,
            arguments={
                "x-queue-type": kind,
                **{key.replace("_", "-"): value for key, value in arguments.items()},
            },
        )

    async def exchange(self, kind: str, what: str = "e", **options: Any) -> str:
        """Declare an exchange."""
        name = self.name(what)
        self._declared.append(("exchange", name))
        await (await self.shared()).exchange_declare(name, exchange_type=kind, **options)
        return name

    async def bind(self, queue: str, exchange: str, key: str = "", **options: Any) -> None:
        """Bind a queue."""
        await (await self.shared()).queue_bind(queue, exchange, key, **options)

    async def publish(
        self,
        key: str,
        *bodies: bytes,
        exchange: str = "",
        on: AbstractChannel | None = None,
        **properties: Any,
    ) -> list[Any]:
        """Publish, each after the one before was confirmed; return the confirms."""
        channel = on or await self.shared()
        return [
            await channel.basic_publish(
                body, exchange=exchange, routing_key=key, properties=Basic.Properties(**properties)
            )
            for body in bodies
        ]

    async def get(
        self, queue: str, *, on: AbstractChannel | None = None, no_ack: bool = False
    ) -> DeliveredMessage | None:
        """Take the first message of a queue, or None."""
        message = await (on or await self.shared()).basic_get(queue, no_ack=no_ack)
        return message if isinstance(message.delivery, Basic.GetOk) else None

    async def next(
        self, queue: str, *, on: AbstractChannel | None = None, no_ack: bool = False
    ) -> DeliveredMessage:
        """Take the first message of a queue, when there is one."""

        async def found() -> DeliveredMessage | None:
            return await self.get(queue, on=on, no_ack=no_ack)

        message = await eventually(found, what=f"a message in {queue}")
        assert message is not None
        return message

    async def drain(self, queue: str, count: int) -> list[bytes]:
        """Take ``count`` messages for good, and return their bodies."""
        return [(await self.next(queue, no_ack=True)).body for _ in range(count)]

    async def consume(
        self,
        queue: str,
        *,
        prefetch: int = 0,
        on: AbstractChannel | None = None,
        do: Callable[[DeliveredMessage], Any] | None = None,
        **options: Any,
    ) -> Inbox:
        """Consume, on a channel of its own where none is given."""
        channel = on or await self.channel()
        if prefetch:
            await channel.basic_qos(prefetch_count=prefetch)
        inbox = Inbox(channel, f"tag-{secrets.token_hex(4)}")

        async def receive(message: DeliveredMessage) -> None:
            inbox.messages.append(message)
            if do is not None:
                await do(message)

        await channel.basic_consume(queue, receive, consumer_tag=inbox.tag, **options)
        return inbox

    async def state(self, queue: str) -> tuple[int, int]:
        """How many messages wait in a queue, and how many consumers it has."""
        channel = await self.channel()
        found = await channel.queue_declare(queue, passive=True)
        await channel.close()
        return found.message_count or 0, found.consumer_count or 0

    async def depth(self, queue: str) -> int:
        """How many messages wait in a queue."""
        return (await self.state(queue))[0]

    async def has_depth(self, queue: str, count: int) -> None:
        """Wait until so many messages wait in a queue."""

        async def reached() -> bool:
            return await self.depth(queue) == count

        await eventually(reached, what=f"{count} messages in {queue}")

    async def remove(self) -> None:
        """Remove what was declared, and close."""
        channel = await self.channel()
        for kind, name in self._declared:
            if kind == "queue":
                await channel.queue_delete(name)
            else:
                await channel.exchange_delete(name)
        await self.connection.close()


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[Client]:
    """A client of its own."""
    connection = await aiormq.connect(url)
    client = Client(connection)
    try:
        yield client
    finally:
        async with asyncio.timeout(30):
            try:
                await client.remove()
            except (AMQPError, RuntimeError):
                # The test had its connection ended; another one tidies up.
                client.connection = await aiormq.connect(url)
                await client.remove()
