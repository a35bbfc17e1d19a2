"""Consumers in a test: on an embedded broker of their own, with a time that the test moves.

Events go the whole way: through the client library, an AMQP broker, its queues and retry queues,
and back. Nothing of rabbitflow is replaced but the clock.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Self

from pydantic import SecretStr

from rabbitflow.consumer import Consumer
from rabbitflow.deadletters import moves
from rabbitflow.deadletters.letter import Letter
from rabbitflow.devbroker import DevBroker, VirtualClock
from rabbitflow.durations import Duration, seconds
from rabbitflow.errors import ConfigurationError, RabbitflowError
from rabbitflow.event import Event, EventDecoder
from rabbitflow.observe.metrics import SUCCEEDED
from rabbitflow.publisher import Publisher
from rabbitflow.settings import Settings
from rabbitflow.testing.clock import TestTime
from rabbitflow.topology import RETRY_BUCKETS_S, Names
from rabbitflow.worker.runtime import ConsumerRuntime

WITHIN_S = 10.0
LOOK_EVERY_S = 0.001


class NotSettled(RabbitflowError, AssertionError):
    """Something still waits or runs, and the text says what; a failed test, not an error."""


class Flow:
    """A broker of its own with consumers running on it, in this process.

    ``async with Flow(payment, rating) as flow`` starts both and stops both.

    Args:
        consumers: what runs; none for a test of who announces.
        within_s: how long to wait for anything, in seconds of real time, before the test fails.

    Attributes:
        broker: the embedded broker, for looking into queues.
        settings: what a publisher of the test's own takes.
        publisher: announces the test's events.
    """

    def __init__(self, *consumers: Consumer, within_s: float = WITHIN_S) -> None:
        names = [consumer.name for consumer in consumers]
        if len(set(names)) < len(names):
            raise ConfigurationError(f"two consumers have one name: {', '.join(names)}")
        self._clock = VirtualClock()
        self._time = TestTime(self._clock)
        self._consumers = consumers
        self._within_s = within_s
        self._handled: dict[str, list[Event[Any]]] = {name: [] for name in names}
        self._runtimes: dict[str, ConsumerRuntime] = {}
        self._running: list[asyncio.Task[None]] = []
        self.broker = DevBroker(clock=self._clock)

    async def __aenter__(self) -> Self:
        await self.broker.start()
        # Not load_settings: the environment of whoever runs the test must not matter.
        self.settings = Settings(url=SecretStr(self.broker.url), metrics_port=0)
        self.publisher = Publisher(settings=self.settings)
        self._names = Names()
        try:
            await self._start()
        except BaseException:
            await self._stop()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._stop()

    # Acting

    async def publish(self, event: str | Event[Any], data: Any = None, **fields: Any) -> Event[Any]:
        """Announce an event and return it, as :meth:`rabbitflow.Publisher.publish`. Where it has no
        time of its own, it is announced at the test's time."""
        if isinstance(event, str):
            fields.setdefault("timestamp", self._time.utc())
        return await self.publisher.publish(event, data, **fields)

    async def advance(self, duration: Duration) -> None:
        """Let ``duration`` pass, in seconds or as ``"5m"``: retries that are due come back,
        breakers probe. Returns when what came of it is done.

        Raises:
            NotSettled: it is not done within ``within_s`` seconds of real time.
        """
        await self.idle()
        end = self._clock.now() + seconds(duration)
        while True:
            due = self._clock.next_due
            step = end if due is None else min(end, due)
            # What comes back now may fail again, and be due once more before the end.
            await self._come_to(step)
            if self._clock.now() >= end:
                return

    async def idle(self) -> None:
        """Return when nothing moves any more without time passing: every event is handled, is a
        dead letter, or waits for its retry or for a consumer that takes nothing just now.

        Raises:
            NotSettled: something still moves after ``within_s`` seconds of real time.
        """
        await self._until(self._moving)

    async def settled(self) -> None:
        """Return when every event is handled, its retries used up, or a dead letter. Time passes as
        far as retries need it.

        Raises:
            NotSettled: something waits for what no time brings, such as a consumer that is paused;
                or something still moves after ``within_s`` seconds of real time.
        """
        await self.idle()
        while waiting := self._waiting():
            due = self._clock.next_due
            if due is None:
                raise NotSettled(f"it would wait for ever: {', '.join(waiting)}")
            await self._come_to(due)

    async def replay(self, consumer: str) -> int:
        """Put the dead letters of ``consumer`` back into its queue, as ``rabbitflow dlq replay``
        does, and return how many."""
        return await moves.replay(consumer, self.settings)

    # Asking

    def handled(self, consumer: str) -> list[Event[Any]]:
        """The events that ``consumer`` handled, in order, again where it did so again.

        Raises:
            KeyError: no consumer of that name runs here.
        """
        return list(self._handled[consumer])

    def dead_letters(self, consumer: str) -> list[Letter]:
        """The dead letters of ``consumer``, the oldest first. Looking takes nothing."""
        return [
            Letter.read(stored.body, stored.properties, self._names)
            for stored in self.broker.messages(self._names.dead(consumer))
        ]

    def published(self, event_type: str) -> list[Event[Any]]:
        """The events of a type that anybody announced, in order, from the event log."""
        decode = EventDecoder[Any]()
        return [
            decode(stored.body, stored.properties.message_id)
            for stored in self.broker.messages(self._names.log(event_type))
        ]

    def waiting_for_retry(self, consumer: str) -> int:
        """How many events of ``consumer`` wait for their next attempt."""
        queues = self.broker.queues()
        here = self._runtimes[consumer].waiting_for_retry if consumer in self._runtimes else 0
        return here + sum(
            queues[name].ready
            for bucket_s in RETRY_BUCKETS_S
            if (name := self._names.retry(consumer, bucket_s)) in queues
        )

    # Breaking

    async def restart_broker(self) -> None:
        """Stop the broker and start it again; it keeps what RabbitMQ keeps. Returns when every
        consumer is back."""
        await self.broker.restart()
        await self._until_ready()

    async def drop_connections(self) -> None:
        """Reset every connection, as a failing network does. Returns when every consumer is
        back."""
        self.broker.drop_connections()
        await self._until_ready()

    def hold_confirms(self) -> None:
        """Let the broker confirm nothing, until :meth:`release_confirms`."""
        self.broker.hold_confirms()

    def release_confirms(self) -> None:
        """Confirm what was held, and what comes."""
        self.broker.release_confirms()

    def duplicate_next(self, consumer: str, times: int = 1) -> None:
        """Deliver the next events of ``consumer`` twice: their first ack is lost."""
        self.broker.duplicate_next(self._names.queue(consumer), times)

    # Inside

    async def _start(self) -> None:
        for consumer in self._consumers:
            handled = self._handled[consumer.name]

            def note(
                event_id: str,
                outcome: str,
                event: Event[Any] | None,
                handled: list[Any] = handled,
            ) -> None:
                if outcome == SUCCEEDED:
                    handled.append(event)

            runtime = ConsumerRuntime(consumer, self.settings, clock=self._time, on_ended=note)
            self._runtimes[consumer.name] = runtime
            self._running.append(asyncio.create_task(runtime.run(), name=consumer.name))
        await self._until_ready()

    async def _stop(self) -> None:
        for runtime in self._runtimes.values():
            runtime.stop_now()
        results = await asyncio.gather(*self._running, return_exceptions=True)
        await self.publisher.close()
        await self.broker.stop()
        for result in results:
            if isinstance(result, Exception):
                raise result

    async def _come_to(self, moment: float) -> None:
        """Let it become ``moment``, and what is due then happen."""
        self._clock.advance(max(0.0, moment - self._clock.now()))
        # Who was woken by it begins in the next turn of the loop.
        await asyncio.sleep(LOOK_EVERY_S)
        await self.idle()

    async def _until_ready(self) -> None:
        await self._until(
            lambda: [
                f"{name} is not ready" for name, each in self._runtimes.items() if not each.is_ready
            ]
        )

    async def _until(self, obstacles: Callable[[], Sequence[str]]) -> None:
        """Return when there are no obstacles left; what ended a consumer is raised here."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._within_s
        while left := obstacles():
            for task in self._running:
                if task.done():
                    task.result()
            if loop.time() > deadline:
                raise NotSettled(f"after {self._within_s:g} s {', '.join(left)}")
            await asyncio.sleep(LOOK_EVERY_S)

    def _moving(self) -> Sequence[str]:
        """What is under way just now, in words."""
        queues = self.broker.queues()
        moving = []
        for runtime in self._runtimes.values():
            for queue, window in runtime.windows.items():
                ready, unacked = queues[queue].ready, queues[queue].unacked
                comes = ready and unacked < window.prefetch
                # An ack or a delivery is on its way while the two do not agree.
                if comes or runtime.is_busy or unacked != window.in_hand:
                    moving.append(
                        f"{queue} has {ready} events before it and {window.in_hand} in hand"
                    )
        return moving

    def _waiting(self) -> Sequence[str]:
        """What waits for time to pass, in words."""
        queues = self.broker.queues()
        waiting = []
        for name, runtime in self._runtimes.items():
            ready = sum(queues[queue].ready + queues[queue].unacked for queue in runtime.windows)
            ready -= runtime.waiting_for_retry
            if retries := self.waiting_for_retry(name):
                waiting.append(f"{name} has {retries} events that wait for a retry")
            if ready:
                waiting.append(f"{name} takes no events, and {ready} wait for it")
        return waiting
