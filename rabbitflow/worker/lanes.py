"""Lanes: deliveries that wait for a worker task, of each key one after the other."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from itertools import chain

from rabbitflow.ordering import LONGEST_WAIT_S
from rabbitflow.topology import ATTEMPT, FIRST_FAILED_AT, ORDERED_BY
from rabbitflow.worker.acks import Acks
from rabbitflow.worker.clock import Clock, Timer
from rabbitflow.worker.delivery import Delivery
from rabbitflow.worker.inbox import Inbox

_SHORTEST_WAIT_S = 1.0


@dataclass(slots=True)
class _Lane:
    """The deliveries of one key that are here.

    Fields:
        behind: those that wait for the first one.
        held_until: when the first one may wait no longer; None while it has not failed.
        retry: what is due when, while the first one waits for its next attempt.
    """

    behind: deque[Delivery] = field(default_factory=deque)
    held_until: float | None = None
    retry: tuple[Delivery, Timer] | None = None


class Lanes:
    """An :class:`Inbox` that hands out one delivery of a key at a time.

    A lane is free for its next delivery when the task that took the one before comes for another.
    A failed delivery waits for its next attempt here, not settled, in no task's hands, and its lane
    with it. A lane belongs to a key, not to a subscription: what is delivered again after a lost
    connection waits until the run of before has ended.

    Args:
        loop: where the tasks run.
        clock: by which retries are due.
        count: told how many deliveries more are in hand, or fewer, than what tasks end.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, clock: Clock, count: Callable[[int], None]
    ) -> None:
        self._inbox = Inbox(loop)
        self._clock = clock
        self._count = count
        self._lanes: dict[str, _Lane] = {}
        self._begun: dict[asyncio.Task[object] | None, Delivery] = {}
        self._in_hand: Counter[Acks] = Counter()
        self._leaving: dict[Acks, set[str]] = {}
        self._changed = asyncio.Event()

    def __iter__(self) -> Iterator[Delivery]:
        return chain(self._inbox, *(lane.behind for lane in self._lanes.values()))

    @property
    def moving(self) -> int:
        """How many deliveries are with a task, or about to be."""
        return len(self._begun) + sum(1 for _ in self._inbox)

    @property
    def waiting(self) -> int:
        """How many deliveries wait for their next attempt."""
        return sum(lane.retry is not None for lane in self._lanes.values())

    def in_hand(self, acks: Acks) -> int:
        """How many deliveries of a subscription are here and will be settled."""
        return self._in_hand[acks]

    def put(self, delivery: Delivery) -> None:
        """Add a delivery."""
        key = _key_of(delivery)
        if key in self._leaving.get(delivery.acks, ()):
            # One before it goes back to the broker, and this one behind it.
            self._count(-1)
            return
        self._in_hand[delivery.acks] += 1
        lane = self._lanes.get(key)
        if lane is None:
            self._lanes[key] = _Lane()
            self._inbox.put(delivery)
        else:
            lane.behind.append(delivery)

    async def take(self) -> Delivery:
        """Return the next delivery whose key is free; what the task took before has ended."""
        task = asyncio.current_task()
        ended = self._begun.pop(task, None)
        if ended is not None:
            self._end(ended)
        delivery = await self._inbox.take()
        self._begun[task] = delivery
        return delivery

    def postpone(self, delivery: Delivery, delay_s: float, first_failed_at: datetime) -> bool:
        """Let the delivery of this task wait for its next attempt, and its lane with it; return
        False where it has waited for as long as it may."""
        key, now = _key_of(delivery), self._clock.now()
        lane = self._lanes[key]
        if lane.held_until is None:
            lane.held_until = now + LONGEST_WAIT_S
        left_s = lane.held_until - now
        if left_s < _SHORTEST_WAIT_S:
            return False
        self._begun.pop(asyncio.current_task(), None)
        # The task counts it as ended when it returns; it is not.
        self._count(1)
        headers = {
            **delivery.headers,
            ATTEMPT: delivery.attempt + 1,
            FIRST_FAILED_AT: first_failed_at.isoformat(),
        }
        later = delivery._replace(content=delivery.content._replace(headers=headers))
        timer = self._clock.call_at(now + min(delay_s, left_s), lambda: self._retry(key))
        lane.retry = later, timer
        if delivery.acks in self._leaving:
            self._give_back(key, lane)
        self._changed.set()
        return True

    def leave(self, acks: Acks) -> None:
        """Wait for no retry of a subscription any more: what fails, or has failed, goes back to the
        broker, and the later ones of its key with it."""
        self._leaving.setdefault(acks, set())
        for key, lane in list(self._lanes.items()):
            if lane.retry is not None and lane.retry[0].acks is acks:
                self._give_back(key, lane)

    def gives_back(self, acks: Acks) -> bool:
        """Whether a delivery of a subscription that leaves is not settled here."""
        return bool(self._leaving.get(acks))

    def forget(self, acks: Acks) -> None:
        """A subscription is gone, and nothing of it comes any more."""
        self.leave(acks)
        del self._leaving[acks]

    async def settled(self, acks: Acks) -> None:
        """Return when nothing of a subscription is in hand."""
        await self._until(lambda: not self._in_hand[acks])

    async def ended(self, acks: Acks) -> None:
        """Return when no task has a delivery of a subscription."""
        await self._until(lambda: all(one.acks is not acks for one in self._begun.values()))

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self._changed.clear()
            await self._changed.wait()

    def _retry(self, key: str) -> None:
        lane = self._lanes[key]
        assert lane.retry is not None
        delivery, lane.retry = lane.retry[0], None
        self._inbox.put(delivery)

    def _end(self, delivery: Delivery) -> None:
        key = _key_of(delivery)
        self._in_hand[delivery.acks] -= 1
        self._next(key, self._lanes[key])

    def _next(self, key: str, lane: _Lane) -> None:
        lane.held_until = None
        if lane.behind:
            self._inbox.put(lane.behind.popleft())
        else:
            del self._lanes[key]
        self._in_hand += Counter()  # without those at 0, which are of subscriptions long gone
        self._changed.set()

    def _give_back(self, key: str, lane: _Lane) -> None:
        """Let go of the first of a lane, which waits, and what is behind it of its subscription."""
        assert lane.retry is not None
        (first, timer), lane.retry = lane.retry, None
        timer.cancel()
        self._leaving[first.acks].add(key)
        kept = deque(one for one in lane.behind if one.acks is not first.acks)
        gone = 1 + len(lane.behind) - len(kept)
        lane.behind = kept
        self._in_hand[first.acks] -= gone
        self._count(-gone)
        self._next(key, lane)


def _key_of(delivery: Delivery) -> str:
    return str(delivery.headers.get(ORDERED_BY, ""))
