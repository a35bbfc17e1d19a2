"""One virtual host: its exchanges, queues and bindings, and the way of a message through them."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Any

from rabbitflow.devbroker.activity import Counters
from rabbitflow.devbroker.arguments import Policy, check_equal, inequivalent
from rabbitflow.devbroker.burial import Burial
from rabbitflow.devbroker.clock import Clock, Timer
from rabbitflow.devbroker.deadletter import carbon_copies
from rabbitflow.devbroker.exchange import PREDECLARED, Binding, Destination, Exchange
from rabbitflow.devbroker.message import Message
from rabbitflow.devbroker.queue import Declaration, MessageQueue
from rabbitflow.devbroker.replies import (
    ChannelRefusal,
    locked,
    named,
    not_found,
    precondition_failed,
)
from rabbitflow.devbroker.stream import Queue, Stream


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a publish: whether a queue was found, and whether all of them took it."""

    routed: bool
    taken: bool


class VirtualHost:
    """Exchanges and queues under one name.

    Args:
        name: of the virtual host.
        clock: by which everything in it expires.
        counters: of the broker.
    """

    def __init__(self, name: str, clock: Clock, counters: Counters) -> None:
        self.name = name
        self.clock = clock
        self.queues: dict[str, Queue] = {}
        self.exchanges = {
            name: Exchange(name, kind, durable=True) for name, kind in PREDECLARED.items()
        }
        self._counters = counters
        self._burial = Burial(self.route, clock, counters)
        self._unused: dict[str, Timer] = {}

    # Looking things up

    def queue(self, name: str, connection: object) -> Queue:
        """Return a queue.

        Raises:
            ChannelRefusal: 404, there is none; 405, it is another connection's alone.
        """
        queue = self.queues.get(name)
        if queue is None:
            raise not_found("queue", name, self.name)
        if queue.declared.owner not in (None, connection):
            raise locked(name, self.name)
        return queue

    def exchange(self, name: str) -> Exchange:
        """Return an exchange. Raises ChannelRefusal, 404, where there is none."""
        exchange = self.exchanges.get(name)
        if exchange is None:
            raise not_found("exchange", name, self.name)
        return exchange

    # Queues

    def declare_queue(
        self,
        name: str,
        arguments: dict[str, Any],
        *,
        durable: bool,
        auto_delete: bool,
        owner: object | None,
        connection: object,
    ) -> Queue:
        """Return the queue, made if it is not there yet; without a name it gets one.

        Raises:
            ChannelRefusal: 406, it is there and differs, or its arguments do not fit; 405.
        """
        if name in self.queues:
            queue = self.queues[name]
            if (owner or queue.declared.owner) and queue.declared.owner is not (owner or None):
                raise locked(name, self.name)
            self.queue(name, connection)
            self._check_same(queue, durable=durable, auto_delete=auto_delete)
            check_equal(name, self.name, arguments, queue.declared.arguments)
            self.touch(queue)
            return queue
        if name.startswith("amq."):
            raise ChannelRefusal(403, f"queue name '{name}' contains reserved prefix 'amq.*'")
        name = name or f"amq.gen-{secrets.token_urlsafe(16)}"
        policy = Policy.of(name, self.name, arguments)
        if policy.type != "classic":
            self._check_replicable(name, durable=durable, auto_delete=auto_delete, owner=owner)
        declared = Declaration(name, policy, durable, auto_delete, owner, arguments)
        queue = (
            Stream(declared, self.name, self.clock)
            if policy.type == "stream"
            else MessageQueue(declared, self.clock, self._burial.bury)
        )
        self.queues[name] = queue
        self.touch(queue)
        self._burial.offer_held()
        return queue

    def delete_queue(self, queue: Queue) -> int:
        """Delete a queue; its consumers are told. Return how many messages went with it."""
        name = queue.name
        count = 0 if isinstance(queue, Stream) else queue.ready
        self.queues.pop(name, None)
        timer = self._unused.pop(name, None)
        if timer is not None:
            timer.cancel()
        self._unbind_everywhere(("queue", name))
        queue.delete()
        if isinstance(queue, MessageQueue):
            self._burial.forget(queue)
        for consumer in queue.consumers:
            queue.consumers.remove(consumer)
            consumer.receiver.forget(consumer)
        return count

    def touch(self, queue: Queue) -> None:
        """Note that a queue is used: one that expires does so only after that."""
        after_s = queue.declared.policy.expires_s
        if after_s is None:
            return
        timer = self._unused.get(queue.name)
        if timer is not None:
            timer.cancel()

        def expire() -> None:
            if queue.consumers:
                self.touch(queue)
            else:
                self.delete_queue(queue)

        self._unused[queue.name] = self.clock.call_at(self.clock.now() + after_s, expire)

    def _check_same(self, queue: Queue, *, durable: bool, auto_delete: bool) -> None:
        declared = queue.declared
        for argument, received, current in (
            ("durable", durable, declared.durable),
            ("auto_delete", auto_delete, declared.auto_delete),
        ):
            if received != current:
                raise inequivalent("queue", queue.name, self.name, argument, received, current)

    def _check_replicable(
        self, name: str, *, durable: bool, auto_delete: bool, owner: object | None
    ) -> None:
        for fault, what in (
            (not durable, "non-durable"),
            (auto_delete, "auto-delete"),
            (owner is not None, "exclusive-owner"),
        ):
            if fault:
                raise precondition_failed(
                    f"invalid property '{what}' for {named('queue', name, self.name)}"
                )

    # Exchanges and bindings

    def declare_exchange(self, wanted: Exchange) -> None:
        """Make an exchange, where it is not there yet.

        Raises:
            ChannelRefusal: 406, it is there and differs; 403, the name is reserved.
        """
        current = self.exchanges.get(wanted.name)
        if current is None:
            if wanted.name.startswith("amq."):
                raise ChannelRefusal(
                    403, f"exchange name '{wanted.name}' contains reserved prefix 'amq.*'"
                )
            self.exchanges[wanted.name] = wanted
            self._burial.offer_held()
            return
        for argument, received, has in (
            ("type", wanted.type, current.type),
            ("durable", wanted.durable, current.durable),
            ("auto_delete", wanted.auto_delete, current.auto_delete),
            ("internal", wanted.internal, current.internal),
            ("alternate-exchange", wanted.alternate, current.alternate),
        ):
            if received != has:
                raise inequivalent("exchange", wanted.name, self.name, argument, received, has)

    def delete_exchange(self, name: str) -> None:
        """Delete an exchange and every binding to and from it; harmless where there is none."""
        if self.exchanges.pop(name, None) is not None:
            self._unbind_everywhere(("exchange", name))

    def bind(self, exchange: str, binding: Binding) -> None:
        """Bind a destination to an exchange. Raises ChannelRefusal, 404."""
        self.exchange(exchange).bind(binding)
        self._burial.offer_held()

    def unbind(self, exchange: str, binding: Binding) -> None:
        """Undo a binding; harmless where there is none."""
        source = self.exchanges.get(exchange)
        if source is not None and source.unbind(binding):
            self._delete_if_unbound(source)

    def _unbind_everywhere(self, destination: Destination) -> None:
        for exchange in list(self.exchanges.values()):
            if exchange.remove_destination(destination):
                self._delete_if_unbound(exchange)

    def _delete_if_unbound(self, exchange: Exchange) -> None:
        if exchange.auto_delete and not exchange.bindings:
            self.delete_exchange(exchange.name)

    # The way of a message

    def publish(self, message: Message) -> Outcome:
        """Route a message and let each queue take it.

        Raises:
            ChannelRefusal: 404, there is no such exchange.
        """
        queues = self.route(message)
        if queues is None:
            raise not_found("exchange", message.exchange, self.name)
        self._counters.published += 1
        if message.headers and "BCC" in message.headers:
            message = message.without("BCC")
        taken = True
        for queue in queues:
            taken = queue.publish(message) and taken
        return Outcome(bool(queues), taken)

    def route(self, message: Message) -> list[Queue] | None:
        """Return the queues a message goes to; None where its exchange is not there."""
        exchange = self.exchanges.get(message.exchange)
        if exchange is None:
            return None
        headers = message.headers
        keys = [message.routing_key]
        if headers:
            keys += carbon_copies(headers, "CC", "BCC")
        found: dict[str, Queue] = {}
        passed: set[str] = set()
        waiting = [exchange]
        while waiting:
            source = waiting.pop()
            if source.name in passed:
                continue
            passed.add(source.name)
            destinations = [
                destination for key in keys for destination in self._matches(source, key, headers)
            ]
            alternate = self.exchanges.get(source.alternate or "")
            if not destinations and source.alternate and alternate is not None:
                waiting.append(alternate)
            for kind, name in destinations:
                if kind == "exchange" and name in self.exchanges:
                    waiting.append(self.exchanges[name])
                elif kind == "queue" and name in self.queues:
                    found[name] = self.queues[name]
        return list(found.values())

    def _matches(self, source: Exchange, key: str, headers: dict[str, Any]) -> list[Destination]:
        if not source.name:
            # Every queue is bound to the default exchange under its name.
            return [("queue", key)] if key in self.queues else []
        return list(source.matches(key, headers))

    # Restart

    def forget_what_is_transient(self) -> None:
        """Keep what RabbitMQ keeps when it is restarted."""
        for queue in list(self.queues.values()):
            if not queue.declared.durable or queue.declared.owner is not None:
                self.delete_queue(queue)
        for exchange in list(self.exchanges.values()):
            if not exchange.durable:
                self.delete_exchange(exchange.name)

    def suspend(self) -> None:
        """Let no time pass: nothing expires while the broker is down."""
        for queue in self.queues.values():
            queue.suspend()
        for timer in self._unused.values():
            timer.cancel()
        self._unused.clear()
        self._burial.suspend()

    def resume(self) -> None:
        """Let time pass again, and expire what is due."""
        for queue in list(self.queues.values()):
            queue.reopen()
            self.touch(queue)
        self._burial.resume()
