"""What happens to one delivery: read, run, decide, settle."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from rabbitflow.consumer import Batch, Consumer, Handler
from rabbitflow.context import Context
from rabbitflow.errors import AlreadyHandled, EventError, RabbitflowError, RetryLater
from rabbitflow.event import Event, type_of
from rabbitflow.observe.logs import being_handled
from rabbitflow.observe.metrics import (
    DEAD_LETTERED,
    DUPLICATE,
    RETRIED,
    SUCCEEDED,
    UNKNOWN_TYPE,
    ConsumerMetrics,
    HandlerMetrics,
)
from rabbitflow.observe.tracing import tracing
from rabbitflow.publisher import CONTENT_TYPE, Publisher
from rabbitflow.retry import (
    CRASHED,
    INVALID,
    NO_HANDLER,
    REJECTED,
    RETRIES_EXHAUSTED,
    Dead,
    Failure,
    RetryIn,
)
from rabbitflow.settings import Settings
from rabbitflow.signature import HandlerFunction, Signature
from rabbitflow.signing import TrustedKeys
from rabbitflow.topology import Names
from rabbitflow.worker.batches import BatchDescription, Batches
from rabbitflow.worker.clock import Clock
from rabbitflow.worker.delivery import Delivery
from rabbitflow.worker.execution import Execution
from rabbitflow.worker.settlement import Settlement
from rabbitflow.worker.suspects import CRASH_LIMIT, Strike

if TYPE_CHECKING:
    from rabbitflow.observe.spans import Spans

STUCK_AFTER_S = 1.0
_IMMEDIATE_PAUSE_S = 0.05
_UNSETTLED_PAUSE_S = 1.0
_USUAL_CONTENT_TYPES = (CONTENT_TYPE, None)
_PLAIN_ENCODINGS = (None, "", "utf-8", "UTF-8", "identity")

logger = logging.getLogger(__name__)


OnEnded = Callable[[str, str, Event[Any] | None], object]
"""Told the id of an event, how it ended, and the event; None for a body that is none."""

Postpone = Callable[[Delivery, float, datetime], bool]
"""Lets a delivery wait here for its next attempt; False where it has waited long enough."""

Reaction = tuple[Handler, Signature, HandlerMetrics]


class _NoHandler(RabbitflowError):
    """The queue got an event type that no handler of this consumer is for."""


class _Crashed(RabbitflowError):
    """The event killed its process, as often as the limit allows."""


class Handling:
    """Handles the deliveries of one consumer, one after the other or many at once.

    Args:
        consumer: whose handlers run.
        signatures: how to call them, by event type.
        settings: limits and namespace.
        publisher: announces what handlers announce.
        settlement: carries verdicts out.
        execution: runs handlers.
        strikes: events that killed a process they ran alone in, by id.
        clock: by which failures are dated.
        on_ended: called when an event ended; None where nobody asks.
        trusted: whose events are handled; None for everybody's.
        postpone: keeps a failed delivery here until its next attempt, in the order of its key;
            None where it waits on the broker.
    """

    def __init__(
        self,
        consumer: Consumer,
        signatures: Mapping[str, Signature],
        settings: Settings,
        publisher: Publisher,
        settlement: Settlement,
        execution: Execution,
        strikes: Mapping[str, Strike],
        clock: Clock,
        on_ended: OnEnded | None,
        trusted: TrustedKeys | None = None,
        postpone: Postpone | None = None,
    ) -> None:
        self.metrics = ConsumerMetrics()
        self._settling: dict[int, float] = {}
        self._consumer = consumer
        self._names = Names(settings.namespace)
        self._max_body_bytes = settings.max_body_bytes
        self._publisher = publisher
        self._settlement = settlement
        self._execution = execution
        self._strikes = strikes
        self._clock = clock
        self._on_ended = on_ended
        self._trusted = trusted
        self._postpone = postpone
        self._loop = asyncio.get_running_loop()
        self._reactions = {
            event_type: (handler, signatures[event_type], self.metrics.of(event_type))
            for event_type, handler in consumer.handlers.items()
        }
        self._batches: dict[HandlerFunction, Batches] = {}
        self._batching = asyncio.Semaphore(consumer.concurrency)
        # What runs many events belongs to the trace and the log lines of none of them.
        self._of_no_event = contextvars.copy_context()
        self._spans = tracing()

    @property
    def is_stuck(self) -> bool:
        """Whether there is an outcome that was not settled within ``STUCK_AFTER_S`` seconds."""
        oldest_at = next(iter(self._settling.values()), None)
        return oldest_at is not None and time.monotonic() - oldest_at > STUCK_AFTER_S

    async def close(self) -> None:
        """End what runs in batches."""
        for batches in self._batches.values():
            await batches.close()

    def handle(self, delivery: Delivery) -> Coroutine[Any, Any, bool | None]:
        """Handle a delivery to its end: acked, handed to a retry queue, or dead-lettered.

        Only a cancellation, or a subscription that was lost meanwhile, leaves it to the broker.

        Returns:
            Whether the handler failed in a way that says something of what it depends on; None
            where it did not run, or refused the event itself.
        """
        spans = self._spans
        return self._handle(delivery) if spans is None else self._handle_traced(delivery, spans)

    async def _handle_traced(self, delivery: Delivery, spans: Spans) -> bool | None:
        destination, attributes = delivery.described(self._consumer.name, self._names)
        with spans.processing(
            destination, delivery.headers, attributes, is_replay=delivery.is_replay
        ):
            return await self._handle(delivery)

    async def _handle(self, delivery: Delivery) -> bool | None:
        if self._strikes and await self._ended_by_strikes(delivery):
            return None
        claimed = delivery.claimed_type(self._names)
        try:
            self.check(delivery, claimed)
            claimed = claimed or type_of(delivery.body)
            handler, signature, metrics, event = self._read(delivery, claimed)
        except EventError as error:
            await self._dead_letter(delivery, INVALID, error, claimed)
            return None
        except _NoHandler as error:
            await self._dead_letter(delivery, NO_HANDLER, error, claimed)
            return None
        announced = event.timestamp if delivery.is_fresh else None
        began = time.perf_counter()
        raised = await self._attempt(delivery, handler, signature, event)
        if raised is None:
            metrics.succeeded(began, announced)
        else:
            metrics.failed(began, announced)
        if raised is None or isinstance(raised, AlreadyHandled):
            delivery.ack()
            outcome = SUCCEEDED
            if raised is not None:
                outcome = DUPLICATE
                metrics.ended(DUPLICATE)
            if self._on_ended is not None:
                self._on_ended(event.id, outcome, event)
            return False
        return await self._failed(delivery, handler, metrics, event, raised)

    async def _failed(
        self,
        delivery: Delivery,
        handler: Handler,
        metrics: HandlerMetrics,
        event: Event[Any],
        raised: Exception,
    ) -> bool | None:
        """Do what the policy says of a failed attempt. Returns as :meth:`handle`."""
        failed_at = self._clock.utc()
        first_failed_at = delivery.first_failed_at(failed_at)
        failure = Failure(raised, delivery.attempt, first_failed_at, failed_at)
        match handler.retry.verdict(failure):
            case RetryIn(delay_s):
                if self._postpone is None:
                    await self.settled(
                        delivery, lambda: self._settlement.retry(delivery, delay_s, first_failed_at)
                    )
                elif not self._postpone(delivery, delay_s, first_failed_at):
                    await self._dead_letter(delivery, RETRIES_EXHAUSTED, raised, event.type)
                    return True
                metrics.ended(RETRIED)
                if self._on_ended is not None:
                    self._on_ended(event.id, RETRIED, event)
                if self._spans is not None:
                    self._spans.failed(raised, RETRIED)
                logger.debug("%s retries %s in %g s", self._consumer.name, event.id, delay_s)
                # Who asks for another time says nothing of how things stand.
                return None if isinstance(raised, RetryLater) else True
            case Dead(reason):
                await self._dead_letter(delivery, reason, raised, event.type)
                return None if reason == REJECTED else True

    async def refuse(self, delivery: Delivery, error: EventError) -> None:
        """Dead-letter what is no event for this consumer, unrun."""
        claimed = delivery.claimed_type(self._names)
        await self._dead_letter(delivery, INVALID, error, claimed)

    def check(self, delivery: Delivery, claimed: str | None) -> None:
        """Refuse what need not be parsed to be refused. Raises EventError."""
        body, content = delivery.body, delivery.content
        if len(body) > self._max_body_bytes:
            raise EventError(
                f"the body is {len(body)} bytes, and the limit is {self._max_body_bytes}"
                " (RABBITFLOW_MAX_BODY_BYTES)"
            )
        content_type = content.content_type
        if content_type not in _USUAL_CONTENT_TYPES and not _is_json(content_type):
            raise EventError(f"content type {content_type!r} is not application/json")
        if content.content_encoding not in _PLAIN_ENCODINGS:
            raise EventError(f"content encoding {content.content_encoding!r} is not known")
        if self._trusted is not None:
            self._trusted.verify(delivery.headers, claimed, content.message_id, body)

    def _read(self, delivery: Delivery, claimed: str | None) -> tuple[*Reaction, Event[Any]]:
        """Return the event and who handles it, from a delivery whose body may hold anything."""
        body, message_id = delivery.body, delivery.content.message_id
        reaction = self._reaction_to(claimed)
        event = reaction[1].decode(body, message_id)
        if event.type != claimed:
            if self._trusted is not None:
                raise EventError(f"its body says {event.type}, and it is signed as {claimed}")
            # The property or the exchange says otherwise; what was announced is in the body.
            reaction = self._reaction_to(event.type)
            event = reaction[1].decode(body, message_id)
        return *reaction, event

    def _reaction_to(self, event_type: str | None) -> Reaction:
        if event_type is None:
            raise EventError("not an event: the body is no JSON object with a type")
        try:
            return self._reactions[event_type]
        except KeyError:
            raise _NoHandler(
                f"consumer {self._consumer.name} has no handler for {event_type};"
                " a binding of an earlier version may still bring it"
            ) from None

    async def _attempt(
        self, delivery: Delivery, handler: Handler, signature: Signature, event: Event[Any]
    ) -> Exception | None:
        """Run the handler, also again at once where its policy says so; return what it raised."""
        runs_left = handler.retry.immediate
        while True:
            timeout_s = handler.timeout_s
            context = Context(
                event,
                self._consumer.name,
                self._publisher,
                attempt=delivery.attempt,
                is_replay=delivery.is_replay,
                deadline=None if timeout_s is None else time.monotonic() + timeout_s,
                loop=self._loop,
            )
            being_handled.set(context)
            try:
                if handler.batch is None:
                    await self._execution.run(signature, timeout_s, event, context)
                else:
                    if self._spans is not None:
                        context.bookmark = self._spans.bookmark()
                    await self._batches_of(handler, handler.batch, signature).add(event, context)
            except Exception as error:
                being_handled.set(None)
                now = self._clock.utc()
                failure = Failure(error, delivery.attempt, now, now)
                if isinstance(error, AlreadyHandled) or not runs_left:
                    return error
                if not handler.retry.is_worth_retrying(failure):
                    return error
                runs_left -= 1
            else:
                being_handled.set(None)
                return None
            await asyncio.sleep(_IMMEDIATE_PAUSE_S)

    def _batches_of(self, handler: Handler, batch: Batch, signature: Signature) -> Batches:
        batches = self._batches.get(handler.function)
        if batches is None:

            async def run(events: Sequence[Event[Any]], contexts: Sequence[Context]) -> None:
                async with self._batching:
                    being_handled.set(BatchDescription(contexts))
                    if self._spans is None:
                        await self._execution.run(signature, handler.timeout_s, events, contexts)
                        return
                    members = [context.bookmark for context in contexts if context.bookmark]
                    with self._spans.batch(self._names.queue(self._consumer.name), members):
                        await self._execution.run(signature, handler.timeout_s, events, contexts)

            batches = Batches(batch, run, self._of_no_event)
            self._batches[handler.function] = batches
        return batches

    async def _ended_by_strikes(self, delivery: Delivery) -> bool:
        strike = self._strikes.get(delivery.suspect_id)
        if strike is None:
            return False
        # The crash that made it a suspect counts once it was proven able to.
        is_first_its_own = strike.count == CRASH_LIMIT - 1 and delivery.came_back >= CRASH_LIMIT
        if strike.count < CRASH_LIMIT and not is_first_its_own:
            return False
        error = _Crashed(
            f"it killed the process it ran alone in {strike.count} times, last by {strike.cause}"
            + (", after one that it was in together with others" if is_first_its_own else "")
        )
        # Its body may be what kills, so nobody parses it.
        await self._dead_letter(delivery, CRASHED, error, delivery.claimed_type(self._names))
        return True

    async def _dead_letter(
        self, delivery: Delivery, reason: str, error: Exception, event_type: str | None
    ) -> None:
        failed_at = self._clock.utc()
        await self.settled(
            delivery,
            lambda: self._settlement.dead_letter(delivery, reason, error, failed_at, event_type),
        )
        label = event_type if event_type in self._reactions else UNKNOWN_TYPE
        self.metrics.of(label).ended(DEAD_LETTERED)
        if self._on_ended is not None:
            self._on_ended(delivery.id, DEAD_LETTERED, None)
        if self._spans is not None:
            self._spans.failed(error, DEAD_LETTERED)

    async def settled(self, delivery: Delivery, settle: Callable[[], Awaitable[None]]) -> None:
        """Settle until the copy is confirmed, or the broker has the delivery back.

        The slot is held meanwhile: a consumer that can't settle must not take more events.
        """
        is_told = False
        self._settling[id(delivery)] = time.monotonic()
        try:
            while not delivery.acks.is_closed:
                try:
                    await settle()
                except RabbitflowError as error:
                    if not is_told:
                        logger.warning(
                            "%s can't settle event %s and keeps trying: %s",
                            self._consumer.name,
                            delivery.id,
                            error,
                        )
                        is_told = True
                    await asyncio.sleep(_UNSETTLED_PAUSE_S)
                else:
                    return
        finally:
            del self._settling[id(delivery)]


def _is_json(content_type: str | None) -> bool:
    media_type = (content_type or "").partition(";")[0].strip().lower()
    return media_type == "application/json" or media_type.endswith("+json")
