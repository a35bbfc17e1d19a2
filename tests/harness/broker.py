"""Another client's look at the broker, with pika: it shares no code with what it tests."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pika
import pika.exceptions
from tenacity import retry, retry_if_exception_type, stop_after_attempt, wait_fixed

from rabbitflow.settings import Settings
from rabbitflow.topology import RETRY_BUCKETS_S, STREAM_OFFSET, Names
from tests.harness.node import Broker, Ctl

logging.getLogger("pika").setLevel(logging.CRITICAL)  # what it warns of, tests do on purpose

Message = tuple[dict[str, Any], pika.BasicProperties, bytes]


class Probe:
    """Looks at queues and publishes as a foreign client would."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.names = Names(settings.namespace)
        nodes = [pika.URLParameters(url) for url in settings.broker_urls]
        for node in nodes:
            node.heartbeat = 0  # a test that waits for minutes answers none
        self._connection = pika.BlockingConnection(nodes)
        self._channel = self._connection.channel()
        self._leaves: tuple[set[str], set[str]] = set(), set()

    def close(self) -> None:
        """Close the connection."""
        if self._connection.is_open:
            self._connection.close()

    def leaves(self, consumers: Iterable[str], event_types: Iterable[str]) -> None:
        """Note consumers and events of the namespace for :meth:`sweep`."""
        self._leaves[0].update(consumers)
        self._leaves[1].update(event_types)

    def sweep(self) -> None:
        """Close, and remove what was noted by :meth:`leaves`: when nothing runs any more that
        would declare it again."""
        self.close()
        remove_namespace(self.settings, *self._leaves)

    def publish(
        self, exchange: str, key: str, body: bytes, properties: pika.BasicProperties | None = None
    ) -> None:
        """Publish as any client would."""
        self._channel.basic_publish(exchange, key, body, properties)

    @contextmanager
    def confirming(self) -> Iterator[pika.adapters.blocking_connection.BlockingChannel]:
        """A channel on which a publish returns when the broker has the message: what is not
        confirmed may be gone when a connection is closed."""
        channel = self._connection.channel()
        channel.confirm_delivery()
        try:
            yield channel
        finally:
            channel.close()

    def depth(self, queue: str) -> int:
        """Messages that wait in a queue; -1 where there is no such queue."""
        found = self._declared(queue)
        return -1 if found is None else int(found.method.message_count)

    def consumers(self, queue: str) -> int:
        """Consumers on a queue; -1 where there is no such queue."""
        found = self._declared(queue)
        return -1 if found is None else int(found.method.consumer_count)

    def take(self, queue: str) -> Message | None:
        """Take one message off a queue."""
        method, properties, body = self._channel.basic_get(queue, auto_ack=True)
        if method is None:
            return None
        return dict(properties.headers or {}), properties, body

    def first(self, queue: str) -> Message | None:
        """Take one message off a queue that is only consumed, as one with a single active consumer
        is."""
        channel = self._connection.channel()
        channel.basic_qos(prefetch_count=1)
        for method, properties, body in channel.consume(queue, inactivity_timeout=2.0):
            if method is not None:
                channel.basic_ack(method.delivery_tag)
            channel.cancel()
            channel.close()
            return None if method is None else (dict(properties.headers or {}), properties, body)
        return None

    def drained_ids(self, queue: str) -> list[str]:
        """Take every message off a queue, and return their ids; none where there is no queue."""
        ids: list[str] = []
        while self.depth(queue) > 0:
            message = self.take(queue)
            if message is None:
                break
            ids.append(str(message[1].message_id))
        return ids

    def kept_ids(self, consumer: str) -> list[str]:
        """Take what waits for a consumer off its queues, and return the ids."""
        names = self.names
        queues = [names.queue(consumer), names.dead(consumer)]
        queues += [names.retry(consumer, bucket_s) for bucket_s in RETRY_BUCKETS_S]
        return [found for queue in queues for found in self.drained_ids(queue)]

    def logged_ids(self, event_type: str) -> list[str]:
        """Return the ids of everything in the log of an event."""
        channel = self._connection.channel()
        channel.basic_qos(prefetch_count=1000)
        ids: list[str] = []
        for method, properties, _ in channel.consume(
            self.names.log(event_type),
            arguments={STREAM_OFFSET: "first"},
            inactivity_timeout=2.0,
        ):
            if method is None:
                break
            channel.basic_ack(method.delivery_tag)
            ids.append(str(properties.message_id))
        channel.close()
        return ids

    def reject(self, queue: str, *, requeue: bool) -> None:
        """Take one message off a queue and refuse it."""
        method, _, _ = self._channel.basic_get(queue)
        if method is not None:
            self._channel.basic_reject(method.delivery_tag, requeue=requeue)

    def tap(self, event_type: str, arguments: dict[str, Any] | None = None) -> str:
        """Bind a queue of a foreign client to an event, and return its name."""
        queue = self.tap_name(event_type)
        self._channel.queue_declare(queue, durable=True, arguments=arguments)
        self._channel.queue_bind(queue, self.names.exchange(event_type))
        return queue

    def tap_name(self, event_type: str) -> str:
        """The queue of :meth:`tap`."""
        return f"{self.settings.namespace}.tap.{event_type}"

    def declare_exchange(self, event_type: str, kind: str = "fanout") -> None:
        """Declare an event's exchange, as a worker would."""
        self._channel.exchange_declare(self.names.exchange(event_type), kind, durable=True)

    def declare_queue(self, queue: str, arguments: dict[str, Any] | None = None) -> None:
        """Declare a durable queue."""
        self._channel.queue_declare(queue, durable=True, arguments=arguments)

    def bind(self, queue: str, event_type: str) -> None:
        """Bind a queue to an event's exchange, as a worker would."""
        self._channel.queue_bind(queue, self.names.exchange(event_type), routing_key="")

    def unbind(self, queue: str, event_type: str) -> None:
        """Take away what :meth:`bind` gave."""
        self._channel.queue_unbind(queue, self.names.exchange(event_type), routing_key="")

    def ids(self, queue: str, *, is_log: bool = False, quiet_s: float = 1.0) -> list[str]:
        """Take every message off a queue, or read a log, until none comes for a while; return their
        ids in order."""
        channel = self._connection.channel()
        channel.basic_qos(prefetch_count=500)
        arguments = {"x-stream-offset": "first"} if is_log else None
        ids: list[str] = []
        for method, properties, _ in channel.consume(
            queue, arguments=arguments, inactivity_timeout=quiet_s
        ):
            if method is None:
                break
            ids.append(properties.message_id)
            channel.basic_ack(method.delivery_tag)
        channel.close()
        return ids

    def delete_queue(self, queue: str) -> None:
        """Delete a queue, whoever uses it."""
        self._channel.queue_delete(queue)

    def remove_consumer(self, consumer: str) -> None:
        """Remove every queue a consumer of the namespace may have."""
        names = self.names
        for queue in (
            names.queue(consumer),
            names.dead(consumer),
            names.paused(consumer),
            names.backfill(consumer),
            names.workers(consumer),
            *(names.retry(consumer, bucket_s) for bucket_s in RETRY_BUCKETS_S),
        ):
            self._channel.queue_delete(queue)
        self._channel.exchange_delete(names.backfill(consumer))

    def remove_event(self, event_type: str) -> None:
        """Remove what an event of the namespace may have."""
        names = self.names
        self._channel.queue_delete(names.log(event_type))
        self._channel.queue_delete(self.tap_name(event_type))
        self._channel.exchange_delete(names.exchange(event_type))
        self._channel.exchange_delete(names.control())

    def _declared(self, queue: str) -> Any:
        try:
            return self._channel.queue_declare(queue, passive=True)
        except pika.exceptions.ChannelClosedByBroker:
            self._channel = self._connection.channel()
            return None


