"""The runtime of one consumer in one process: what belongs together is wired, run and stopped."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING

from rabbitflow.breaker import BreakerState
from rabbitflow.cipher import Cipher
from rabbitflow.consumer import Consumer
from rabbitflow.publisher import Publisher
from rabbitflow.settings import Settings
from rabbitflow.signature import Signature
from rabbitflow.signing import TrustedKeys
from rabbitflow.topology import Names
from rabbitflow.worker.backlog import Backlog, Counted
from rabbitflow.worker.clock import Clock, SteadyClock
from rabbitflow.worker.crew import Crew
from rabbitflow.worker.execution import Execution
from rabbitflow.worker.handling import Handling, OnEnded
from rabbitflow.worker.intake import Intake
from rabbitflow.worker.lanes import Lanes
from rabbitflow.worker.ordered import Ordered
from rabbitflow.worker.ownership import Ownership
from rabbitflow.worker.partitioner import Partitioner
from rabbitflow.worker.process import Beat
from rabbitflow.worker.provision import Provision
from rabbitflow.worker.reception import Direct, Reception, Window
from rabbitflow.worker.registration import BrokerLost, Registration
from rabbitflow.worker.settlement import Settlement
from rabbitflow.worker.suspects import Strike, SuspectNote

if TYPE_CHECKING:
    from rabbitflow.store.inbox import DatabaseInbox

__all__ = ["BrokerLost", "ConsumerRuntime"]

logger = logging.getLogger(__name__)


class ConsumerRuntime:
    """Runs one consumer until told to stop.

    Args:
        consumer: what to run.
        settings: where, and with which limits.
        strikes: events that killed a process they ran alone in, by id.
        note: where the id of a delivery that runs alone is noted; None where nobody reads it.
        after_crash: the process before this one died: begin with prefetch 1, until a delivery comes
            that the broker never took back.
        clock: of breakers, rate limits and failures; the real time where None.
        on_ended: called when an event ended; None where nobody asks.
        counts_backlog: ask the broker how many messages wait in the consumer's queues.
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
        counts_backlog: bool = False,
    ) -> None:
        clock = clock or SteadyClock()
        self.needs_replacement = False
        self._consumer = consumer
        self._settings = settings
        self._stopping = asyncio.Event()
        self._stopping_now = asyncio.Event()
        self._publisher = Publisher(settings=settings, source=consumer.name)
        self._provision = Provision(consumer, settings, self._publisher)
        self._intake = Intake(
            consumer.prefetch,
            is_cautious=after_crash,
            breaker=consumer.breaker,
            rate=consumer.rate,
            clock=clock,
        )
        self._execution = Execution(consumer.concurrency, self._replace)
        self._once: DatabaseInbox | None = None
        self._lanes: Lanes | None = None
        if consumer.ordering is not None:
            self._lanes = Lanes(asyncio.get_running_loop(), clock, self._count)
        self._settlement = Settlement(
            consumer.name,
            Names(settings.namespace),
            self._publisher.channel,
            self._provision.provide_again,
        )
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
            TrustedKeys.of(settings),
            None if self._lanes is None else self._lanes.postpone,
        )
        self._crew = Crew(self.handling, self._intake, note, consumer.slots, self._lanes)
        self._reception = self._received()
        self._registration = Registration(
            consumer,
            settings,
            self._publisher,
            self._provision,
            self._intake,
            self._crew,
            self._reception,
            self._stopping,
            self._prepare,
            after_crash=after_crash,
        )
        self._backlog: Backlog | None = None
        if counts_backlog:
            buckets_s = tuple(consumer.retry_buckets_s())
            counted = Counted(consumer.name, buckets_s, consumer.partitions)
            self._backlog = Backlog([counted], settings, self._registration.connection)

    def _received(self) -> Reception:
        consumer, settings, names = self._consumer, self._settings, Names(self._settings.namespace)
        name, queue = consumer.name, names.queue(consumer.name)
        crew, lanes, intake = self._crew, self._lanes, self._intake
        if consumer.ordering is None or lanes is None:
            return Direct(queue, crew, intake)
        channel = self._publisher.channel
        partitioner = Partitioner(
            name, consumer.ordering, names, channel, self._settlement, self.handling
        )
        ownership = Ownership(name, consumer.partitions, settings, crew, lanes, intake)
        return Ordered(name, queue, settings, partitioner, ownership, crew, lanes, intake)

    def _count(self, more: int) -> None:
        self._crew.count(more)

    def _signatures(self) -> dict[str, Signature]:
        consumer, settings = self._consumer, self._settings
        signatures = consumer.resolve(Cipher.at(settings.encryption_keys_file))
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

    async def _prepare(self) -> None:
        if self._once is not None:
            await self._once.open()

    @property
    def is_ready(self) -> bool:
        """Whether the broker hands us what we ask for, and every outcome can be settled."""
        return (
            self._registration.stands
            and self._publisher.channel.is_open
            and not self.handling.is_stuck
            and not self._stopping.is_set()
        )

    @property
    def in_flight(self) -> int:
        """How many deliveries are in this process, not settled yet."""
        return self._reception.in_flight

    @property
    def windows(self) -> Mapping[str, Window]:
        """How many deliveries of each queue it asks for just now, and how many it has."""
        return self._reception.windows

    @property
    def waiting_for_retry(self) -> int:
        """How many of these deliveries wait here for their next attempt."""
        return 0 if self._lanes is None else self._lanes.waiting

    @property
    def is_busy(self) -> bool:
        """Whether an event is being handled or begins at once (:attr:`Crew.is_busy`)."""
        return self._crew.is_busy

    def beat(self) -> Beat:
        """Return what this process has to tell of itself."""
        messages = {} if self._backlog is None else self._backlog.messages
        return Beat(
            is_ready=self.is_ready,
            is_paused=self._intake.holds_back,
            is_breaker_open=self._intake.breaker_state is not BreakerState.CLOSED,
            in_flight=self.in_flight,
            handled=self.handling.metrics.figures(),
            published=self._publisher.metrics.figures(),
            oldest_waiting_s=self._crew.oldest_waiting_s,
            connected={
                "consume": self._registration.is_connected,
                "publish": self._publisher.channel.is_open,
            },
            messages=messages.get(self._consumer.name, {}),
        )

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
            BrokerLost: it could not be reached for a minute.
        """
        name = self._consumer.name
        tasks = [asyncio.create_task(self._consume(), name=f"{name}-consuming")]
        tasks += self._crew.start(name)
        if self._backlog is not None:
            tasks.append(asyncio.create_task(self._backlog.watch(), name=f"{name}-backlog"))
        if self._consumer.from_beginning:
            tasks.append(asyncio.create_task(self._provision.copy_past(), name=f"{name}-past"))
        try:
            # All but the first end by a defect only, and that must not go unnoticed.
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._intake.close()
            await self.handling.close()
            await self._reception.close()
            if self._registration.subscription is not None:
                await self._registration.subscription.close()
            if self._once is not None:
                await self._once.close()
            await self._publisher.close()
            self._execution.close()

    async def _consume(self) -> None:
        await self._registration.keep()
        await self._drain()

    async def _drain(self) -> None:
        subscription, crew, name = self._registration.subscription, self._crew, self._consumer.name
        if subscription is None:
            return
        logger.info("%s stops; %d events are still in it", name, self.in_flight)
        await self._reception.drain(
            subscription, self._stopping_now, self._settings.shutdown_timeout_s
        )
        if crew.unfinished:
            logger.warning(
                "%s stops with %d events unfinished; they go back to its queue",
                name,
                crew.unfinished,
            )

    def _replace(self) -> None:
        """Stop so that a fresh process takes over: a thread of this one hangs for good."""
        self.needs_replacement = True
        self.stop()
