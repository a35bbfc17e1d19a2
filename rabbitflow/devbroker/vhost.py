"""One virtual host: its exchanges, queues and bindings, and the way of a message through them."""

from __future__ import annotations

import secrets
from collections import deque
from dataclasses import dataclass
from typing import Any

from rabbitflow.devbroker.activity import Counters
from rabbitflow.devbroker.arguments import Policy, check_equal, inequivalent
from rabbitflow.devbroker.clock import Clock, Timer
from rabbitflow.devbroker.deadletter import carbon_copies, completes_a_cycle, dead_letter
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
from rabbitflow.devbroker.stream import Stream

Queue = MessageQueue | Stream

HELD_AGAIN_AFTER_S = 1.0
"""Dead letters that no queue took, at least once, are offered again after so long."""


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
        self._deaths: deque[tuple[MessageQueue, Message, str]] = deque()
        self._is_burying = False
        self._holding: set[MessageQueue] = set()
        self._again: Timer | None = None
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
            else MessageQueue(declared, self.clock, self.bury)
        )
        self.queues[name] = queue
        self.touch(queue)
        self.offer_held()
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
            self._holding.discard(queue)
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
            self.offer_held()
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
        self.offer_held()

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
        exchange = self.exchange(message.exchange)
        queues = self._route(exchange, message)
        self._counters.published += 1
        if message.headers and "BCC" in message.headers:
            message = message.without("BCC")
        taken = True
        for queue in queues:
            taken = queue.publish(message) and taken
        return Outcome(bool(queues), taken)

    def _route(self, exchange: Exchange, message: Message) -> list[Queue]:
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

    # Dead letters

    def bury(self, queue: MessageQueue, message: Message, reason: str) -> None:
        """Dead-letter a message, or drop it where its queue has no dead-letter exchange."""
        self._deaths.append((queue, message, reason))
        if self._is_burying:
            return
        # One after the other: a death that causes the next may do so a thousand times over.
        self._is_burying = True
        try:
            while self._deaths:
                self._bury(*self._deaths.popleft())
        finally:
            self._is_burying = False

    def _bury(self, queue: MessageQueue, message: Message, reason: str) -> None:
        policy = queue.declared.policy
        self._counters.died[reason] += 1
        if policy.dead_letter_exchange is None:
            return
        dead = dead_letter(
            message,
            queue=queue.name,
            reason=reason,
            exchange=policy.dead_letter_exchange,
            routing_key=policy.dead_letter_routing_key,
            now=self.clock.now(),
        )
        if self._pass_on(dead):
            return
        if policy.keeps_until_taken:
            queue.held.append(dead)
            self._hold(queue)

    def _pass_on(self, dead: Message) -> bool:
        """Publish a dead letter; return whether every queue it goes to has it."""
        exchange = self.exchanges.get(dead.exchange)
        if exchange is None:
            return False
        queues = self._route(exchange, dead)
        ways = [queue for queue in queues if not completes_a_cycle(queue.name, dead)]
        taken = bool(queues)
        for queue in ways:
            taken = queue.publish(dead) and taken
        self._counters.dead_lettered += bool(ways) and taken
        return taken

    def _hold(self, queue: MessageQueue) -> None:
        self._holding.add(queue)
        if self._again is None:
            at = self.clock.now() + HELD_AGAIN_AFTER_S
            self._again = self.clock.call_at(at, self._offer_again)

    def _offer_again(self) -> None:
        self._again = None
        self.offer_held()
        if self._holding:
            self._hold(next(iter(self._holding)))

    def offer_held(self) -> None:
        """Offer the dead letters that no queue took so far: one may be there now."""
        for queue in tuple(self._holding):
            while queue.held and self._pass_on(queue.held[0]):
                queue.held.popleft()
            if not queue.held:
                self._holding.discard(queue)

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
        for timer in (*self._unused.values(), self._again):
            if timer is not None:
                timer.cancel()
        self._unused.clear()
        self._again = None

    def resume(self) -> None:
        """Let time pass again, and expire what is due."""
        for queue in list(self.queues.values()):
            queue.reopen()
            self.touch(queue)
        for queue in tuple(self._holding):
            self._hold(queue)
