"""The runtime of one consumer in one process: subscribe, hand out deliveries, stop without loss."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception,
    stop_after_delay,
    wait_random_exponential,
)

from rabbitflow.breaker import BreakerState
from rabbitflow.broker import NotFound
from rabbitflow.consumer import Consumer
from rabbitflow.control import Attendance, attending, is_migrating, is_paused, listen
from rabbitflow.declaration import declare, verify
from rabbitflow.errors import AccessRefused, BrokerError, BrokerUnavailable, StoreError
from rabbitflow.log import backfill
from rabbitflow.publisher import Publisher
from rabbitflow.settings import Settings
from rabbitflow.signature import Signature
from rabbitflow.topology import Names, Topology, consumer_topology
from rabbitflow.worker.clock import Clock, SteadyClock
from rabbitflow.worker.delivery import Delivery
from rabbitflow.worker.execution import Execution
from rabbitflow.worker.gate import Gate
from rabbitflow.worker.handling import Handling, OnEnded
from rabbitflow.worker.inbox import Inbox
from rabbitflow.worker.intake import Intake
from rabbitflow.worker.process import Beat
from rabbitflow.worker.settlement import Settlement
from rabbitflow.worker.subscription import Subscription
from rabbitflow.worker.suspects import Strike, SuspectNote
from rabbitflow.worker.waiting import first_of

if TYPE_CHECKING:
    from rabbitflow.store.inbox import DatabaseInbox

CHECK_EVERY_S = 10.0
GIVE_UP_AFTER_S = 60.0
FIRST_PAUSE_S = 0.2
LONGEST_PAUSE_S = 3.0
TURN_AFTER_EVENTS = 16

PAUSED = "paused; what has not begun goes back to the queue"
RESUMED = "resumed"

logger = logging.getLogger(__name__)


class BrokerLost(BrokerUnavailable):
    """The broker could not be reached for too long; whoever supervises starts a fresh process."""


class ConsumerRuntime:
    """Runs one consumer until told to stop.

    Args:
        consumer: what to run.
        settings: where, and with which limits.
        strikes: events that killed a process they ran alone in, by id.
        note: where the id of a delivery that runs alone is noted; None where nobody reads it.
        after_crash: begin with prefetch 1, until a delivery comes that the broker never took back.
        clock: of breakers, rate limits and failures; the real time where None.
        on_ended: called when an event ended; None where nobody asks.
    """

    def __init__(
        self,
        consumer: Consumer,
        settings: Settings,
        *,
        strikes: Mapping[str, Strike] | None = None,
        note: SuspectNote | None = None,
        after_crash: bool = False,
        clock: Clock | None = None,
        on_ended: OnEnded | None = None,
    ) -> None:
        clock = clock or SteadyClock()
        self._consumer = consumer
        self._settings = settings
        self._names = Names(settings.namespace)
        self._note = note
        self._intake = Intake(
            consumer.prefetch,
            is_cautious=after_crash,
            breaker=consumer.breaker,
            rate=consumer.rate,
            clock=clock,
        )
        self._retry_buckets_s = consumer.retry_buckets_s()
        self._gate = Gate()
        self._inbox = Inbox(asyncio.get_running_loop())
        self._unfinished = 0
        self._all_finished = asyncio.Event()
        self._all_finished.set()
        self._stopping = asyncio.Event()
        self._stopping_now = asyncio.Event()
        self._told = asyncio.Event()
        self._lacks_past = asyncio.Event()
        self._subscription: Subscription | None = None
        self._attendance: Attendance | None = None
        self._has_subscribed = False
        self._was_broken = False
        self.needs_replacement = False
        self._publisher = Publisher(settings=settings, source=consumer.name)
        self._settlement = Settlement(
            consumer.name, self._names, self._publisher.channel, self._declare_again
        )
        self._execution = Execution(consumer.concurrency, self._replace)
        self._once: DatabaseInbox | None = None
        self.handling = Handling(
            consumer,
            self._signatures(),
            settings,
            self._publisher,
            self._settlement,
            self._execution,
            strikes or {},
            clock,
            on_ended,
        )

    def _signatures(self) -> dict[str, Signature]:
        consumer, settings = self._consumer, self._settings
        signatures = consumer.resolve()
        if any(handler.once for handler in consumer.handlers.values()):
            from rabbitflow.store.inbox import DatabaseInbox  # noqa: PLC0415 - the extra store

            url = consumer.database or settings.database_url.get_secret_value()
            self._once = DatabaseInbox(
                consumer.name, url, self._publisher, settings, consumer.concurrency
            )
            for event_type, handler in consumer.handlers.items():
                if handler.once:
                    signatures[event_type] = self._once.once(signatures[event_type])
        return signatures

    @property
    def is_ready(self) -> bool:
        """Whether the broker hands us what we ask for, and every outcome can be settled."""
        subscription = self._subscription
        return (
            subscription is not None
            and not subscription.lost.done()
            and (subscription.is_consuming or not self._intake.prefetch)
            and self._publisher.channel.is_open
            and not self.handling.unsettled
            and not self._stopping.is_set()
        )

    @property
    def in_flight(self) -> int:
        """How many deliveries are in this process, not settled yet."""
        return self._unfinished

    @property
    def window(self) -> int:
        """How many deliveries it asks the broker for just now; 0 while it is held back."""
        return self._intake.prefetch

    @property
    def is_busy(self) -> bool:
        """Whether an event is being handled or begins at once; not one that an operator, the
        breaker or the rate limit holds back."""
        held, inside = self._intake.held, self._gate.inside
        begins = self._unfinished > held + inside and held < self._consumer.slots
        return bool(inside or begins)

    def beat(self) -> Beat:
        """Return what this process has to tell of itself."""
        subscription = self._subscription
        return Beat(
            is_ready=self.is_ready,
            is_paused=not self._intake.prefetch,
            is_breaker_open=self._intake.breaker_state is not BreakerState.CLOSED,
            in_flight=self._unfinished,
            handled=self.handling.metrics.figures(),
            published=self._publisher.metrics.figures(),
            oldest_waiting_s=self._oldest_waiting_s(),
            connected={
                "consume": subscription is not None and not subscription.lost.done(),
                "publish": self._publisher.channel.is_open,
            },
        )

    def _oldest_waiting_s(self) -> float:
        """How long ago the oldest event was announced that is here and has not begun."""
        first = next((delivery for delivery in self._inbox if delivery.is_fresh), None)
        announced_at = None if first is None else first.properties.timestamp
        return 0.0 if announced_at is None else max(0.0, time.time() - announced_at.timestamp())

    def stop(self) -> None:
        """Take no more events, finish those that are here, then return from :meth:`run`."""
        self._stopping.set()

    def stop_now(self) -> None:
        """Finish nothing: what is not settled goes back to its queue."""
        self._stopping.set()
        self._stopping_now.set()

    async def run(self) -> None:
        """Consume until stopped.

        Raises:
            ConfigurationError: the topology on the broker is another one.
            AccessRefused: the broker refused this user at the first attempt.
            BrokerLost: it could not be reached for ``GIVE_UP_AFTER_S`` seconds.
        """
        workers = [
            asyncio.create_task(self._work(), name=f"{self._consumer.name}-{number}")
            for number in range(self._consumer.slots)
        ]
        consuming = asyncio.create_task(self._consume(), name=f"{self._consumer.name}-consuming")
        tasks = [consuming, *workers]
        if self._consumer.from_beginning:
            tasks.append(asyncio.create_task(self._copy_past()))
        try:
            # A worker task ends by a defect only, and that must not go unnoticed.
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._intake.close()
            await self.handling.close()
            if self._subscription is not None:
                await self._subscription.close()
            if self._once is not None:
                await self._once.close()
            await self._publisher.close()
            self._execution.close()

    async def _copy_past(self) -> None:
        """See to it, whenever the queue was made anew, that the past is copied to it."""
        while True:
            await self._lacks_past.wait()
            await backfill.copy_past(self._consumer.name, self._topology(), self._settings)
            self._lacks_past.clear()

    async def _consume(self) -> None:
        await self._stay_subscribed()
        await self._drain()

    async def _stay_subscribed(self) -> None:
        # Random pauses, so that the consumers of a broker that restarts do not come all at once.
        again = AsyncRetrying(
            retry=retry_if_exception(self._is_passing),
            wait=wait_random_exponential(multiplier=FIRST_PAUSE_S, max=LONGEST_PAUSE_S),
            stop=stop_after_delay(GIVE_UP_AFTER_S),
            sleep=lambda pause_s: first_of(self._stopping, within_s=pause_s),
            before_sleep=self._warn,
            reraise=True,
        )
        while not self._stopping.is_set():
            try:
                await again(self._subscribe)
            except (BrokerError, StoreError) as error:
                if not self._has_subscribed and isinstance(error, AccessRefused):
                    raise
                raise BrokerLost(f"{self._consumer.name} could not subscribe: {error}") from error
            if self._subscription is not None:
                await self._watch(self._subscription)

    @staticmethod
    def _is_passing(error: BaseException) -> bool:
        # Credentials are not tried twice: whoever supervises may have newer ones.
        return isinstance(error, BrokerError | StoreError) and not isinstance(error, AccessRefused)

    def _warn(self, state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        logger.warning("%s is not subscribed: %s", self._consumer.name, error)

    async def _subscribe(self) -> None:
        if self._stopping.is_set():
            return
        name = f"rabbitflow {self._consumer.name} {os.getpid()}"
        queue = self._names.queue(self._consumer.name)
        if self._once is not None:
            await self._once.open()
        subscription = await Subscription.open(self._settings, name, queue, self._receive)
        try:
            # First said, then looked: whoever marks first and counts then can't overlook us.
            attendance = self._attendance = await self._attend(subscription)
            await self._declare_or_verify()
            # Opened before the first delivery, so that its first failure does not wait for it.
            await self._publisher.channel.open()
            if self._settings.declare:
                await listen(subscription.connection, self._settings, self._told.set)
            await self._look_for_pause(subscription)
            await self._take(subscription)
            if self._intake.is_paused:
                await attendance.end()
                self._attendance = None
        except BaseException:
            await subscription.close()
            raise
        self._subscription = subscription
        self._has_subscribed = True
        if subscription.is_consuming:
            logger.info("%s consumes from queue %s", self._consumer.name, queue)

    async def _attend(self, subscription: Subscription) -> Attendance:
        name, settings = self._consumer.name, self._settings
        try:
            attendance = await Attendance.begin(subscription.connection, name, settings)
        except NotFound:
            await self._declare_or_verify()  # which names everything that is missing
            raise
        if await is_migrating(subscription.connection, name, settings):
            raise BrokerUnavailable(
                f"its queues are being replaced; if nobody is at it, finish with:"
                f" rabbitflow topology migrate {name} {self._consumer.module}"
            )
        return attendance

    async def _watch(self, subscription: Subscription) -> None:
        """Return when the subscription is lost, or it is time to stop."""
        intake = self._intake
        while not (self._stopping.is_set() or subscription.lost.done()):
            signals = [self._stopping, intake.changed, self._told]
            is_leaving = intake.is_paused and self._attendance is not None
            if is_leaving:
                signals.append(self._gate.emptied)
            await first_of(*signals, subscription.lost, within_s=CHECK_EVERY_S)
            if self._stopping.is_set() or subscription.lost.done():
                break
            try:
                if intake.changed.is_set():
                    await self._take(subscription)
                elif self._told.is_set():
                    self._told.clear()
                    await self._look_for_pause(subscription)
                elif is_leaving and self._gate.emptied.is_set():
                    # An open delivery would run into the broker's time-out; and who replaces the
                    # queue must know that nobody holds any.
                    subscription.acks.flush()
                    subscription.abandon(PAUSED)
                else:
                    await self._check(subscription)
            except BrokerError as error:
                subscription.abandon(str(error))
        if subscription.lost.done() and not self._stopping.is_set():
            why = subscription.lost.result()
            if why in (PAUSED, RESUMED):
                logger.debug("%s subscribes anew: %s", self._consumer.name, why)
            else:
                logger.warning("%s lost its subscription: %s", self._consumer.name, why)
            await subscription.close()

    async def _check(self, subscription: Subscription) -> None:
        """Look whether the broker still knows us, and whether we could settle a failure."""
        await subscription.check()
        if self._attendance is not None:
            name = self._consumer.name
            if not await attending(subscription.connection, name, self._settings):
                raise BrokerUnavailable(f"the broker lost sight of the workers of {name}")
        await self._look_for_pause(subscription)
        with contextlib.suppress(BrokerError):
            # The deliveries in hand are not to be lost over it; meanwhile we are not ready.
            await self._publisher.channel.open()

    async def _take(self, subscription: Subscription) -> None:
        """Ask the broker for as many events as the intake says."""
        intake = self._intake
        intake.changed.clear()
        prefetch = intake.prefetch
        if prefetch and self._attendance is None:
            # The queue may be another one by now: everything from the start.
            subscription.abandon(RESUMED)
        elif prefetch:
            await subscription.consume(prefetch)
            if self._was_broken and intake.breaker_state is BreakerState.CLOSED:
                self._was_broken = False
                logger.info(
                    "%s takes events again: its circuit breaker closed", self._consumer.name
                )
        else:
            await subscription.pause()
            if not intake.is_paused:
                self._was_broken = True
                self._say_paused("its circuit breaker")

    async def _look_for_pause(self, subscription: Subscription) -> None:
        name, settings = self._consumer.name, self._settings
        was_paused = self._intake.is_paused
        self._intake.pause(await is_paused(subscription.connection, name, settings))
        if was_paused and not self._intake.is_paused:
            logger.info("%s is resumed", name)
        elif self._intake.is_paused and not was_paused:
            self._say_paused("an operator")

    def _say_paused(self, by: str) -> None:
        logger.warning("%s is paused by %s; its queue keeps the events", self._consumer.name, by)

    async def _drain(self) -> None:
        subscription = self._subscription
        if subscription is None:
            return
        with contextlib.suppress(BrokerError):
            # A lost connection stops the deliveries as well.
            await subscription.pause()
        logger.info("%s stops; %d events are still in it", self._consumer.name, self._unfinished)
        # What is held back is not begun any more; what has begun is finished.
        finished = self._all_finished if self._intake.prefetch else self._gate.emptied
        await first_of(finished, self._stopping_now, within_s=self._settings.shutdown_timeout_s)
        if self._unfinished:
            logger.warning(
                "%s stops with %d events unfinished; they go back to its queue",
                self._consumer.name,
                self._unfinished,
            )

    def _receive(self, delivery: Delivery) -> None:
        if not delivery.came_back:
            self._intake.trust()
        self._unfinished += 1
        self._all_finished.clear()
        self._inbox.put(delivery)

    async def _work(self) -> None:
        gate, intake, inbox = self._gate, self._intake, self._inbox
        handled = 0
        while True:
            handled += 1
            if not handled % TURN_AFTER_EVENTS:
                # Handlers that never wait would keep acks, signals and signs of life waiting.
                await asyncio.sleep(0)
            delivery = await inbox.take()
            try:
                if intake.is_paused or not intake.is_free:
                    await intake.admit()
                # A delivery of a lost subscription is the broker's again.
                if delivery.acks.is_closed:
                    intake.record(failed=None)
                    continue
                if delivery.came_back:
                    failed = await self._handle_alone(delivery)
                else:
                    if not gate.is_open:
                        await gate.opened()
                    gate.enter()
                    try:
                        failed = await self.handling.handle(delivery)
                    finally:
                        gate.leave()
                intake.record(failed=failed)
            finally:
                self._unfinished -= 1
                if not self._unfinished:
                    self._all_finished.set()

    async def _handle_alone(self, delivery: Delivery) -> bool | None:
        async with self._gate.alone():
            if self._note is not None:
                self._note.write(delivery.suspect_id)
            try:
                return await self.handling.handle(delivery)
            finally:
                if self._note is not None:
                    self._note.survived()

    def _topology(self) -> Topology:
        consumer = self._consumer
        return consumer_topology(
            consumer.name, consumer.event_types, self._retry_buckets_s, self._settings
        )

    async def _declare_or_verify(self, bucket_s: int | None = None) -> None:
        consumer, settings = self._consumer, self._settings
        if bucket_s is not None and bucket_s not in self._retry_buckets_s:
            self._retry_buckets_s.append(bucket_s)
        topology = self._topology()
        connection = await self._publisher.channel.connection()
        if consumer.from_beginning:
            if await backfill.begin(connection, consumer.name, topology, settings):
                self._lacks_past.set()
        elif settings.declare:
            await declare(connection, topology, settings)
        else:
            await verify(connection, topology, settings)

    async def _declare_again(self, bucket_s: int | None) -> None:
        logger.warning("%s misses a queue of its own; declaring it again", self._consumer.name)
        await self._declare_or_verify(bucket_s)

    def _replace(self) -> None:
        """Stop so that a fresh process takes over: a thread of this one hangs for good."""
        self.needs_replacement = True
        self.stop()
