"""The tap: hears every announced event beside the consumers, over a queue of its own."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from datetime import UTC, datetime

from aiormq.abc import DeliveredMessage

from rabbitflow.broker import Connection, close, connect, lost_connections, open_channel
from rabbitflow.declaration import declare
from rabbitflow.errors import BrokerError
from rabbitflow.event import derived_id, type_of
from rabbitflow.settings import Settings
from rabbitflow.topology import Names, event_topology
from rabbitflow.worker.waiting import first_of

BIND_EVERY_S = 1.0

OnAnnounced = Callable[[str, str, datetime], object]

logger = logging.getLogger(__name__)


class Tap:
    """Calls back with id, type and time of every event of some types.

    Its queue is exclusive and goes with its connection, so nothing fills up when nobody looks.

    Args:
        settings: where to listen.
        event_types: returns those to hear; asked again every second, and when told to.
        on_announced: called with each event, in the event loop.
    """

    def __init__(
        self,
        settings: Settings,
        event_types: Callable[[], Iterable[str]],
        on_announced: OnAnnounced,
    ) -> None:
        self._settings = settings
        self._names = Names(settings.namespace)
        self._event_types = event_types
        self._on_announced = on_announced
        self._told = asyncio.Event()

    def ask_again(self) -> None:
        """There are further event types: hear them from now on, before anybody announces one."""
        self._told.set()

    async def listen(self) -> None:
        """Listen until cancelled, over one connection after the other."""
        while True:
            try:
                connection = await connect(self._settings, "rabbitflow dev")
                try:
                    await self._listen_on(connection)
                finally:
                    await close(connection)
            except BrokerError as error:
                logger.debug("the tap hears nothing: %s", error)
            await asyncio.sleep(BIND_EVERY_S)

    async def _listen_on(self, connection: Connection) -> None:
        settings = self._settings
        channel = await open_channel(connection, settings, confirms=False)
        with lost_connections():
            async with asyncio.timeout(settings.connect_timeout_s):
                own = await channel.queue_declare(exclusive=True, auto_delete=True)
                queue = own.queue or ""
                await channel.basic_consume(queue, self._heard, no_ack=True)
        bound: set[str] = set()
        while not channel.is_closed:
            for event_type in set(self._event_types()) - bound:
                await declare(connection, event_topology(event_type, settings), settings)
                with lost_connections():
                    async with asyncio.timeout(settings.connect_timeout_s):
                        await channel.queue_bind(queue, self._names.exchange(event_type))
                bound.add(event_type)
            await first_of(self._told, within_s=BIND_EVERY_S)
            self._told.clear()

    async def _heard(self, message: DeliveredMessage) -> None:
        properties, exchange = message.header.properties, message.exchange or ""
        event_type = (
            properties.message_type or self._names.event_type(exchange) or type_of(message.body)
        )
        event_id = properties.message_id or derived_id(message.body)
        self._on_announced(event_id, event_type or "?", datetime.now(UTC))
