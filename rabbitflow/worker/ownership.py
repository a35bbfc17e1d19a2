"""Ownership: which partitions this process handles, claimed and given up as others come and go."""

from __future__ import annotations

import asyncio
import logging
import random
from dataclasses import dataclass

from aiormq.exceptions import ChannelLockedResource

from rabbitflow.broker import (
    Connection,
    ConnectionLost,
    NotFound,
    lost_connections,
    open_channel,
    throwaway_channel,
)
from rabbitflow.inspection import look_at, queue_exists
from rabbitflow.ordering import fair_share
from rabbitflow.settings import Settings
from rabbitflow.topology import MOST_PARTITIONS, Names
from rabbitflow.worker.crew import Crew
from rabbitflow.worker.intake import Intake
from rabbitflow.worker.lanes import Lanes
from rabbitflow.worker.subscription import Subscription

FINISH_WITHIN_S = 5.0
"""How long a partition that is given up goes on with what is here; then nothing more begins."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Held:
    """A partition that this process handles."""

    subscription: Subscription
    prefetch: int


class Ownership:
    """The partitions of one consumer that this process handles.

    One is claimed by an exclusive queue, which lives on the connection that consumes: both end
    together. What is given up is finished first, and only then can another process claim it.

    Args:
        consumer: its name.
        partitions: how many there are.
        settings: where.
        crew: takes the events.
        lanes: in which they are kept in order.
        intake: how many.
    """

    def __init__(
        self,
        consumer: str,
        partitions: int,
        settings: Settings,
        crew: Crew,
        lanes: Lanes,
        intake: Intake,
    ) -> None:
        self._consumer = consumer
        self._partitions = partitions
        self._settings = settings
        self._names = Names(settings.namespace)
        self._crew = crew
        self._lanes = lanes
        self._intake = intake
        self._earlier: int | None = None
        self._held: dict[int, _Held] = {}
        self._leaving: dict[int, asyncio.Task[None]] = {}

    @property
    def queues(self) -> list[str]:
        """The queue of each partition, whoever holds it."""
        return [self._names.partition(self._consumer, n) for n in range(self._partitions)]

    @property
    def subscriptions(self) -> dict[str, Subscription]:
        """The subscription of each partition that is held, by its queue."""
        return {held.subscription.queue: held.subscription for held in self._held.values()}

    async def look(self, connection: Connection, workers: int) -> None:
        """Claim partitions up to a fair share among ``workers`` processes, or give up what is
        beyond it.

        Raises:
            BrokerError: the connection, or a partition's subscription, is lost.
        """
        self._reap()
        for number, held in self._held.items():
            if held.subscription.lost.done() and number not in self._leaving:
                raise ConnectionLost(held.subscription.lost.result())
        if self._earlier is None:
            self._earlier = await self._count_earlier(connection)
        share = fair_share(self._partitions + self._earlier, workers)
        staying = [number for number in self._held if number not in self._leaving]
        for number in staying[:]:
            # It began with one event at a time, after a crash: a channel's QoS can't be changed.
            if self._held[number].prefetch != self._intake.full:
                staying.remove(number)
                self._leave(number, FINISH_WITHIN_S)
        for number in staying[share:]:
            self._leave(number, FINISH_WITHIN_S)
        if len(staying) < share:
            await self._claim(connection, share - len(staying))

    async def give_up(self, within_s: float) -> None:
        """Give up every partition once what is here of it is finished, within ``within_s``."""
        for number in self._held:
            self._leave(number, within_s)
        if self._leaving:
            await asyncio.wait(self._leaving.values())

    async def end(self) -> None:
        """Let go of everything at once: the connection is lost, or about to be closed."""
        for task in self._leaving.values():
            task.cancel()
        await asyncio.gather(*self._leaving.values(), return_exceptions=True)
        self._leaving.clear()
        held, self._held = self._held, {}
        for one in held.values():
            await one.subscription.let_go()
            self._lanes.forget(one.subscription.acks)
        self._intake.wake()
        self._earlier = None

    async def _count_earlier(self, connection: Connection) -> int:
        """Return how many partitions there are beyond ours, from when there were more: what is in
        them is handled all the same."""
        number = self._partitions
        while self._settings.declare and number < MOST_PARTITIONS:
            queue = self._names.partition(self._consumer, number)
            if not await queue_exists(connection, queue, self._settings):
                break
            number += 1
        earlier = number - self._partitions
        if earlier:
            logger.warning(
                "%s had %d partitions more and goes on handling them; delete their queues once"
                " they are empty: %s and those after it",
                self._consumer,
                earlier,
                self._names.partition(self._consumer, self._partitions),
            )
        return earlier

    async def _claim(self, connection: Connection, count: int) -> None:
        total = self._partitions + (self._earlier or 0)
        queues = {
            self._names.partition(self._consumer, number): number
            for number in range(total)
            if number not in self._held
        }
        found = await look_at(connection, queues, self._settings)
        missing = [queue for queue in queues if queue not in found]
        if missing:
            raise NotFound(f"queue {missing[0]} is gone")
        free = [queues[queue] for queue, state in found.items() if not state.consumers]
        # Those that begin together do not all reach for the same one.
        random.shuffle(free)
        claimed: list[int] = []
        for number in free:
            if len(claimed) == count:
                break
            if await self._claim_one(connection, number):
                claimed.append(number)
        if claimed:
            logger.info(
                "%s claims partitions %s, and has %d of %d",
                self._consumer,
                ", ".join(map(str, sorted(claimed))),
                len(self._held),
                total,
            )

    async def _claim_one(self, connection: Connection, number: int) -> bool:
        names, settings = self._names, self._settings
        channel = await open_channel(connection, settings, confirms=False)
        with lost_connections():
            try:
                async with asyncio.timeout(settings.connect_timeout_s):
                    await channel.queue_declare(
                        names.partition_lock(self._consumer, number), exclusive=True
                    )
            except ChannelLockedResource:
                return False  # somebody else was first; the broker closed the channel
        queue = names.partition(self._consumer, number)
        subscription = Subscription(
            connection, channel, queue, self._crew.receive, settings, is_alone=False
        )
        prefetch = self._intake.full
        self._held[number] = _Held(subscription, prefetch)
        await subscription.consume(prefetch)
        return True

    def _leave(self, number: int, within_s: float) -> None:
        task = self._leaving.get(number)
        if task is None:
            self._leaving[number] = asyncio.create_task(self._finish(number, within_s))

    async def _finish(self, number: int, within_s: float) -> None:
        """Finish what is here of a partition, and let others have it.

        Acks are held back, so that no more comes than fits the window; the consumer is cancelled
        when nothing here is open. What can't be finished in time goes back, in order, by closing
        the channel of a consumer that is not cancelled.
        """
        subscription, lanes = self._held[number].subscription, self._lanes
        acks = subscription.acks
        acks.hold()
        lanes.leave(acks)
        try:
            async with asyncio.timeout(within_s):
                await lanes.settled(acks)
                if not lanes.gives_back(acks):
                    await subscription.pause()
                    # What was on its way when it was cancelled.
                    await lanes.settled(acks)
        except TimeoutError:
            acks.give_up()
            self._intake.wake()
            await lanes.ended(acks)
        await subscription.close()
        lanes.forget(acks)
        lock = self._names.partition_lock(self._consumer, number)
        async with throwaway_channel(subscription.connection, self._settings) as channel:
            with lost_connections():
                async with asyncio.timeout(self._settings.connect_timeout_s):
                    await channel.queue_delete(lock)
        del self._held[number]
        logger.info("%s gave up partition %d", self._consumer, number)

    def _reap(self) -> None:
        """Forget what was given up; raise what went wrong with it."""
        for number, task in list(self._leaving.items()):
            if task.done():
                del self._leaving[number]
                task.result()
