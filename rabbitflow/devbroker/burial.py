"""What happens to messages that die: on to the next queue, held until it takes them, or dropped."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from rabbitflow.devbroker.activity import Counters
from rabbitflow.devbroker.clock import Clock, Timer
from rabbitflow.devbroker.deadletter import completes_a_cycle, dead_letter
from rabbitflow.devbroker.message import Message
from rabbitflow.devbroker.queue import MessageQueue
from rabbitflow.devbroker.stream import Queue

OFFER_AGAIN_AFTER_S = 1.0
"""Dead letters that no queue took, at least once, are offered again after so long."""

Route = Callable[[Message], list[Queue] | None]
"""Returns where a message goes; None where its exchange is not there."""


class Burial:
    """Dead-letters the messages of one virtual host.

    Args:
        route: says where a message goes.
        clock: for the time of death.
        counters: of the broker.
    """

    def __init__(self, route: Route, clock: Clock, counters: Counters) -> None:
        self._route = route
        self._clock = clock
        self._counters = counters
        self._deaths: deque[tuple[MessageQueue, Message, str]] = deque()
        self._is_burying = False
        self._holding: set[MessageQueue] = set()
        self._again: Timer | None = None

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

    def offer_held(self) -> None:
        """Offer the dead letters that no queue took so far: one may be there now."""
        for queue in tuple(self._holding):
            while queue.held and self._pass_on(queue.held[0]):
                queue.held.popleft()
            if not queue.held:
                self._holding.discard(queue)

    def forget(self, queue: MessageQueue) -> None:
        """The queue is deleted, and what it holds with it."""
        self._holding.discard(queue)

    def suspend(self) -> None:
        """Offer nothing while the broker is down."""
        if self._again is not None:
            self._again.cancel()
            self._again = None

    def resume(self) -> None:
        """Go on offering."""
        self._offer_later()

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
            now=self._clock.now(),
        )
        if not self._pass_on(dead) and policy.keeps_until_taken:
            queue.held.append(dead)
            self._holding.add(queue)
            self._offer_later()

    def _pass_on(self, dead: Message) -> bool:
        """Publish a dead letter; return whether every queue it goes to has it."""
        queues = self._route(dead)
        if not queues:
            return False
        ways = [queue for queue in queues if not completes_a_cycle(queue.name, dead)]
        taken = True
        for queue in ways:
            taken = queue.publish(dead) and taken
        self._counters.dead_lettered += bool(ways) and taken
        return taken

    def _offer_later(self) -> None:
        if self._again is None and self._holding:
            at = self._clock.now() + OFFER_AGAIN_AFTER_S
            self._again = self._clock.call_at(at, self._offer_again)

    def _offer_again(self) -> None:
        self._again = None
        self.offer_held()
        self._offer_later()
