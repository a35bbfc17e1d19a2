"""Ordered: events come into this process by way of the partitions that it handles."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Mapping

from rabbitflow.broker import ConnectionLost
from rabbitflow.control import attending
from rabbitflow.errors import BrokerError
from rabbitflow.settings import Settings
from rabbitflow.worker.crew import Crew
from rabbitflow.worker.intake import Intake
from rabbitflow.worker.lanes import Lanes
from rabbitflow.worker.ownership import Ownership
from rabbitflow.worker.partitioner import WINDOW, Partitioner
from rabbitflow.worker.reception import RESUMED, Window
from rabbitflow.worker.subscription import Subscription
from rabbitflow.worker.waiting import first_of

LOOK_EVERY_S = 2.0
COPIED_WITHIN_S = 5.0
"""How long whoever stops waits for the copies that it has begun. One that is not confirmed by then
is made again by the next partitioner, behind the earlier ones of its key all the same."""

logger = logging.getLogger(__name__)


class Ordered:
    """The reception of an ordered consumer.

    Of all processes one at a time, which the broker chooses, brings the events from the consumer's
    queue to the partitions; all of them handle a share of the partitions each. Both are on the one
    connection of the subscription, and end with it.

    Args:
        consumer: its name.
        queue: the consumer's.
        settings: where.
        partitioner: copies events to their partitions.
        ownership: which of these this process handles.
        crew: takes their events.
        lanes: in which they are in order.
        intake: whether the consumer is paused.
    """

    def __init__(
        self,
        consumer: str,
        queue: str,
        settings: Settings,
        partitioner: Partitioner,
        ownership: Ownership,
        crew: Crew,
        lanes: Lanes,
        intake: Intake,
    ) -> None:
        self.receive = partitioner.receive
        self._consumer = consumer
        self._queue = queue
        self._settings = settings
        self._partitioner = partitioner
        self._ownership = ownership
        self._crew = crew
        self._lanes = lanes
        self._intake = intake

    @property
    def look_every_s(self) -> float:
        """Each time another, so that the processes do not look in step."""
        return LOOK_EVERY_S * random.uniform(0.75, 1.25)

    async def take(self, subscription: Subscription) -> None:
        """Stand by as partitioner, and claim partitions."""
        if self._partitioner.is_stopped and subscription.is_consuming:
            # What was not begun is still here, and may not be overtaken: from the start.
            subscription.abandon(RESUMED)
            return
        if not subscription.is_consuming:
            self._partitioner.start()
            await subscription.consume(WINDOW)
        await self.look(subscription)

    async def hold_back(self, subscription: Subscription) -> None:
        """Stop where an operator wants it. An open breaker stops no partitioner, and keeps events
        that are here from beginning without any help."""
        if self._intake.is_paused:
            self._partitioner.stop()
            await first_of(self._partitioner.idle, within_s=COPIED_WITHIN_S)

    async def look(self, subscription: Subscription) -> None:
        """Claim partitions, or give some up, as the number of processes wants it."""
        self._partitioner.check()
        if self._intake.is_paused:
            return
        workers = await attending(subscription.connection, self._consumer, self._settings)
        await self._ownership.look(subscription.connection, workers)

    async def leave(self) -> None:
        """Let go of the partitions. What has begun here goes on, and is waited for in its lane."""
        await self._ownership.end()

    async def drain(
        self, subscription: Subscription, stopping_now: asyncio.Event, within_s: float
    ) -> None:
        """Finish the copies, then the partitions, each handed over as soon as it is done."""
        draining = asyncio.create_task(self._drain(subscription, within_s))
        await first_of(draining, stopping_now, within_s=within_s)
        draining.cancel()
        try:
            await draining
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
        except BrokerError as error:
            logger.debug("%s lost its connection while it stopped: %s", self._consumer, error)

    async def _drain(self, subscription: Subscription, within_s: float) -> None:
        # The next partitioner is active as soon as this one's channel is closed, and not before:
        # one that is cancelled lets later events overtake those that it holds.
        subscription.acks.hold()
        await first_of(self._partitioner.idle, within_s=COPIED_WITHIN_S)
        self._partitioner.stop()
        try:
            await subscription.leave()
        except ConnectionLost:
            return  # and with it everything that could be handed over
        await self._ownership.give_up(0.0 if self._intake.holds_back else within_s)

    async def close(self) -> None:
        """End what is still at work."""
        await self._ownership.end()
        await self._partitioner.close()

    @property
    def in_flight(self) -> int:
        """What the crew has, and what is being copied."""
        return self._crew.unfinished + self._partitioner.open

    @property
    def windows(self) -> Mapping[str, Window]:
        """Of the queue and of every partition, as if all were to be held by this process."""
        is_open = not self._intake.is_paused
        windows = {self._queue: Window(WINDOW if is_open else 0, self._partitioner.open)}
        held = self._ownership.subscriptions
        for queue in self._ownership.queues:
            in_hand = self._lanes.in_hand(held[queue].acks) if queue in held else 0
            windows[queue] = Window(self._intake.full if is_open else 0, in_hand)
        return windows
