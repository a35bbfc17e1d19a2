"""Registered at the broker: subscribed, looked after, and subscribed anew when that was lost."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Awaitable, Callable

from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception,
    stop_after_delay,
    wait_random_exponential,
)

from rabbitflow.broker import Connection, NotFound
from rabbitflow.consumer import Consumer
from rabbitflow.control import Attendance, is_migrating, is_paused, listen
from rabbitflow.errors import AccessRefused, BrokerError, BrokerUnavailable, StoreError
from rabbitflow.inspection import look_at
from rabbitflow.publisher import Publisher
from rabbitflow.settings import Settings
from rabbitflow.topology import Names
from rabbitflow.worker.crew import Crew
from rabbitflow.worker.intake import Intake
from rabbitflow.worker.provision import Provision
from rabbitflow.worker.reception import PAUSED, RESUMED, Reception
from rabbitflow.worker.subscription import Subscription
from rabbitflow.worker.waiting import first_of

CHECK_EVERY_S = 10.0

# A worker is told of a pause; it looks by itself for one whose command died before it told anybody.
# Seldom, because the broker logs every look for a mark that is not there as an error.
LOOK_FOR_PAUSE_EVERY_S = 300.0
LISTEN_AFTER_CRASH_S = 2.0
"""When a process that takes the place of one that died has itself told of a pause. The queue for it
is what the broker does most for at a start, and again at the end of a process: one that dies soon
after the other would take that time from the neighbours."""
GIVE_UP_AFTER_S = 60.0
FIRST_PAUSE_S = 0.2
LONGEST_PAUSE_S = 3.0

Prepare = Callable[[], Awaitable[None]]

logger = logging.getLogger(__name__)


class BrokerLost(BrokerUnavailable):
    """The broker could not be reached for too long; whoever supervises starts a fresh process."""


class Registration:
    """Keeps one consumer registered at the broker until it is to stop.

    Args:
        consumer: which.
        settings: where.
        publisher: must be open before the first delivery comes.
        provision: puts the queues there.
        intake: how many deliveries to ask for.
        crew: handles them.
        reception: takes them.
        stopping: set when it is to stop.
        prepare: whatever else must be there before the first delivery.
        after_crash: whether the process before this one died.

    Attributes:
        subscription: the latest; lost, while another is on its way.
    """

    def __init__(
        self,
        consumer: Consumer,
        settings: Settings,
        publisher: Publisher,
        provision: Provision,
        intake: Intake,
        crew: Crew,
        reception: Reception,
        stopping: asyncio.Event,
        prepare: Prepare,
        *,
        after_crash: bool,
    ) -> None:
        self.subscription: Subscription | None = None
        self._consumer = consumer
        self._settings = settings
        self._names = Names(settings.namespace)
        self._publisher = publisher
        self._provision = provision
        self._intake = intake
        self._crew = crew
        self._reception = reception
        self._check_at = 0.0
        self._stopping = stopping
        self._prepare = prepare
        self._told = asyncio.Event()
        self._listens_at = 0.0
        if after_crash:
            self._listens_at = asyncio.get_running_loop().time() + LISTEN_AFTER_CRASH_S
        self._is_listening = False
        self._attendance: Attendance | None = None
        self._look_for_pause_at = 0.0
        self._has_subscribed = False
        self._was_broken = False

    @property
    def stands(self) -> bool:
        """Whether the broker hands us what we ask for, as far as this side knows."""
        subscription = self.subscription
        return (
            subscription is not None
            and not subscription.lost.done()
            and (subscription.is_consuming or not self._intake.prefetch)
        )

    @property
    def is_connected(self) -> bool:
        """Whether the connection that consumes stands."""
        return self.subscription is not None and not self.subscription.lost.done()

    async def connection(self) -> Connection | None:
        """Return the connection that consumes, or None while there is none."""
        subscription = self.subscription
        if subscription is None or subscription.lost.done():
            return None
        return subscription.connection

    async def keep(self) -> None:
        """Subscribe, and subscribe anew whenever that was lost; return when it is time to stop.

        Raises:
            ConfigurationError: the topology on the broker is another one.
            AccessRefused: the broker refused this user at the first attempt.
            BrokerLost: it could not be reached for ``GIVE_UP_AFTER_S`` seconds.
        """
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
            if self.subscription is not None:
                await self._watch(self.subscription)

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
        await self._prepare()
        subscription = await Subscription.open(self._settings, name, queue, self._reception.receive)
        try:
            # First said, then looked: whoever marks first and counts then can't overlook us.
            attendance = self._attendance = await self._attend(subscription)
            await self._provision.provide()
            # Opened before the first delivery, so that its first failure does not wait for it.
            await self._publisher.channel.open()
            self._is_listening = False
            await self._listen(subscription)
            await self._look_for_pause(subscription)
            await self._take(subscription)
            if self._intake.is_paused:
                await attendance.end()
                self._attendance = None
        except BaseException:
            await self._reception.leave()
            await subscription.close()
            raise
        self._check_at = asyncio.get_running_loop().time() + CHECK_EVERY_S
        self.subscription = subscription
        self._has_subscribed = True
        if subscription.is_consuming:
            logger.info("%s consumes from queue %s", self._consumer.name, queue)

    async def _attend(self, subscription: Subscription) -> Attendance:
        name, settings = self._consumer.name, self._settings
        try:
            attendance = await Attendance.begin(subscription.connection, name, settings)
        except NotFound:
            await self._provision.provide()  # which names everything that is missing
            raise
        if await is_migrating(subscription.connection, name, settings):
            raise BrokerUnavailable(
                f"its queues are being replaced; if nobody is at it, finish with:"
                f" rabbitflow topology migrate {name} {self._consumer.module}"
            )
        return attendance

    async def _listen(self, subscription: Subscription) -> bool:
        """Be told of pauses from now on, where it is time and not so yet; return whether it began
        just now."""
        is_due = asyncio.get_running_loop().time() >= self._listens_at
        if self._is_listening or not is_due or not self._settings.declare:
            return False
        await listen(subscription.connection, self._settings, self._told.set)
        self._is_listening = True
        return True

    async def _watch(self, subscription: Subscription) -> None:
        """Return when the subscription is lost, or it is time to stop."""
        intake = self._intake
        while not (self._stopping.is_set() or subscription.lost.done()):
            signals = [self._stopping, intake.changed, self._told]
            is_leaving = intake.is_paused and self._attendance is not None
            if is_leaving:
                signals.append(self._crew.idle)
            within_s = self._reception.look_every_s or CHECK_EVERY_S
            if self._settings.declare and not self._is_listening:
                # A little late rather than early: a timer may be off by a tick of the loop's clock.
                due_s = self._listens_at + 0.01 - asyncio.get_running_loop().time()
                within_s = min(within_s, max(0.0, due_s))
            await first_of(*signals, subscription.lost, within_s=within_s)
            if self._stopping.is_set() or subscription.lost.done():
                break
            try:
                if intake.changed.is_set():
                    await self._take(subscription)
                elif self._told.is_set():
                    self._told.clear()
                    await self._look_for_pause(subscription)
                elif is_leaving and self._crew.idle.is_set():
                    # An open delivery would run into the broker's time-out; and who replaces the
                    # queue must know that nobody holds any.
                    subscription.acks.flush()
                    subscription.abandon(PAUSED)
                else:
                    await self._look(subscription)
            except BrokerError as error:
                subscription.abandon(str(error))
        if subscription.lost.done() and not self._stopping.is_set():
            why = subscription.lost.result()
            if why in (PAUSED, RESUMED):
                logger.debug("%s subscribes anew: %s", self._consumer.name, why)
            else:
                logger.warning("%s lost its subscription: %s", self._consumer.name, why)
            await self._reception.leave()
            await subscription.close()

    async def _look(self, subscription: Subscription) -> None:
        """What is done at regular times, while nothing happens."""
        if await self._listen(subscription):
            # For what nobody told until now.
            await self._look_for_pause(subscription)
            return
        now = asyncio.get_running_loop().time()
        if self._reception.look_every_s is None or now >= self._check_at:
            self._check_at = now + CHECK_EVERY_S
            await self._check(subscription)
        await self._reception.look(subscription)

    async def _check(self, subscription: Subscription) -> None:
        """Look whether the broker still knows us, and whether we could settle a failure."""
        name = self._consumer.name
        workers = self._names.workers(name)
        queues = (subscription.queue, workers)
        found = await look_at(subscription.connection, queues, self._settings)
        subscription.check(found.get(subscription.queue))
        is_seen = workers in found and found[workers].consumers
        if self._attendance is not None and not is_seen:
            raise BrokerUnavailable(f"the broker lost sight of the workers of {name}")
        is_told = self._is_listening and not self._intake.is_paused
        if not is_told or asyncio.get_running_loop().time() >= self._look_for_pause_at:
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
            await self._reception.take(subscription)
        else:
            await self._reception.hold_back(subscription)
        self._say_whether_broken()

    async def _look_for_pause(self, subscription: Subscription) -> None:
        name, settings = self._consumer.name, self._settings
        was_paused = self._intake.is_paused
        self._look_for_pause_at = asyncio.get_running_loop().time() + LOOK_FOR_PAUSE_EVERY_S
        self._intake.pause(await is_paused(subscription.connection, name, settings))
        if was_paused and not self._intake.is_paused:
            logger.info("%s is resumed", name)
        elif self._intake.is_paused and not was_paused:
            self._say_paused()

    def _say_paused(self) -> None:
        logger.warning(
            "%s is paused by an operator; its queue keeps the events", self._consumer.name
        )

    def _say_whether_broken(self) -> None:
        circuit = self._intake.circuit
        if circuit is None or circuit.is_open == self._was_broken:
            return
        self._was_broken = circuit.is_open
        if circuit.is_open:
            logger.warning(
                "%s is held back by its circuit breaker, as %d of its last %d events failed;"
                " its queue keeps the others, and one is tried in %g s",
                self._consumer.name,
                circuit.failures,
                circuit.window,
                circuit.interval_s,
            )
        else:
            logger.info("%s takes events again: its circuit breaker closed", self._consumer.name)
