"""A channel's deliveries: consumers, prefetch, basic.get, and settling what was handed out."""

from __future__ import annotations

import secrets
import struct
from collections.abc import Iterable
from typing import NamedTuple

from pamqp.commands import Basic

from rabbitflow.devbroker.consumer import Consumer, Entry
from rabbitflow.devbroker.frames import short, write_content, write_method, write_raw
from rabbitflow.devbroker.queue import MessageQueue
from rabbitflow.devbroker.replies import (
    ChannelRefusal,
    ConnectionRefusal,
    named,
    not_implemented,
    only_consumed,
    precondition_failed,
)
from rabbitflow.devbroker.session import Session
from rabbitflow.devbroker.stream import Queue

_DELIVERY = struct.Struct(">Q?")
_COUNT = struct.Struct(">I")


class Delivery(NamedTuple):
    """What was handed out and is not settled; ``consumer`` is None after basic.get."""

    queue: Queue
    entry: Entry
    consumer: Consumer | None


class Consuming:
    """What one channel takes.

    Args:
        session: of its connection.
        channel: its number.
    """

    def __init__(self, session: Session, channel: int) -> None:
        self._session = session
        self._channel = channel
        self._consumers: dict[str, tuple[Consumer, Queue]] = {}
        self._unacked: dict[int, Delivery] = {}
        self._tag = 0
        self._prefetch = 0
        self._limit = 0
        self._outstanding = 0

    def qos(self, method: Basic.Qos) -> None:
        """Set the prefetch: of consumers that come after, or of the whole channel (global)."""
        if method.prefetch_size:
            raise not_implemented(f"prefetch_size!=0 ({method.prefetch_size})")
        if method.global_:
            self._limit = method.prefetch_count or 0
        else:
            self._prefetch = method.prefetch_count or 0
        self._reply(Basic.QosOk())
        self._pump(queue for _, queue in self._consumers.values())

    def consume(self, method: Basic.Consume, queue: Queue) -> None:
        """Register a consumer on a queue.

        Raises:
            ChannelRefusal: 403, in exclusive use; 406, an argument does not fit.
            ConnectionRefusal: 530, the tag is in use; 540, the queue type does not do that.
        """
        arguments = method.arguments or {}
        tag = method.consumer_tag or f"amq.ctag-{secrets.token_urlsafe(16)}"
        if tag in self._consumers:
            raise ConnectionRefusal(530, f"attempt to reuse consumer tag '{tag}'")
        kind = queue.declared.policy.type
        what = named("queue", queue.name, self._session.vhost.name)
        # Quorum queues and streams let others in; only a classic queue is exclusive.
        exclusive = bool(method.exclusive) and kind == "classic"
        if queue.consumers.is_exclusive or (exclusive and len(queue.consumers)):
            raise ChannelRefusal(403, f"{what} in exclusive use")
        if kind != "classic" and self._limit:
            raise not_implemented(f"{what} does not support global qos")
        if kind == "stream":
            if method.no_ack:
                ask = "automatic acknowledgement not supported by stream queues"
                raise not_implemented(f"{ask} {what}")
            if not self._prefetch:
                raise precondition_failed(f"consumer prefetch count is not set for '{what}'")
        priority = arguments.get("x-priority", 0)
        if isinstance(priority, bool) or not isinstance(priority, int):
            raise precondition_failed(f"invalid arg 'x-priority' for {what}: no integer")
        consumer = Consumer(
            tag=tag,
            queue=queue.name,
            receiver=self,
            no_ack=bool(method.no_ack),
            exclusive=exclusive,
            priority=priority,
            # RabbitMQ has no prefetch for what needs no ack.
            prefetch=0 if method.no_ack else self._prefetch,
            offset=queue.offset_of(arguments),
        )
        self._consumers[tag] = consumer, queue
        queue.consumers.add(consumer)
        self._session.vhost.touch(queue)
        if not method.nowait:
            self._reply(Basic.ConsumeOk(tag))
        queue.pump()

    def cancel(self, method: Basic.Cancel) -> None:
        """Remove a consumer; what it holds stays its channel's to settle."""
        consumer, queue = self._consumers.pop(method.consumer_tag or "", (None, None))
        if not method.nowait:
            self._reply(Basic.CancelOk(method.consumer_tag or ""))
        if consumer is not None and queue is not None:
            self._leave(consumer, queue)

    def get(self, method: Basic.Get, queue: Queue) -> None:
        """Hand out one message, or say that there is none.

        Raises:
            ChannelRefusal: 405, a quorum queue with a single active consumer does not do that.
        """
        policy = queue.declared.policy
        if policy.type == "quorum" and policy.single_active_consumer:
            raise only_consumed(queue.name, self._session.vhost.name)
        self._session.vhost.touch(queue)
        entry = queue.take()
        if entry is None:
            self._reply(Basic.GetEmpty())
            return
        self._tag += 1
        if method.no_ack:
            queue.acknowledge(entry)
        else:
            self._unacked[self._tag] = Delivery(queue, entry, None)
        self._send(Basic.GetOk.index, b"", entry, queue, _COUNT.pack(queue.ready))

    def deliver(self, consumer: Consumer, entry: Entry) -> None:
        """Send a delivery to a consumer of this channel."""
        queue = self._consumers[consumer.tag][1]
        self._tag += 1
        if not consumer.no_ack:
            self._unacked[self._tag] = Delivery(queue, entry, consumer)
            consumer.unacked += 1
            self._outstanding += 1
        self._send(Basic.Deliver.index, short(consumer.tag), entry, queue, b"")

    @property
    def is_receiving(self) -> bool:
        """Whether it can take a delivery now."""
        return not self._session.is_congested and (
            not self._limit or self._outstanding < self._limit
        )

    def forget(self, consumer: Consumer) -> None:
        """The queue was deleted: tell the client, where it wants to know."""
        self._consumers.pop(consumer.tag, None)
        if self._session.hears_cancels:
            self._reply(Basic.Cancel(consumer.tag, nowait=True))

    # Settling

    def ack(self, method: Basic.Ack) -> None:
        """Let go what was handled. Raises ChannelRefusal, 406, for a tag that is not open."""
        settled = self._settle(method.delivery_tag or 0, multiple=method.multiple)
        for delivery in settled:
            delivery.queue.acknowledge(delivery.entry)
        self._session.counters.acked += len(settled)
        self._pump(delivery.queue for delivery in settled)

    def nack(self, method: Basic.Nack | Basic.Reject) -> None:
        """Give back, or let die, what was not handled. Raises as :meth:`ack`."""
        multiple = isinstance(method, Basic.Nack) and method.multiple
        settled = self._settle(method.delivery_tag or 0, multiple=multiple)
        for delivery in settled:
            delivery.queue.check_returnable()
        if method.requeue:
            self._give_back(settled)
        else:
            for delivery in settled:
                delivery.queue.reject(delivery.entry)
        self._pump(delivery.queue for delivery in settled)

    def recover(self, method: Basic.Recover | Basic.RecoverAsync) -> None:
        """Give back everything that is not settled."""
        if not method.requeue:
            raise not_implemented("requeue=false")
        settled = self._settle(0, multiple=True)
        if isinstance(method, Basic.Recover):
            self._reply(Basic.RecoverOk())
        self._give_back(settled)

    def release(self) -> None:
        """The channel is gone: so are its consumers, and what it held is the queues' again."""
        consumers, self._consumers = self._consumers, {}
        for consumer, queue in consumers.values():
            queue.consumers.remove(consumer)
        self._give_back(self._settle(0, multiple=True), is_lost=True)
        for consumer, queue in consumers.values():
            self._leave(consumer, queue)

    def pump(self) -> None:
        """Take what waits, now that there is room."""
        self._pump(queue for _, queue in self._consumers.values())

    def _settle(self, tag: int, *, multiple: bool) -> list[Delivery]:
        unacked = self._unacked
        if tag not in unacked and not (multiple and tag == 0):
            raise precondition_failed(f"unknown delivery tag {tag}")
        if not multiple:
            tags = [tag]
        elif tag == 0:
            tags = list(unacked)
        else:
            # Tags were handed out in order, and a dict keeps it.
            tags = []
            for each in unacked:
                if each > tag:
                    break
                tags.append(each)
        settled = [unacked.pop(each) for each in tags]
        for delivery in settled:
            if delivery.consumer is not None:
                delivery.consumer.unacked -= 1
                self._outstanding -= 1
        return settled

    def _give_back(self, settled: list[Delivery], *, is_lost: bool = False) -> None:
        self._session.counters.returned += len(settled)
        queues: dict[Queue, list[Entry]] = {}
        for delivery in settled:
            queues.setdefault(delivery.queue, []).append(delivery.entry)
        for queue, entries in queues.items():
            queue.give_back(entries, is_lost=is_lost)

    def _leave(self, consumer: Consumer, queue: Queue) -> None:
        queue.consumers.remove(consumer)
        self._session.vhost.touch(queue)
        if queue.declared.auto_delete and not queue.consumers:
            self._session.vhost.delete_queue(queue)
        else:
            queue.pump()

    def _pump(self, queues: Iterable[Queue]) -> None:
        further = (queue for _, queue in self._consumers.values()) if self._limit else ()
        for queue in dict.fromkeys((*queues, *further)):
            queue.pump()

    def _send(self, index: int, before: bytes, entry: Entry, queue: Queue, after: bytes) -> None:
        message = entry.message
        is_again = entry.returns > 0 and isinstance(queue, MessageQueue)
        arguments = (
            before
            + _DELIVERY.pack(self._tag, is_again)
            + short(message.exchange)
            + short(message.routing_key)
            + after
        )
        session = self._session
        session.counters.delivered += 1
        session.send(
            write_raw(self._channel, index, arguments)
            + write_content(self._channel, queue.properties(entry), message.body, session.frame_max)
        )

    def _reply(
        self,
        method: Basic.QosOk
        | Basic.ConsumeOk
        | Basic.CancelOk
        | Basic.Cancel
        | Basic.GetEmpty
        | Basic.RecoverOk,
    ) -> None:
        self._session.send(write_method(self._channel, method))
