"""A subscription: one consumer registered at the broker, from basic.consume until it is lost."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from uuid import uuid4

from aiormq.abc import DeliveredMessage
from pamqp.commands import Basic

from rabbitflow import fastpath
from rabbitflow.broker import (
    Channel,
    Connection,
    ConnectionLost,
    NotFound,
    close,
    close_channel,
    connect,
    lost_connections,
    open_channel,
)
from rabbitflow.inspection import QueueState
from rabbitflow.settings import Settings
from rabbitflow.wire import Content
from rabbitflow.worker.acks import Acks
from rabbitflow.worker.delivery import Delivery

logger = logging.getLogger(__name__)


class Subscription:
    """Receives the deliveries of one queue over a channel of its own.

    It is not repaired: when :attr:`lost` is done, its deliveries are the broker's again and a new
    subscription takes its place.

    Args:
        connection: nothing is published on it, so that nothing holds acks back.
        channel: without confirms.
        queue: to consume from.
        receive: called with each delivery, in the event loop; must not block.
        settings: how long each call to the broker may take.
        is_alone: whether the connection is its own, and ends with it.
    """

    def __init__(
        self,
        connection: Connection,
        channel: Channel,
        queue: str,
        receive: Callable[[Delivery], None],
        settings: Settings,
        *,
        is_alone: bool = True,
    ) -> None:
        loop = asyncio.get_running_loop()
        self.queue = queue
        self.lost: asyncio.Future[str] = loop.create_future()
        # Taken as bytes arrive where the connection allows it, else by the client's callback.
        self._deliveries = fastpath.deliveries(connection, channel, self._receive_parts)
        send_ack = self._send_ack if self._deliveries is None else self._deliveries.ack
        self.acks = Acks(send_ack, loop)
        self._connection = connection
        self._channel = channel
        self._receive = receive
        self._settings = settings
        self._is_alone = is_alone
        self._tag: str | None = None
        self._sending: set[asyncio.Task[None]] = set()
        channel.on_consumer_cancel_callbacks.add(self._on_cancel)
        channel.closing.add_done_callback(self._on_channel_closed)

    @classmethod
    async def open(
        cls,
        settings: Settings,
        name: str,
        queue: str,
        receive: Callable[[Delivery], None],
    ) -> Subscription:
        """Connect, without consuming yet. Raises as :func:`rabbitflow.broker.connect`."""
        connection = await connect(settings, name)
        try:
            channel = await open_channel(connection, settings, confirms=False)
        except BaseException:
            await close(connection)
            raise
        return cls(connection, channel, queue, receive, settings)

    @property
    def connection(self) -> Connection:
        """Its connection, for what must end together with it."""
        return self._connection

    @property
    def is_consuming(self) -> bool:
        """Whether the broker hands deliveries to this subscription, as far as this side knows."""
        return self._tag is not None and not self.lost.done()

    async def consume(self, prefetch: int) -> None:
        """Ask for deliveries, at most ``prefetch`` of them unsettled.

        Called again it changes the prefetch: a channel's QoS holds for consumers that come after
        it, so the consumer is registered anew (rabbitmq.com/docs/consumer-prefetch).

        Raises:
            NotFound: the queue is gone.
            ConnectionLost: the channel is.
        """
        await self.pause()
        tag = f"rabbitflow-{uuid4().hex}"
        with lost_connections():
            async with asyncio.timeout(self._settings.connect_timeout_s):
                await self._channel.basic_qos(prefetch_count=prefetch)
                await self._channel.basic_consume(self.queue, self._deliver, consumer_tag=tag)
        self._tag = tag

    async def pause(self) -> None:
        """Ask for no more deliveries. Those handed out already stay ours to settle."""
        tag, self._tag = self._tag, None
        if tag is None:
            return
        with lost_connections():
            async with asyncio.timeout(self._settings.connect_timeout_s):
                await self._channel.basic_cancel(tag)

    def check(self, found: QueueState | None) -> None:
        """Notice when the broker forgot us: ``found`` is how it shows the queue.

        A restarted or partitioned broker may keep the connection and lose the consumer.

        Raises:
            NotFound: the queue is gone.
            ConnectionLost: the queue has no consumer at all.
        """
        if found is None:
            raise NotFound(f"queue {self.queue} is gone")
        if self.is_consuming and not found.consumers:
            raise ConnectionLost(f"the broker knows no consumer on queue {self.queue}")

    def abandon(self, why: str) -> None:
        """Give the subscription up: what is not acked yet is delivered again, to who comes next."""
        self.acks.close()
        if not self.lost.done():
            self.lost.set_result(why)

    async def close(self) -> None:
        """Send the acks that are due, then close the connection, or where others use it too the
        channel, which returns the rest."""
        await self.let_go()
        if self._is_alone:
            await close(self._connection)
        else:
            await close_channel(self._channel, self._settings)

    async def leave(self) -> None:
        """As :meth:`close`, and the connection stands on for what else is on it."""
        await self.let_go()
        await close_channel(self._channel, self._settings)

    async def let_go(self) -> None:
        """Send the acks that are due, and give the subscription up; its channel still stands."""
        self.acks.flush()
        if self._sending:
            await asyncio.wait(self._sending, timeout=self._settings.connect_timeout_s)
        self.abandon("closed")

    def _receive_parts(
        self,
        tag: int,
        redelivered: bool,
        exchange: str,
        header: bytes,
        content: Content,
        body: bytes,
    ) -> None:
        self._receive(Delivery(tag, redelivered, exchange, header, content, body, self.acks))

    async def _deliver(self, message: DeliveredMessage) -> None:
        self._receive(Delivery.of(message, self.acks))

    def _send_ack(self, tag: int, multiple: bool) -> None:
        task = asyncio.get_running_loop().create_task(self._ack(tag, multiple))
        self._sending.add(task)
        task.add_done_callback(self._sending.discard)

    async def _ack(self, tag: int, multiple: bool) -> None:
        try:
            with lost_connections():
                await self._channel.basic_ack(tag, multiple=multiple, wait=True)
        except ConnectionLost as error:
            self.abandon(str(error))

    def _on_cancel(self, frame: Basic.Cancel) -> None:
        # RabbitMQ cancels a consumer when its queue is deleted or its leader is lost.
        self._tag = None
        self.abandon(f"the broker cancelled the consumer on queue {self.queue}")

    def _on_channel_closed(self, closing: asyncio.Future[None]) -> None:
        error = None if closing.cancelled() else closing.exception()
        self.abandon(str(error) or type(error).__name__ if error else "the channel was closed")
