"""Consumers of a queue: who takes the next message."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from rabbitflow.devbroker.message import Message


@dataclass(slots=True, eq=False)
class Entry:
    """A message in one queue.

    Fields:
        message: shared with the other queues it went to.
        position: counts up in the order of arrival; in a stream it is the offset.
        arrived_at: in seconds since the epoch.
        expires_at: the same; None where it waits for ever.
        returns: how often it came back unsettled.
    """

    message: Message
    position: int
    arrived_at: float
    expires_at: float | None = None
    returns: int = 0


class Receiver(Protocol):
    """The channel behind a consumer."""

    @property
    def is_receiving(self) -> bool:
        """Whether it can take a delivery now."""

    def deliver(self, consumer: Consumer, entry: Entry) -> None:
        """Take a delivery."""

    def forget(self, consumer: Consumer) -> None:
        """The queue is gone, and its consumers with it."""


@dataclass(slots=True, eq=False)
class Consumer:
    """One basic.consume.

    Fields:
        tag: of the consumer, unique in its channel.
        queue: it consumes from, by name.
        receiver: its channel.
        no_ack: what it gets counts as settled.
        exclusive: nobody else may consume.
        priority: the higher are served first.
        prefetch: unsettled deliveries at most; 0 for any number.
        unacked: deliveries that are not settled.
        offset: of the next message, for a stream.
    """

    tag: str
    queue: str
    receiver: Receiver
    no_ack: bool = False
    exclusive: bool = False
    priority: int = 0
    prefetch: int = 0
    unacked: int = 0
    offset: int = 0

    @property
    def is_ready(self) -> bool:
        """Whether it can take one more."""
        return (not self.prefetch or self.unacked < self.prefetch) and self.receiver.is_receiving


class Consumers:
    """The consumers of one queue, in the order in which they are served.

    Args:
        single_active: the first one gets everything, until it is gone.
        hides_waiting: those that wait for it to go are not counted, as quorum queues do.
    """

    def __init__(self, *, single_active: bool = False, hides_waiting: bool = False) -> None:
        self._single_active = single_active
        self._hides_waiting = single_active and hides_waiting
        self._order: list[Consumer] = []

    def __len__(self) -> int:
        return len(self._order)

    def __iter__(self) -> Iterator[Consumer]:
        return iter(tuple(self._order))

    @property
    def shown(self) -> int:
        """How many of them a declaration of the queue tells of."""
        return min(1, len(self._order)) if self._hides_waiting else len(self._order)

    @property
    def is_exclusive(self) -> bool:
        """Whether one of them wants to be the only one."""
        return any(consumer.exclusive for consumer in self._order)

    def add(self, consumer: Consumer) -> None:
        """Add one, behind those of its priority."""
        self._order.append(consumer)
        self._sort()

    def remove(self, consumer: Consumer) -> None:
        """Remove one."""
        if consumer in self._order:
            self._order.remove(consumer)

    def next_ready(self) -> Consumer | None:
        """Return whose turn it is, or None where nobody can take anything."""
        order = self._order
        if self._single_active:
            return order[0] if order and order[0].is_ready else None
        for turn, consumer in enumerate(order):
            if consumer.is_ready:
                if len(order) > 1:
                    order.append(order.pop(turn))
                    self._sort()
                return consumer
        return None

    def _sort(self) -> None:
        # Stable: those of one priority keep taking turns. A single active consumer stays first.
        if not self._single_active and any(consumer.priority for consumer in self._order):
            self._order.sort(key=lambda consumer: -consumer.priority)
