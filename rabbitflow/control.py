"""Pausing and resuming a consumer on every host, remembered by the broker alone.

A paused consumer has a queue named ``<consumer>.paused``: workers that start later look for it.
Those that run are told by the control exchange, and look again.
"""

from __future__ import annotations

import asyncio
import getpass
import json
import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

from aiormq.abc import DeliveredMessage
from pamqp.commands import Basic

from rabbitflow.broker import Channel, Connection, lost_connections, open_channel, throwaway_channel
from rabbitflow.confirmed import ConfirmedChannel
from rabbitflow.declaration import declare, declare_on
from rabbitflow.errors import ConfigurationError, Unroutable
from rabbitflow.inspection import look, queue_exists
from rabbitflow.publisher import CONTENT_TYPE, PERSISTENT
from rabbitflow.settings import Settings
from rabbitflow.topology import Names, control_topology, pause_topology, workers_topology


@dataclass(frozen=True, slots=True)
class PauseNote:
    """Who paused a consumer, and when: kept in the mark for whoever wonders."""

    consumer: str
    by: str
    at: str


async def pause(consumer: str, settings: Settings) -> None:
    """Let no host take events of ``consumer`` any more; its queue keeps them.

    Raises:
        ConfigurationError: the broker has no queue of that name.
        BrokerError: the broker can't be reached, or refuses.
    """
    channel = ConfirmedChannel(settings, f"rabbitflow pause {consumer}")
    names = Names(settings.namespace)
    try:
        connection = await channel.connection()
        if not await queue_exists(connection, names.queue(consumer), settings):
            raise ConfigurationError(
                f"{settings.shown_url} has no queue {names.queue(consumer)}, so no consumer named"
                f" {consumer!r} ever ran there"
            )
        is_new = not await is_paused(connection, consumer, settings)
        await declare(connection, pause_topology(consumer, settings), settings)
        if is_new:
            by = f"{getpass.getuser()}@{platform.node()}"
            note = PauseNote(consumer, by, datetime.now(UTC).isoformat())
            body = json.dumps(asdict(note)).encode()
            await channel.publish("", names.paused(consumer), body, _properties())
        await _tell(channel, consumer, settings)
    finally:
        await channel.close()


async def resume(consumer: str, settings: Settings) -> bool:
    """Let every host take events of ``consumer`` again; return whether it was paused.

    Raises:
        BrokerError: the broker can't be reached, or refuses.
    """
    channel = ConfirmedChannel(settings, f"rabbitflow resume {consumer}")
    try:
        connection = await channel.connection()
        was_paused = await is_paused(connection, consumer, settings)
        async with throwaway_channel(connection, settings) as throwaway:
            with lost_connections():
                async with asyncio.timeout(settings.connect_timeout_s):
                    await throwaway.queue_delete(Names(settings.namespace).paused(consumer))
        await _tell(channel, consumer, settings)
        return was_paused
    finally:
        await channel.close()


async def is_paused(connection: Connection, consumer: str, settings: Settings) -> bool:
    """Whether ``consumer`` is paused; needs no permission.

    Raises:
        ConnectionLost: the connection ended.
    """
    return await queue_exists(connection, Names(settings.namespace).paused(consumer), settings)


async def is_migrating(connection: Connection, consumer: str, settings: Settings) -> bool:
    """Whether the queues of ``consumer`` are being replaced; needs no permission.

    Raises:
        ConnectionLost: the connection ended.
    """
    stand_in = Names(settings.namespace).migrating(consumer)
    return await queue_exists(connection, stand_in, settings)


class Attendance:
    """Says to everybody that this process may hold events of a consumer, while it does.

    A broker tells over AMQP how many consumers a queue has, and not who holds unsettled deliveries.
    So each process has a consumer of its own on ``<consumer>.workers``, from before its first
    delivery until it holds none.
    """

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    @classmethod
    async def begin(cls, connection: Connection, consumer: str, settings: Settings) -> Attendance:
        """Attend; it ends with the connection at the latest.

        Raises:
            NotFound: the queue is not there, and this process declares none.
            AccessRefused: this user may not read it.
            ConnectionLost: the connection ended.
        """
        topology = workers_topology(consumer, settings)
        channel = await open_channel(connection, settings, confirms=False)
        if settings.declare:
            await declare_on(channel, topology)
        with lost_connections():
            async with asyncio.timeout(settings.connect_timeout_s):
                await channel.basic_consume(topology.queues[0].name, _ignored, no_ack=True)
        return cls(channel)

    async def end(self) -> None:
        """Say that this process holds none of the consumer's events, and asks for none."""
        if not self._channel.is_closed:
            with lost_connections():
                await self._channel.close()


async def attending(connection: Connection, consumer: str, settings: Settings) -> int:
    """Return how many processes may hold events of ``consumer``; needs no permission.

    Raises:
        ConnectionLost: the connection ended.
    """
    found = await look(connection, Names(settings.namespace).workers(consumer), settings)
    return 0 if found is None else found.consumers


async def listen(connection: Connection, settings: Settings, on_change: Callable[[], None]) -> None:
    """Call ``on_change`` whenever a consumer was paused or resumed, while the connection lasts.

    Raises:
        ConnectionLost: the connection ended.
        AccessRefused: this user may not have a queue of its own.
    """
    channel = await open_channel(connection, settings, confirms=False)
    await declare_on(channel, control_topology(settings))

    async def heard(message: DeliveredMessage) -> None:
        on_change()

    with lost_connections():
        async with asyncio.timeout(settings.connect_timeout_s):
            own = await channel.queue_declare(exclusive=True, auto_delete=True)
            queue = own.queue or ""
            await channel.queue_bind(queue, Names(settings.namespace).control())
            await channel.basic_consume(queue, heard, no_ack=True)


async def _ignored(message: DeliveredMessage) -> None:
    """Nothing is published to the queue that counts workers."""


async def _tell(channel: ConfirmedChannel, consumer: str, settings: Settings) -> None:
    await declare(await channel.connection(), control_topology(settings), settings)
    control = Names(settings.namespace).control()
    try:
        await channel.publish(control, consumer, consumer.encode(), _properties())
    except Unroutable:
        # No worker runs just now; the mark tells those that start later.
        return


def _properties() -> Basic.Properties:
    return Basic.Properties(content_type=CONTENT_TYPE, delivery_mode=PERSISTENT)
