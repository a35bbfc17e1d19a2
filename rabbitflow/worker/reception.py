"""The reception: how a consumer's events come into this process."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from typing import NamedTuple, Protocol

from rabbitflow.errors import BrokerError
from rabbitflow.worker.crew import Crew
from rabbitflow.worker.delivery import Delivery
from rabbitflow.worker.intake import Intake
from rabbitflow.worker.subscription import Subscription
from rabbitflow.worker.waiting import first_of

PAUSED = "paused; what has not begun goes back to the queue"
RESUMED = "resumed"


class Window(NamedTuple):
    """How many deliveries of a queue are asked for just now, and how many are here."""

    prefetch: int
    in_hand: int


class Reception(Protocol):
    """What stands between the subscription to a consumer's queue and the crew."""

    @property
    def look_every_s(self) -> float | None:
        """After how many seconds :meth:`look` is wanted; None for never."""

    def receive(self, delivery: Delivery) -> None:
        """Take what the broker hands out of the consumer's queue. Must not wait."""

    async def take(self, subscription: Subscription) -> None:
        """Ask for events. Raises BrokerError where the subscription can't be used."""

    async def hold_back(self, subscription: Subscription) -> None:
        """Ask for none, as the intake wants it. Raises as :meth:`take`."""

    async def look(self, subscription: Subscription) -> None:
        """Look whether others came or went. Raises as :meth:`take`."""

    async def leave(self) -> None:
        """Let go of everything that belongs to a subscription which is about to be closed."""

    async def close(self) -> None:
        """End whatever is still at work, after :meth:`drain`."""

    async def drain(
        self, subscription: Subscription, stopping_now: asyncio.Event, within_s: float
    ) -> None:
        """Take no more, and return when what is here has ended, or the time is over."""

    @property
    def in_flight(self) -> int:
        """How many deliveries are here, not settled yet."""

    @property
    def windows(self) -> Mapping[str, Window]:
        """The window of each queue, by name."""


class Direct:
    """Straight from the consumer's queue to the crew.

    Args:
        queue: the consumer's.
        crew: takes the events.
        intake: how many.
    """

    def __init__(self, queue: str, crew: Crew, intake: Intake) -> None:
        self.receive = crew.receive
        self._queue = queue
        self._crew = crew
        self._intake = intake

    look_every_s = None

    async def take(self, subscription: Subscription) -> None:
        """Subscribe with the prefetch of the intake."""
        await subscription.consume(self._intake.prefetch)

    async def hold_back(self, subscription: Subscription) -> None:
        """Cancel; what is here stays."""
        await subscription.pause()

    async def look(self, subscription: Subscription) -> None:
        """Whoever else takes events makes no difference."""

    async def leave(self) -> None:
        """There is nothing besides the subscription."""

    async def close(self) -> None:
        """Nothing is at work besides the crew."""

    async def drain(
        self, subscription: Subscription, stopping_now: asyncio.Event, within_s: float
    ) -> None:
        """Cancel, then finish: everything, or where it is held back what has begun."""
        with contextlib.suppress(BrokerError):
            # A lost connection stops the deliveries as well.
            await subscription.pause()
        finished = self._crew.idle if self._intake.holds_back else self._crew.finished
        await first_of(finished, stopping_now, within_s=within_s)

    @property
    def in_flight(self) -> int:
        """What the crew has."""
        return self._crew.unfinished

    @property
    def windows(self) -> Mapping[str, Window]:
        """Of the one queue."""
        return {self._queue: Window(self._intake.prefetch, self._crew.unfinished)}
