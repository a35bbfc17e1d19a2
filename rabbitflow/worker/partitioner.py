"""The partitioner: brings each event to the partition of its key, in the order in which they came.

A copy is confirmed before the event is acked, and before the next one of its key is copied. So
whoever is killed here leaves duplicates, and the first of each stand in their partition in order.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Coroutine
from functools import partial
from typing import Any

from rabbitflow.confirmed import ConfirmedChannel
from rabbitflow.errors import EventError
from rabbitflow.ordering import Ordering
from rabbitflow.topology import Names
from rabbitflow.worker.delivery import Delivery
from rabbitflow.worker.handling import Handling
from rabbitflow.worker.settlement import Settlement

WINDOW = 256
"""How many events are copied at once: also how many may be copied twice when we are killed."""


class Partitioner:
    """Copies the events of one consumer's queue to its partitions.

    Args:
        consumer: its name.
        ordering: says which partition.
        names: of the namespace.
        channel: confirms the copies.
        settlement: knows what a copy keeps.
        handling: dead-letters what has no key.

    Attributes:
        open: how many events are here that are not settled.
        idle: set while there are none.
        is_stopped: whether events stay unsettled, for the subscription to be closed.
    """

    def __init__(
        self,
        consumer: str,
        ordering: Ordering,
        names: Names,
        channel: ConfirmedChannel,
        settlement: Settlement,
        handling: Handling,
    ) -> None:
        self.open = 0
        self.idle = asyncio.Event()
        self.idle.set()
        self.is_stopped = False
        self._ordering = ordering
        self._names = names
        self._queues = [names.partition(consumer, n) for n in range(ordering.partitions)]
        self._channel = channel
        self._settlement = settlement
        self._handling = handling
        self._lanes: dict[str, deque[Delivery]] = {}
        self._careful: set[asyncio.Task[None]] = set()

    def receive(self, delivery: Delivery) -> None:
        """Copy an event, once those of its key that came before are safe."""
        if self.is_stopped:
            return
        self.open += 1
        self.idle.clear()
        try:
            self._handling.check(delivery, delivery.claimed_type(self._names))
            hashed = self._ordering.hash(delivery.body)
        except EventError as error:
            self._start(self._refuse(delivery, error))
            return
        behind = self._lanes.get(hashed)
        if behind is None:
            self._lanes[hashed] = deque()
            self._copy(hashed, delivery)
        else:
            behind.append(delivery)

    def start(self) -> None:
        """Copy what comes from now on."""
        self.is_stopped = False

    def stop(self) -> None:
        """Begin no further copy; what is not begun goes back with its subscription."""
        self.is_stopped = True
        for behind in self._lanes.values():
            self._count_out(len(behind))
            behind.clear()

    def check(self) -> None:
        """Raise what ended a task of ours: a defect."""
        for task in [task for task in self._careful if task.done()]:
            self._careful.discard(task)
            task.result()

    async def close(self) -> None:
        """End the copies that take long."""
        for task in self._careful:
            task.cancel()
        await asyncio.gather(*self._careful, return_exceptions=True)

    def _copy(self, hashed: str, delivery: Delivery) -> None:
        properties = self._settlement.partitioned(delivery, hashed)
        queue = self._queues[self._ordering.partition(hashed)]
        confirms = self._channel.confirms
        if confirms is not None and not confirms.is_full:
            told = partial(self._told, hashed, delivery)
            try:
                confirms.send("", queue, delivery.body, properties, told)
            except ConnectionError:
                pass  # the careful way opens another
            else:
                return
        self._start(self._copy_carefully(hashed, delivery))

    def _told(self, hashed: str, delivery: Delivery, error: BaseException | None) -> None:
        if error is None:
            delivery.ack()
            self._next(hashed)
        else:
            self._start(self._copy_carefully(hashed, delivery))

    async def _copy_carefully(self, hashed: str, delivery: Delivery) -> None:
        """Copy until it is confirmed, or the broker has the event back."""
        properties = self._settlement.partitioned(delivery, hashed)
        queue = self._queues[self._ordering.partition(hashed)]
        await self._handling.settled(
            delivery, lambda: self._settlement.hand_on(delivery, queue, properties)
        )
        self._next(hashed)

    async def _refuse(self, delivery: Delivery, error: EventError) -> None:
        await self._handling.refuse(delivery, error)
        self._count_out(1)

    def _next(self, hashed: str) -> None:
        self._count_out(1)
        behind = self._lanes[hashed]
        while behind:
            delivery = behind.popleft()
            if not delivery.acks.is_closed:
                self._copy(hashed, delivery)
                return
            self._count_out(1)  # the broker has it back
        del self._lanes[hashed]

    def _count_out(self, count: int) -> None:
        self.open -= count
        if not self.open:
            self.idle.set()

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._careful.add(task)
        task.add_done_callback(self._end)

    def _end(self, task: asyncio.Task[None]) -> None:
        # One that failed is kept for :meth:`check`.
        if task.cancelled() or task.exception() is None:
            self._careful.discard(task)
