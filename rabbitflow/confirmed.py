"""Publishing with confirms: one message, mandatory, until the broker has it or says why not."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque

from aiormq.exceptions import (
    ChannelAccessRefused,
    ChannelNotFoundEntity,
    DeliveryError,
    PublishError,
)
from pamqp.commands import Basic
from tenacity import AsyncRetrying, retry_if_exception, wait_random_exponential

from rabbitflow import fastpath
from rabbitflow.broker import (
    Channel,
    Connection,
    ConnectionLost,
    NotFound,
    close,
    close_channel,
    connect,
    is_alive,
    is_blocked,
    lost_connections,
    open_channel,
    reply_of,
)
from rabbitflow.claims import Confirms, Returned
from rabbitflow.errors import (
    AccessRefused,
    BrokerError,
    BrokerUnavailable,
    PublishRefused,
    PublishTimeout,
    Unroutable,
)
from rabbitflow.settings import Settings

REFUSED_FOR_S = 5.0
"""How long a message that the broker nacks is sent again: longer than an election of a leader."""
KEPT_CHANNELS = 4

# Random, so that the clients of a broker that restarts do not come back all at once.
_PAUSES = wait_random_exponential(multiplier=0.1, max=3.0)


class ConfirmedChannel:
    """Publishes to one broker with confirms; opens its connection when first needed, and again.

    Args:
        settings: where, and how long to wait.
        name: of the connection, as RabbitMQ's tools show it.
    """

    def __init__(self, settings: Settings, name: str) -> None:
        self._settings = settings
        self._name = name
        self._opening = asyncio.Lock()
        self._connection: Connection | None = None
        self._channel: Channel | None = None
        self._confirms: Confirms | None = None
        self._retired: deque[Channel] = deque()
        self._heard_at = 0.0
        self._leaving: set[asyncio.Task[None]] = set()

    @property
    def is_open(self) -> bool:
        """Whether the next publish has a channel to go out on."""
        return (
            self._channel is not None
            and not self._channel.is_closed
            and self._connection is not None
            and is_alive(self._connection)
        )

    @property
    def confirms(self) -> Confirms | None:
        """What the fast path publishes with; None where there is none, or no channel is open."""
        return self._confirms if self.is_open else None

    async def connection(self) -> Connection:
        """Return the connection, opened if need be. Raises as :func:`connect`."""
        async with self._opening:
            return await self._connected()

    async def _connected(self) -> Connection:
        dead = self._connection
        if dead is not None and not is_alive(dead):
            self._connection = None
            await close(dead)  # now, not in a task of the client's when the object is collected
        if self._connection is None:
            self._connection = await connect(self._settings, self._name)
        return self._connection

    async def open(self) -> Channel:
        """Return the channel, opened if need be. Raises as :func:`connect`."""
        async with self._opening:
            if self.is_open and self._channel is not None:
                return self._channel
            connection = await self._connected()
            try:
                channel = await open_channel(connection, self._settings, confirms=True)
                self._confirms = fastpath.confirms(connection, channel)
                self._channel, self._heard_at = channel, time.monotonic()
                while len(self._retired) > KEPT_CHANNELS:
                    await close_channel(self._retired.popleft(), self._settings)
            except ConnectionLost:
                # A connection that can't open a channel is of no use, even if it looks open.
                await close(connection)
                raise
            return self._channel

    async def publish(
        self,
        exchange: str,
        routing_key: str,
        body: bytes,
        properties: Basic.Properties,
        *,
        timeout_s: float | None = None,
    ) -> None:
        """Publish one message, mandatory, and return when the broker has confirmed it.

        When the connection is lost before the confirm, the message is sent again, with the same
        id, on a new one, until ``timeout_s`` seconds (``settings.publish_timeout_s``) are over. One
        that the broker nacks is sent again on another channel for ``REFUSED_FOR_S`` seconds: when
        the leader of a quorum queue dies, RabbitMQ 3.10 goes on nacking on a channel that first met
        the queue under its dead leader, for as long as that node is away. A connection on which the
        broker confirmed nothing for a whole time-out is given up (:meth:`give_up_if_mute`).

        Raises:
            Unroutable: no queue took it.
            PublishRefused: the broker nacked it.
            PublishTimeout: sent, but never confirmed in time.
            BrokerUnavailable: no broker could be reached in time; nothing was sent.
            AccessRefused: the broker refuses this user.
        """
        timeout_s = self._settings.publish_timeout_s if timeout_s is None else timeout_s
        sent = False
        last: BrokerError | None = None
        began = time.monotonic()

        async def attempt() -> None:
            nonlocal sent, last
            channel: Channel | None = None
            try:
                channel = await self.open()
                sent = True
                await _publish(channel, self._confirms, exchange, routing_key, body, properties)
                self._heard_at = time.monotonic()
            except (ConnectionLost, BrokerUnavailable) as error:
                last = error
                raise
            except PublishRefused as error:
                last = error
                self._retire(channel)
                raise

        def is_passing(error: BaseException) -> bool:
            if isinstance(error, PublishRefused):
                return time.monotonic() - began < REFUSED_FOR_S
            return isinstance(error, ConnectionLost | BrokerUnavailable)

        try:
            async with asyncio.timeout(timeout_s):
                try:
                    await attempt()
                except (ConnectionLost, BrokerUnavailable, PublishRefused):
                    again = AsyncRetrying(
                        wait=_PAUSES, retry=retry_if_exception(is_passing), reraise=True
                    )
                    await again(attempt)
        except TimeoutError as error:
            if isinstance(last, PublishRefused):
                raise last from error
            if not sent:
                raise last or BrokerUnavailable(
                    f"no broker answers at {self._settings.shown_url}"
                ) from error
            await self.give_up_if_mute()
            raise PublishTimeout(
                f"{self._settings.shown_url} confirmed nothing within {round(timeout_s, 2):g} s"
                f" ({last or 'is a memory or disk alarm raised there?'});"
                f" message {properties.message_id} may still be delivered"
            ) from error

    async def give_up_if_mute(self, silent_s: float = math.inf) -> None:
        """Publish on another connection from now on, perhaps to another node, if this one is mute.

        A node of a cluster that stood still for a while may keep its connections, heartbeats and
        all, and take no more publishes on them. Mute is one that confirmed nothing for
        ``settings.publish_timeout_s`` seconds, although it is not blocked: of an alarm the broker
        tells, and it would block the next connection as well. What else is unconfirmed here is sent
        again when it is closed.

        Args:
            silent_s: for how long nothing was confirmed to who publishes by :attr:`confirms`.
        """
        connection = self._connection
        silent_s = min(silent_s, time.monotonic() - self._heard_at)
        if (
            connection is not None
            and silent_s >= self._settings.publish_timeout_s
            and not await is_blocked(connection)
            and connection is self._connection
        ):
            self._connection = self._channel = None
            self._retired.clear()
            # It may not answer to this either, and the next publish shall not wait for it.
            leaving = asyncio.create_task(close(connection))
            self._leaving.add(leaving)
            leaving.add_done_callback(self._leaving.discard)

    def _retire(self, channel: Channel | None) -> None:
        """Use another channel from now on. The latest few stay open, to be answered."""
        if channel is None or channel is not self._channel:
            return
        self._channel = None
        self._retired.append(channel)

    async def close(self) -> None:
        """Close the connection. What was confirmed before is safe."""
        connection, self._connection, self._channel = self._connection, None, None
        self._retired.clear()
        if connection is not None:
            await close(connection)
        await asyncio.gather(*self._leaving)


async def _publish(
    channel: Channel,
    confirms: Confirms | None,
    exchange: str,
    routing_key: str,
    body: bytes,
    properties: Basic.Properties,
) -> None:
    with lost_connections():
        try:
            if confirms is not None:
                await confirms.publish(exchange, routing_key, body, properties)
                return
            await channel.basic_publish(
                body,
                exchange=exchange,
                routing_key=routing_key,
                properties=properties,
                mandatory=True,
            )
        except (Returned, DeliveryError, ChannelNotFoundEntity, ChannelAccessRefused) as no:
            raise _refusal(no, exchange, routing_key, properties.message_id) from no


def _refusal(
    error: Exception, exchange: str, routing_key: str, message_id: str | None
) -> BrokerError:
    """Say in our words why the broker did not keep a message."""
    if isinstance(error, PublishError | Returned):
        nobody = f"no queue is bound to exchange {exchange!r}"
        return Unroutable(nobody if exchange else f"there is no queue {routing_key!r}")
    if isinstance(error, DeliveryError):
        return PublishRefused(
            f"the broker refused to keep message {message_id}"
            f" (exchange {exchange!r}, routing key {routing_key!r}): is a queue at its limit?"
        )
    # Every publish in flight on the channel is told of the one that ended it.
    said = reply_of(error)
    if f"'{exchange}'" not in said:
        return ConnectionLost(f"another publish ended the channel: {said}")
    kind = NotFound if isinstance(error, ChannelNotFoundEntity) else AccessRefused
    return kind(f"the broker refused to publish: {said}")
