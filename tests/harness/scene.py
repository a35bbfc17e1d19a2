"""A scene to break: a worker by the real command, a publisher that keeps book, and the account.

The account is computed, not guessed: whatever was confirmed is an effect, a dead letter, in a queue
or in the log.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from math import inf, nan

from rabbitflow import BrokerError, Event, Publisher
from rabbitflow.settings import Settings
from tests.harness.broker import Probe
from tests.harness.ledger import Effect
from tests.harness.waiting import eventually
from tests.harness.workers import Worker

EVENT_TYPE = "ORDER_PLACED"
RATE = 150.0
SETTLED_AFTER = 300
CONSUMERS = ("payment", "rating")

PAYMENT = """
    payment = Consumer("payment", retry=Retry.fixed(attempts=5, wait=1))
    @payment.on("ORDER_PLACED")
    async def charge(event: Event, context: Context) -> None:
        ledger.write("payment", event.id, event.data["number"], context.attempt)
"""
RATING = """
    rating = Consumer("rating", {options})
    @rating.on("ORDER_PLACED"{handler_options})
    {kind} prompt(event: Event, context: Context) -> None:
        number = event.data["number"]
        {behaviour}
        ledger.write("rating", event.id, number, context.attempt)
"""


def rating(
    behaviour: str = "pass",
    *,
    options: str = "retry=Retry.fixed(attempts=3, wait=1)",
    handler_options: str = "",
    kind: str = "async def",
) -> str:
    """The source of a rating service that behaves as told before its effect."""
    handler_options = f", {handler_options}" if handler_options else ""
    return RATING.format(
        behaviour=behaviour, options=options, handler_options=handler_options, kind=kind
    )


@dataclass
class Announcer:
    """Announces numbered orders at a steady pace, and keeps book of what the broker confirmed.

    Fields:
        confirmed: event id to the time it was announced, of every publish that returned.
        refused: publishes that raised, by the name of the error.
        rate: orders per second.
        slowest_s: the longest a publish took to return or raise, in seconds.
        times: how often each is published, with one id.
    """

    settings: Settings
    rate: float = RATE
    confirmed: dict[str, float] = field(default_factory=dict)
    refused: Counter[str] = field(default_factory=Counter)
    slowest_s: float = 0.0
    times: int = 1

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Announce while the block runs, then until every publish has returned or raised."""
        stopping = asyncio.Event()
        announcing = asyncio.create_task(self._announce(stopping))
        try:
            yield
        finally:
            stopping.set()
            await announcing

    async def _announce(self, stopping: asyncio.Event) -> None:
        window = asyncio.Semaphore(200)
        began = time.monotonic()
        async with (
            Publisher(settings=self.settings) as publisher,
            asyncio.TaskGroup() as group,
        ):
            for number in itertools.count():
                due_s = began + number / self.rate - time.monotonic()
                try:
                    # Not wait_for, which gives up on what is set where it may not wait at all: who
                    # is behind would announce until it had caught up.
                    async with asyncio.timeout(max(0.0, due_s)):
                        await stopping.wait()
                    return
                except TimeoutError:
                    await window.acquire()
                    group.create_task(self._one(publisher, number, window))

    async def _one(self, publisher: Publisher, number: int, window: asyncio.Semaphore) -> None:
        event = Event[dict[str, int]](type=EVENT_TYPE, data={"number": number})
        at, began = time.time(), time.monotonic()
        try:
            for _ in range(self.times):
                await publisher.publish(event)
            self.confirmed[event.id] = at
        except BrokerError as error:
            self.refused[type(error).__name__] += 1
        finally:
            self.slowest_s = max(self.slowest_s, time.monotonic() - began)
            window.release()


@dataclass(frozen=True)
class Account:
    """What became of the confirmed events of one scene, over all its consumers."""

    confirmed: int
    lost: int
    duplicated: int
    dead: int
    left: int
    payment_p99_ms: float