def remove_namespace(
    settings: Settings, consumers: Collection[str], event_types: Collection[str]
) -> None:
    """Remove everything consumers and events of a namespace had, each over its own connection: the
    broker takes its time for every queue."""

    # RabbitMQ 3.10 may end the connection (541) where many quorum queues are deleted at once.
    @retry(
        retry=retry_if_exception_type(pika.exceptions.ConnectionClosedByBroker),
        stop=stop_after_attempt(5),
        wait=wait_fixed(0.5),
        reraise=True,
    )
    def remove(kind: str, name: str) -> None:
        probe = Probe(settings)
        try:
            (probe.remove_consumer if kind == "consumer" else probe.remove_event)(name)
        finally:
            probe.close()

    work = [("consumer", name) for name in consumers] + [("event", name) for name in event_types]
    with ThreadPoolExecutor(len(work)) as pool:
        for done in [pool.submit(remove, *one) for one in work]:
            done.result()


class Namespaces:
    """Hands out namespaces, and tells whether they are empty at the end.

    Args:
        run: what the name of each begins with.
    """

    def __init__(self, run: str) -> None:
        self._run = run
        self._numbers = itertools.count(1)

    def another(self) -> str:
        """Return one that nobody else uses."""
        return f"{self._run}-{next(self._numbers)}"

    def check_empty(self, broker: Broker, within_s: float = 5.0) -> None:
        """Fail where something is left on a broker, and remove it.

        What goes with a connection that has just ended is given a while.
        """
        if broker.ctl is None:
            return
        deadline = time.monotonic() + within_s
        while left := self._left_on(broker.ctl):
            if time.monotonic() > deadline:
                _remove(broker.url, left)
                raise AssertionError(f"left on the broker, and removed now: {', '.join(left)}")

    def _left_on(self, ctl: Ctl) -> list[str]:
        names = ctl("list_queues", "name") + ctl("list_exchanges", "name")
        return sorted(name for name in names.split() if name.startswith(f"{self._run}-"))


def _remove(url: str, names: Iterable[str]) -> None:
    connection = pika.BlockingConnection(pika.URLParameters(url))
    try:
        channel = connection.channel()
        for name in names:
            channel.queue_delete(name)
            channel.exchange_delete(name)
    finally:
        connection.close()
