"""Streams: a log that consumers read from where they like, and that acks do not shorten."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from datetime import datetime
from typing import Any

from rabbitflow.devbroker.arguments import age_s
from rabbitflow.devbroker.clock import Clock
from rabbitflow.devbroker.consumer import Consumer, Consumers, Entry
from rabbitflow.devbroker.message import Message
from rabbitflow.devbroker.queue import Declaration, MessageQueue
from rabbitflow.devbroker.replies import named, not_implemented, precondition_failed

MOST_BYTES = 512 * 1024 * 1024
"""What one stream keeps in memory, whatever its arguments allow. RabbitMQ's are on disk."""


_CUT_AT_LEAST = 1024


class Stream:
    """A stream queue.

    It forgets exactly at its limits, where RabbitMQ drops whole segments of 500 MB.

    Args:
        declared: what it is.
        vhost: its virtual host, for what it says of itself.
        clock: the time of what arrives.
    """

    def __init__(self, declared: Declaration, vhost: str, clock: Clock) -> None:
        self.declared = declared
        self.consumers = Consumers()
        self.unacked = 0
        self._vhost = vhost
        self._clock = clock
        # Entry n is at n - _base; those before _oldest are forgotten, and cut off now and then.
        self._log: list[Entry] = []
        self._base = 0
        self._oldest = 0
        self._bytes = 0
        self._most_bytes = min(declared.policy.max_bytes or MOST_BYTES, MOST_BYTES)

    @property
    def name(self) -> str:
        """Its name."""
        return self.declared.name

    @property
    def ready(self) -> int:
        """How many messages it keeps."""
        return self._next - self._oldest

    @property
    def entries(self) -> list[Entry]:
        """What it keeps, the oldest first."""
        return self._log[self._oldest - self._base :]

    @property
    def _next(self) -> int:
        return self._base + len(self._log)

    def publish(self, message: Message) -> bool:
        """Append a message."""
        self._log.append(Entry(message, self._next, self._clock.now()))
        self._bytes += len(message.body)
        self._forget()
        self.pump()
        return True

    def take(self) -> Entry | None:
        """A stream is only consumed."""
        raise not_implemented(f"basic.get not supported by stream queues {self._named}")

    def pump(self) -> None:
        """Send each consumer what comes next for it."""
        for consumer in self.consumers:
            self._send_to(consumer)

    def acknowledge(self, entry: Entry) -> None:
        """Make room for the next; the stream keeps the message."""
        self.unacked -= 1

    def give_back(self, entries: Iterable[Entry], *, is_lost: bool = False) -> None:
        """A consumer is gone; where it stood is its own to remember."""
        self.unacked -= sum(1 for _ in entries)

    def reject(self, entry: Entry) -> None:
        """RabbitMQ has no such thing for a stream."""
        self.check_returnable()

    def check_returnable(self) -> None:
        """Nothing goes back into a stream.

        Raises:
            ConnectionRefusal: 540.
        """
        what = "basic.nack and basic.reject not supported by stream queues"
        raise not_implemented(f"{what} {self._named}")

    def purge(self) -> int:
        """A stream is never purged."""
        raise not_implemented(f"queue.purge not supported by stream queues {self._named}")

    def properties(self, entry: Entry) -> bytes:
        """Return the properties a delivery has: where in the stream it stands."""
        return entry.message.raw_with("x-stream-offset", entry.position)

    def delete(self) -> None:
        """Nothing of a stream is timed."""

    def suspend(self) -> None:
        """Nothing of a stream is timed."""

    def reopen(self) -> None:
        """Everything is kept."""

    def offset_of(self, arguments: dict[str, Any]) -> int:
        """Return the offset at which ``x-stream-offset`` begins.

        Raises:
            ChannelRefusal: 406, it is none of what RabbitMQ takes.
        """
        asked = arguments.get("x-stream-offset", "next")
        if asked == "first":
            return 0
        if asked == "next":
            return self._next
        if asked == "last":
            return max(0, self._next - 1)
        if isinstance(asked, bool):
            raise precondition_failed(f"invalid x-stream-offset arg {asked}")
        if isinstance(asked, int):
            return max(0, asked)
        if isinstance(asked, datetime):
            return self._first_since(asked.timestamp())
        span_s = age_s(asked) if isinstance(asked, str) else None
        if span_s is None:
            raise precondition_failed(f"invalid x-stream-offset arg {asked!r}")
        return self._first_since(self._clock.now() - span_s)

    def add(self, consumer: Consumer) -> None:
        """Add a consumer, which stands at its ``offset``."""
        self.consumers.add(consumer)

    def _send_to(self, consumer: Consumer) -> None:
        # What was forgotten meanwhile is skipped.
        consumer.offset = max(consumer.offset, self._oldest)
        while consumer.offset < self._next and consumer.is_ready:
            entry = self._log[consumer.offset - self._base]
            consumer.offset += 1
            self.unacked += 1
            consumer.receiver.deliver(consumer, entry)

    def _first_since(self, when: float) -> int:
        found = bisect_left(self._log, when, key=lambda entry: entry.arrived_at)
        return max(self._base + found, self._oldest)

    def _forget(self) -> None:
        age_s = self.declared.policy.max_age_s
        oldest_at = 0.0 if age_s is None else self._clock.now() - age_s
        while self._oldest < self._next - 1:
            entry = self._log[self._oldest - self._base]
            if self._bytes <= self._most_bytes and entry.arrived_at >= oldest_at:
                break
            self._bytes -= len(entry.message.body)
            self._oldest += 1
        surplus = self._oldest - self._base
        if surplus > _CUT_AT_LEAST and surplus > len(self._log) // 2:
            del self._log[:surplus]
            self._base = self._oldest

    @property
    def _named(self) -> str:
        return named("queue", self.name, self._vhost)


Queue = MessageQueue | Stream
"""What can be consumed from."""