class Scene:
    """Payment and rating, run by the real command, with somebody who announces orders.

    Args:
        settings: of the worker; the announcer may have others.
        worker: not started yet.
        probe: another client's look at the broker, made when it is needed.
    """

    def __init__(self, settings: Settings, worker: Worker, announces: Settings | None = None):
        self.settings = settings
        self.worker = worker
        self.announcer = Announcer(announces or settings)
        self._dead = {name: set[str]() for name in CONSUMERS}

    async def begin(self, rating_source: str | None = None, *options: str, **env: str) -> None:
        """Start the worker and wait until both consume, and the broker has settled."""
        self.worker.module("payment", PAYMENT)
        self.worker.module("rating", rating() if rating_source is None else rating_source)
        self.worker.start(*options, **env)
        await self.worker.ready(*CONSUMERS)
        # A quorum queue younger than half a second does not survive a kill -9 of 3.10.8.
        async with self.announcer.running():
            await self.confirmed(SETTLED_AFTER)

    async def begin_again(self) -> None:
        """Start the worker once more, as whoever supervises it would."""
        before = self.worker.said("payment consumes from queue")
        self.worker.start()
        await self.worker.ready(*CONSUMERS, times=before + 1)

    async def confirmed(self, more: int, *, within_s: float = 30.0) -> None:
        """Wait until so many more events are confirmed: at a steady pace, so long a time passed."""
        wanted = len(self.announcer.confirmed) + more
        await eventually(lambda: len(self.announcer.confirmed) >= wanted, within_s=within_s)

    def effects(self, consumer: str) -> Counter[str]:
        """How often a consumer handled each event."""
        return Counter(self.worker.ledger.ids(consumer))

    async def consumes_again(
        self,
        since: float,
        *,
        without: int | None = None,
        is_news: bool = False,
        within_s: float = 30.0,
    ) -> float:
        """Return how many seconds after ``since`` both consumers had an effect again.

        Those of the process ``without`` do not count, which was killed and may have written one on
        its way. Where ``is_news``, only those of orders announced since do: what a process has in
        hand already says nothing of its way to the broker.
        """
        announced = self.announcer.confirmed

        def shows(effect: Effect) -> bool:
            is_new = not is_news or announced.get(effect.event_id, 0.0) >= since
            return is_new and effect.pid != without

        def first_after() -> float | None:
            firsts = [
                next(
                    (
                        effect.at
                        for effect in self.worker.ledger.of(name, since=since)
                        if shows(effect)
                    ),
                    None,
                )
                for name in CONSUMERS
            ]
            return None if None in firsts else max(at for at in firsts if at is not None)

        at = await eventually(
            first_after, within_s=within_s, what=lambda: self.worker.log()[-3000:]
        )
        assert at is not None
        return at - since

    async def account(
        self,
        *,
        within_s: float = 60.0,
        is_log_counted: bool = False,
        consumers: tuple[str, ...] = CONSUMERS,
    ) -> Account:
        """Wait until every confirmed event is an effect or a dead letter of each consumer, and
        return the account; what is still in a queue, or only in the log, counts as kept."""
        confirmed = self.announcer.confirmed
        probe = Probe(self.settings)
        try:
            # What was confirmed is looked for in the queues only when time is up: it empties them.
            dead = self._dead
            deadline = time.monotonic() + within_s

            def missing() -> dict[str, set[str]]:
                for name in consumers:
                    dead[name] |= set(probe.drained_ids(probe.names.dead(name)))
                return {
                    name: confirmed.keys() - self.effects(name).keys() - dead[name]
                    for name in consumers
                }

            open_ids = missing()
            while any(open_ids.values()) and time.monotonic() < deadline:
                await asyncio.sleep(0.2)
                open_ids = missing()
            if any(open_ids.values()):
                # What a process holds is in no queue until it gives it back.
                self.worker.stop()
                # What it finished before it stopped is an effect.
                open_ids = missing()
            left = 0
            for name, ids in open_ids.items():
                if not ids:
                    continue
                kept = set(probe.kept_ids(name))
                if is_log_counted:
                    kept |= set(probe.logged_ids(EVENT_TYPE))
                left += len(ids & kept)
                open_ids[name] = ids - kept
            return Account(
                confirmed=len(confirmed),
                lost=sum(map(len, open_ids.values())),
                duplicated=sum(
                    count - 1 for name in consumers for count in self.effects(name).values()
                ),
                dead=sum(len(dead[name]) for name in consumers),
                left=left,
                payment_p99_ms=self.payment_p99_ms(),
            )
        finally:
            probe.close()

    def payment_p99_ms(self) -> float:
        """The 99th percentile of payment's time from announcement to first effect."""
        return percentile(self.payment_latencies_ms(), 99)

    def payment_latencies_ms(self, since: float = 0.0, until: float = inf) -> list[float]:
        """Payment's times from announcement to first effect, of what was announced between two
        moments and confirmed; infinite where there is no effect."""
        first: dict[str, float] = {}
        for effect in self.worker.ledger.of("payment"):
            first.setdefault(effect.event_id, effect.at)
        return [
            (first.get(event_id, inf) - at) * 1000
            for event_id, at in self.announcer.confirmed.items()
            if since <= at < until
        ]


def percentile(values: list[float], percent: int) -> float:
    """The value that so many percent stay below; NaN of none."""
    return sorted(values)[len(values) * percent // 100] if values else nan
