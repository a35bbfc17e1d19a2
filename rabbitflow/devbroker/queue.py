"""Classic and quorum queues: what waits, what is out with consumers, what dies and when."""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from rabbitflow.devbroker.arguments import Policy
from rabbitflow.devbroker.clock import Clock, Timer
from rabbitflow.devbroker.consumer import Consumer, Consumers, Entry
from rabbitflow.devbroker.deadletter import DELIVERY_LIMIT, EXPIRED, REJECTED, TOO_MANY
from rabbitflow.devbroker.message import Message

Bury = Callable[["MessageQueue", Message, str], None]
"""What happens with a message that dies in a queue, for a reason."""


@dataclass(frozen=True, slots=True)
class Declaration:
    """What a queue was declared as.

    Fields:
        owner: the connection that alone may use it, where it is exclusive.
    """

    name: str
    policy: Policy
    durable: bool = False
    auto_delete: bool = False
    owner: object | None = None
    arguments: dict[str, Any] = field(default_factory=dict)


class MessageQueue:
    """A queue whose messages are gone once they are settled.

    Args:
        declared: what it is.
        clock: by which its messages expire.
        bury: called with each message that dies, and why.
    """

    def __init__(self, declared: Declaration, clock: Clock, bury: Bury) -> None:
        self.declared = declared
        self.consumers = Consumers(
            single_active=declared.policy.single_active_consumer,
            hides_waiting=declared.policy.type == "quorum",
        )
        self.unacked = 0
        self.is_deleted = False
        self.held: deque[Message] = deque()
        """Dead letters, at least once: their next queue has not taken them yet."""
        self.lost_acks = 0
        """How many of the next acks are to be lost, and their messages delivered again."""
        self._clock = clock
        self._bury = bury
        self._is_quorum = declared.policy.type == "quorum"
        self._positions = itertools.count()
        self._ready: deque[Entry] = deque()
        self._returned: list[tuple[int, Entry]] = []
        self._returns = itertools.count()
        self._bytes = 0
        self._alarm: Timer | None = None
        self._alarm_at = 0.0

    @property
    def name(self) -> str:
        """Its name."""
        return self.declared.name

    @property
    def ready(self) -> int:
        """How many messages wait."""
        return len(self._ready) + len(self._returned)

    @property
    def entries(self) -> list[Entry]:
        """What waits, the next first."""
        return [entry for _, entry in sorted(self._returned, key=lambda each: each[0])] + list(
            self._ready
        )

    def publish(self, message: Message) -> bool:
        """Keep a message, and hand it out where somebody is ready; False where it is refused."""
        now = self._clock.now()
        self._drop_expired(now)
        policy = self.declared.policy
        if self._overflows(1, len(message.body)):
            if policy.overflow == "reject-publish":
                return False
            if policy.overflow == "reject-publish-dlx" and not self._is_quorum:
                self._bury(self, message, TOO_MANY)
                return False
        entry = Entry(message, next(self._positions), now, self._expiry(message, now))
        self._ready.append(entry)
        self._bytes += len(message.body)
        if self.consumers:
            self._hand_out()
        while self._overflows(0, 0) and (first := self._pop()) is not None:
            self._bury(self, first.message, TOO_MANY)
        self._drop_expired(now)
        return True

    def take(self) -> Entry | None:
        """Hand out the first message, or None where none waits. It is out until settled."""
        now = self._clock.now()
        self._drop_expired(now)
        entry = self._pop()
        if entry is not None:
            self.unacked += 1
            # What is at the head now may have been due while it stood behind.
            self._drop_expired(now)
        return entry

    def pump(self) -> None:
        """Hand out what waits, as far as consumers can take it."""
        if self.ready and self.consumers:
            now = self._clock.now()
            self._drop_expired(now)
            self._hand_out()
            self._drop_expired(now)

    def acknowledge(self, entry: Entry) -> None:
        """Let a message go: it was handled."""
        if self.lost_acks and not self.is_deleted:
            self.lost_acks -= 1
            self.give_back((entry,))
            return
        self.unacked -= 1

    def give_back(self, entries: Iterable[Entry], *, is_lost: bool = False) -> None:
        """Take messages back that were not handled; one returned too often dies.

        Args:
            entries: in the order in which they were handed out.
            is_lost: their channel is gone; else a client returned them.
        """
        limit = self.declared.policy.delivery_limit
        for entry in entries:
            self.unacked -= 1
            entry.returns += 1
            if self.is_deleted:
                continue
            if self._is_quorum and limit is not None and entry.returns > limit:
                self._bury(self, entry.message, DELIVERY_LIMIT)
                continue
            self._bytes += len(entry.message.body)
            if self._is_quorum and limit is None and not is_lost:
                # So that a message which always fails does not keep the log from being truncated.
                self._ready.append(entry)
                continue
            # A classic queue puts a message back where it was; a quorum queue serves what came
            # back first, in the order in which it did.
            order = next(self._returns) if self._is_quorum else entry.position
            heapq.heappush(self._returned, (order, entry))
        self.pump()
        self._drop_expired(self._clock.now())

    def reject(self, entry: Entry) -> None:
        """Let a message die: a consumer refused it."""
        self.unacked -= 1
        if not self.is_deleted:
            self._bury(self, entry.message, REJECTED)

    def purge(self) -> int:
        """Drop what waits; return how many."""
        count = self.ready
        self._ready.clear()
        self._returned.clear()
        self._bytes = 0
        return count

    def properties(self, entry: Entry) -> bytes:
        """Return the properties a delivery has: a quorum queue says how often it came back."""
        if self._is_quorum:
            return entry.message.raw_with("x-delivery-count", entry.returns)
        return entry.message.raw

    def delete(self) -> None:
        """It is gone, and what is still out with consumers does not come back."""
        self.is_deleted = True
        self.suspend()

    def suspend(self) -> None:
        """Let nothing expire any more."""
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None

    def reopen(self) -> None:
        """Go on after a restart: a classic queue forgets what was not published as persistent."""
        if not self._is_quorum:
            kept = [entry for entry in self.entries if entry.message.is_persistent]
            self._returned.clear()
            self._ready = deque(kept)
            self._bytes = sum(len(entry.message.body) for entry in kept)
        self._drop_expired(self._clock.now())

    def offset_of(self, arguments: dict[str, Any]) -> int:
        """Only a stream has offsets."""
        return 0

    def check_returnable(self) -> None:
        """What was handed out may come back."""

    def add(self, consumer: Consumer) -> None:
        """Add a consumer."""
        self.consumers.add(consumer)

    def _hand_out(self) -> None:
        while self.ready and (consumer := self.consumers.next_ready()) is not None:
            entry = self._pop()
            if entry is not None:
                self.unacked += not consumer.no_ack
                consumer.receiver.deliver(consumer, entry)

    def _pop(self) -> Entry | None:
        if self._returned:
            entry = heapq.heappop(self._returned)[1]
        elif self._ready:
            entry = self._ready.popleft()
        else:
            return None
        self._bytes -= len(entry.message.body)
        return entry

    def _head(self) -> Entry | None:
        if self._returned:
            return self._returned[0][1]
        return self._ready[0] if self._ready else None

    def _overflows(self, more: int, more_bytes: int) -> bool:
        policy = self.declared.policy
        return (policy.max_length is not None and self.ready + more > policy.max_length) or (
            policy.max_bytes is not None
            and self.ready + more > 0
            and self._bytes + more_bytes > policy.max_bytes
        )

    def _expiry(self, message: Message, now: float) -> float | None:
        queue_s, message_ms = self.declared.policy.message_ttl_s, message.ttl_ms
        if message_ms is None:
            return None if queue_s is None else now + queue_s
        return now + (message_ms / 1000 if queue_s is None else min(queue_s, message_ms / 1000))

    def _drop_expired(self, now: float) -> None:
        """Only at the head: what is behind a longer-lived message waits for it."""
        while (head := self._head()) is not None:
            if head.expires_at is None or head.expires_at > now:
                break
            self._pop()
            self._bury(self, head.message, EXPIRED)
        self._watch_head()

    def _watch_head(self) -> None:
        head = self._head()
        expires_at = None if head is None else head.expires_at
        if expires_at is None or (self._alarm is not None and self._alarm_at <= expires_at):
            return
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm_at = expires_at
        self._alarm = self._clock.call_at(expires_at, self._on_alarm)

    def _on_alarm(self) -> None:
        self._alarm = None
        self._drop_expired(self._clock.now())
