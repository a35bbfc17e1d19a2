"""The way to the broker: connections and channels, each with a deadline, errors put in our words.

A connection here is never repaired behind its user's back. Whoever holds one notices that it is
gone and opens a new one, because delivery tags and confirms of the old one mean nothing on the
next (docs/decisions/0001-no-robust-connection.md).
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from aio_pika.abc import AbstractConnection
from aiormq.abc import AbstractChannel
from aiormq.exceptions import (
    AMQPError,
    ChannelAccessRefused,
    ChannelNotFoundEntity,
    ConnectionClosed,
    InvalidFrameError,
    ProbableAuthenticationError,
)
from yarl import URL

from rabbitflow import fastpath, tls
from rabbitflow.errors import (
    AccessRefused,
    BrokerError,
    BrokerUnavailable,
)
from rabbitflow.settings import Settings, redact

Channel = AbstractChannel
Connection = AbstractConnection

CLOSE_TIMEOUT_S = 5.0

logger = logging.getLogger(__name__)

# The client logs what we raise or mend, with tracebacks; it is heard from CRITICAL on.
logging.getLogger("aiormq").setLevel(logging.CRITICAL)
logging.getLogger("aio_pika").setLevel(logging.CRITICAL)


class ConnectionLost(BrokerError):
    """The connection or channel ended under a call. Whether the call took effect is not known."""


class NotFound(BrokerError):
    """The exchange or queue that a call names does not exist (AMQP reply 404)."""


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
            f"the broker at {shown} closed the connection: {reply_of(error)}"
        ) from error
    except TimeoutError as error:
        raise BrokerUnavailable(
            f"no broker answers at {shown} within {settings.connect_timeout_s:g} s;"
            " is RabbitMQ running there?"
        ) from error
    except (AMQPError, OSError) as error:
        raise tls.refusal(error, url, shown, settings) or BrokerUnavailable(
            f"no broker answers at {shown} ({reply_of(error)}); is RabbitMQ running there?"
        ) from error


def is_alive(connection: Connection) -> bool:
    """Whether a connection stands, as far as this side knows. The client calls one "closed" only
    where we closed it; one that the peer ended is no longer "connected"."""
    return not connection.is_closed and connection.connected.is_set()


async def is_blocked(connection: Connection) -> bool:
    """Whether the broker has told that it takes no publishes for now, for want of memory or disk
    (https://www.rabbitmq.com/docs/connection-blocked)."""
    if connection.transport is None:
        return False
    try:
        async with asyncio.timeout(0):
            await connection.transport.ready()  # at once, but for one that is blocked
    except TimeoutError:
        return True
    return False


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
        raise AccessRefused(f"the broker refused: {reply_of(error)}") from error
    except ChannelNotFoundEntity as error:
        raise NotFound(f"the broker does not have it: {reply_of(error)}") from error
    except (RuntimeError, AMQPError, OSError, TimeoutError) as error:
        # The client says "closed" with a bare RuntimeError here, with a kind of its own there.
        raise ConnectionLost(f"the connection was lost: {reply_of(error)}") from error
    except Exception as error:
        if type(error) is not Exception:
            raise
        # What the client says of a call on a connection that this process closes meanwhile.
        raise ConnectionLost("the connection was closed under a call") from error


def reply_of(error: BaseException) -> str:
    """Return what the broker or the system said, in one line."""
    if isinstance(error, AMQPError) and error.args:
        return " ".join(str(part) for part in error.args if part not in (None, 0))
    return str(error) or type(error).__name__
