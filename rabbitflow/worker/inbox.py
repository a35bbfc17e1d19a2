"""The inbox: deliveries that wait for a worker task."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator

from rabbitflow.worker.delivery import Delivery


class Inbox:
    """Hands deliveries to long-lived worker tasks.

    A busy worker takes the next one without waiting, so that an event costs no task and no future.
    An idle one is woken first alone: a handler that never waits is through with everything before a
    second would have begun. What is left a turn of the event loop later wakes the others.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiting: deque[Delivery] = deque()
        self._idle: list[asyncio.Future[None]] = []
        self._is_waking = False

    def __iter__(self) -> Iterator[Delivery]:
        return iter(self._waiting)

    def put(self, delivery: Delivery) -> None:
        """Add a delivery."""
        self._waiting.append(delivery)
        if not self._is_waking and self._idle:
            self._is_waking = True
            self._loop.call_soon(self._wake_one)

    async def take(self) -> Delivery:
        """Return the next delivery, in the order they came."""
        waiting = self._waiting
        while not waiting:
            idle: asyncio.Future[None] = self._loop.create_future()
            self._idle.append(idle)
            await idle
        return waiting.popleft()

    def _wake_one(self) -> None:
        self._wake(1)
        if len(self._waiting) > 1 and self._idle:
            self._loop.call_soon(self._wake_rest)
        else:
            self._is_waking = False

    def _wake_rest(self) -> None:
        self._is_waking = False
        self._wake(len(self._waiting))

    def _wake(self, count: int) -> None:
        while count and self._idle:
            idle = self._idle.pop()
            if not idle.done():  # cancelled, as its worker was
                idle.set_result(None)
                count -= 1
