"""The way to the broker: connections and channels, each with a deadline, errors put in our words.

A connection here is never repaired behind its user's back. Whoever holds one notices that it is
gone and opens a new one, because delivery tags and confirms of the old one mean nothing on the
next (docs/decisions/0001-no-robust-connection.md).
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from aio_pika.abc import AbstractConnection
from aiormq.abc import AbstractChannel
from aiormq.exceptions import (
    AMQPError,
    ChannelAccessRefused,
    ChannelNotFoundEntity,
    ConnectionClosed,
    DeliveryError,
    InvalidFrameError,
    ProbableAuthenticationError,
    PublishError,
)
from pamqp.commands import Basic
from tenacity import AsyncRetrying, retry_if_exception, wait_random_exponential
from yarl import URL

from rabbitflow import fastpath, tls
from rabbitflow.claims import Confirms, Returned
from rabbitflow.errors import (
    AccessRefused,
    BrokerError,
    BrokerUnavailable,
    PublishRefused,
    PublishTimeout,
    Unroutable,
)
from rabbitflow.settings import Settings, redact

Channel = AbstractChannel
Connection = AbstractConnection

CLOSE_TIMEOUT_S = 5.0
REFUSED_FOR_S = 5.0
"""How long a message that the broker nacks is sent again: longer than an election of a leader."""
KEPT_CHANNELS = 4

logger = logging.getLogger(__name__)

# The client logs what we raise or mend, with tracebacks; it is heard from CRITICAL on.
logging.getLogger("aiormq").setLevel(logging.CRITICAL)
logging.getLogger("aio_pika").setLevel(logging.CRITICAL)


class ConnectionLost(BrokerError):
    """The connection or channel ended under a call. Whether the call took effect is not known."""


class NotFound(BrokerError):
    """The exchange or queue that a call names does not exist (AMQP reply 404)."""


# Random, so that the clients of a broker that restarts do not come back all at once.
_PAUSES = wait_random_exponential(multiplier=0.1, max=3.0)


async def connect(settings: Settings, name: str) -> Connection:
    """Open one connection. ``name`` is what RabbitMQ's own tools show for it.

    Of several URLs each is tried once, in a random order: the clients of a cluster spread over its
    nodes, and go on with another when theirs is gone.

    Raises:
        BrokerUnavailable: no broker answers, each within ``settings.connect_timeout_s``.
        AccessRefused: one answers, and refuses the user or the virtual host.
    """
    *others, last = random.sample(settings.broker_urls, k=len(settings.broker_urls))
    for url in others:
        try:
            return await _connect(url, settings, name)
        except BrokerError as error:
            logger.debug("going on with another node: %s", error)
    return await _connect(last, settings, name)


async def _connect(written: str, settings: Settings, name: str) -> Connection:
    shown = redact(written)
    url = URL(written).update_query(heartbeat=str(settings.heartbeat_s))
    try:
        async with asyncio.timeout(settings.connect_timeout_s):
            connection = fastpath.connection_class()(
                url,
                ssl_context=await asyncio.to_thread(tls.context, url, settings),
                client_properties={"connection_name": name},
            )
            try:
                await connection.connect()
            except BaseException:
                # Now, not in a task of the client's when the object is collected.
                await connection.close()
                raise
            return connection
    except ProbableAuthenticationError as error:
        raise AccessRefused(
            f"the broker at {shown} refused the user name or the password; check RABBITFLOW_URL"
        ) from error
    except InvalidFrameError as error:
        # The client expects Connection.OpenOk; a broker that closes instead refuses the vhost.
        vhost = url.path.removeprefix("/") or "/"
        raise AccessRefused(
            f"the broker at {shown} refused the virtual host {vhost!r}: it does not"
            " exist, or this user may not use it"
        ) from error
    except ConnectionClosed as error:
        raise AccessRefused(
            f"the broker at {shown} closed the connection: {_reply_of(error)}"
        ) from error
    except TimeoutError as error:
        raise BrokerUnavailable(
            f"no broker answers at {shown} within {settings.connect_timeout_s:g} s;"
            " is RabbitMQ running there?"
        ) from error
    except (AMQPError, OSError) as error:
        raise tls.refusal(error, url, shown, settings) or BrokerUnavailable(
            f"no broker answers at {shown} ({_reply_of(error)}); is RabbitMQ running there?"
        ) from error


def is_alive(connection: Connection) -> bool:
    """Whether a connection stands, as far as this side knows. The client calls one "closed" only
    where we closed it; one that the peer ended is no longer "connected"."""
    return not connection.is_closed and connection.connected.is_set()


async def open_channel(connection: Connection, settings: Settings, *, confirms: bool) -> Channel:
    """Open a channel; with ``confirms`` the broker confirms what is published on it.

    Raises:
        ConnectionLost: the connection is gone, or does not answer.
    """
    with lost_connections():
        async with asyncio.timeout(settings.connect_timeout_s):
            channel = connection.channel(publisher_confirms=confirms, on_return_raises=confirms)
            await channel.initialize()
            return await channel.get_underlay_channel()


@asynccontextmanager
async def throwaway_channel(connection: Connection, settings: Settings) -> AsyncIterator[Channel]:
    """A channel for one risky call: the broker closes the channel of a call that it refuses."""
    channel = await open_channel(connection, settings, confirms=False)
    try:
        yield channel
    finally:
        await close_channel(channel, settings)


async def close_channel(channel: Channel, settings: Settings) -> None:
    """Close a channel; what is not settled goes back in order. Raises ConnectionLost."""
    if not channel.is_closed:
        with lost_connections():
            async with asyncio.timeout(settings.connect_timeout_s):
                await channel.close()


async def close(connection: Connection) -> None:
    """Close a connection, within ``CLOSE_TIMEOUT_S`` seconds; a dead one is only let go."""
    if connection.is_closed:
        return
    try:
        async with asyncio.timeout(CLOSE_TIMEOUT_S):
            with lost_connections():
                await connection.close()
    except (ConnectionLost, TimeoutError):
        logger.debug("a connection ended while it was being closed")


@contextmanager
def lost_connections() -> Iterator[None]:
    """Turn what the client raises when a connection ends into ConnectionLost.

    The client ends pending calls with CancelledError when their channel goes. That is no
    cancellation of the task that waits, which is told by ``Task.cancelling()``. And it returns from
    closing a channel as if nothing was where the task was cancelled meanwhile: that is made up for.
    """
    task = asyncio.current_task()
    cancelled = 0 if task is None else task.cancelling()
    try:
        yield
        if task is not None and task.cancelling() > cancelled:
            raise asyncio.CancelledError
    except asyncio.CancelledError as error:
        if task is not None and task.cancelling():
            raise
        raise ConnectionLost("the channel was closed under a call") from error
    except ChannelAccessRefused as error:
        raise AccessRefused(f"the broker refused: {_reply_of(error)}") from error
    except ChannelNotFoundEntity as error:
        raise NotFound(f"the broker does not have it: {_reply_of(error)}") from error
    except (RuntimeError, AMQPError, OSError, TimeoutError) as error:
        # The client says "closed" with a bare RuntimeError here, with a kind of its own there.
        raise ConnectionLost(f"the connection was lost: {_reply_of(error)}") from error


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
                self._channel = channel
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
        the queue under its dead leader, for as long as that node is away.

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
            raise PublishTimeout(
                f"{self._settings.shown_url} confirmed nothing within {timeout_s:g} s"
                f" ({last or 'is a memory or disk alarm raised there?'});"
                f" message {properties.message_id} may still be delivered"
            ) from error

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
    said = _reply_of(error)
    if f"'{exchange}'" not in said:
        return ConnectionLost(f"another publish ended the channel: {said}")
    kind = NotFound if isinstance(error, ChannelNotFoundEntity) else AccessRefused
    return kind(f"the broker refused to publish: {said}")


def _reply_of(error: BaseException) -> str:
    """Return what the broker or the system said, in one line."""
    if isinstance(error, AMQPError) and error.args:
        return " ".join(str(part) for part in error.args if part not in (None, 0))
    return str(error) or type(error).__name__
