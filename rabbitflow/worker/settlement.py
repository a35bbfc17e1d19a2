"""Settling a delivery: its copy is confirmed first, then it is acked; never the other way round."""

from __future__ import annotations

import logging
import platform
import traceback
from collections.abc import Awaitable, Callable, Generator
from datetime import datetime
from typing import Any

from pamqp.commands import Basic

from rabbitflow._version import __version__
from rabbitflow.confirmed import ConfirmedChannel
from rabbitflow.copies import copied_properties
from rabbitflow.errors import DeadLetter, Unroutable
from rabbitflow.topology import (
    ATTEMPT,
    BROKER_DEATH_HEADERS,
    CAUSE_HEADERS,
    CONSUMER,
    EVENT_TYPE,
    EXCEPTION_MESSAGE,
    EXCEPTION_TYPE,
    EXCHANGE,
    FAILED_AT,
    FIRST_FAILED_AT,
    HOST,
    LONGEST_DELAY_S,
    ORDERED_BY,
    REASON,
    SENDER_SELECTED_HEADERS,
    TRACEBACK,
    VERSION,
    Names,
    bucket_for,
)
from rabbitflow.worker.delivery import Delivery

MESSAGE_LIMIT_BYTES = 1_024
TRACEBACK_LIMIT_BYTES = 16_384

logger = logging.getLogger(__name__)

_HOST = platform.node()

Declare = Callable[[int | None], Awaitable[None]]


class Settlement:
    """Carries out verdicts for one consumer.

    Args:
        consumer: its name.
        names: of the namespace.
        channel: confirms the copies.
        declare: puts the consumer's queues back where one is missing; given a retry bucket in
            seconds, that one too.
    """

    def __init__(
        self, consumer: str, names: Names, channel: ConfirmedChannel, declare: Declare
    ) -> None:
        self._consumer = consumer
        self._names = names
        self._channel = channel
        self._declare = declare

    async def retry(self, delivery: Delivery, delay_s: float, first_failed_at: datetime) -> None:
        """Hand the delivery over to its retry queue, and ack it once the copy is confirmed.

        Raises:
            BrokerError: the copy is not confirmed; the delivery is not acked.
        """
        bucket_s = bucket_for(delay_s)
        headers = _kept_headers(delivery)
        headers[ATTEMPT] = delivery.attempt + 1
        headers[FIRST_FAILED_AT] = first_failed_at.isoformat()
        if delivery.origin:
            headers[EXCHANGE] = delivery.origin
        properties = self._copied(delivery, headers, delivery.event_type(self._names))
        properties.expiration = str(max(1, round(min(delay_s, LONGEST_DELAY_S) * 1000)))
        queue = self._names.retry(self._consumer, bucket_s)
        await self._publish(queue, delivery.body, properties, bucket_s)
        delivery.ack()

    def partitioned(self, delivery: Delivery, hashed: str) -> Basic.Properties:
        """Return the properties of the delivery's copy for the partition of its key."""
        headers = _kept_headers(delivery)
        headers[ORDERED_BY] = hashed
        if delivery.origin:
            headers[EXCHANGE] = delivery.origin
        return self._copied(delivery, headers, delivery.event_type(self._names))

    async def hand_on(self, delivery: Delivery, queue: str, properties: Basic.Properties) -> None:
        """Hand the delivery over to another queue of the consumer, and ack it once the copy is
        confirmed. Raises as :meth:`retry`."""
        await self._publish(queue, delivery.body, properties, None)
        delivery.ack()

    async def dead_letter(
        self,
        delivery: Delivery,
        reason: str,
        error: BaseException,
        failed_at: datetime,
        event_type: str | None,
    ) -> None:
        """Keep the delivery among the dead letters with its cause, byte for byte, and ack it.

        Raises:
            BrokerError: the copy is not confirmed; the delivery is not acked.
        """
        headers = _kept_headers(delivery)
        headers[ATTEMPT] = delivery.attempt
        headers[FIRST_FAILED_AT] = delivery.first_failed_at(failed_at).isoformat()
        headers |= {
            REASON: reason,
            EXCEPTION_TYPE: _clipped(type(error).__qualname__, MESSAGE_LIMIT_BYTES),
            EXCEPTION_MESSAGE: _clipped(_message_of(error), MESSAGE_LIMIT_BYTES),
            FAILED_AT: failed_at.isoformat(),
            CONSUMER: self._consumer,
            HOST: _HOST,
            VERSION: __version__,
        }
        if event_type:
            headers[EVENT_TYPE] = _clipped(event_type, 255)
        if delivery.origin:
            headers[EXCHANGE] = delivery.origin
        if error.__traceback__ is not None:
            # The tail: the deepest frame and the exception's own line say what went wrong.
            text = "".join(_Traceback(type(error), error, error.__traceback__).format())
            headers[TRACEBACK] = _clipped(text, TRACEBACK_LIMIT_BYTES, tail=True)
        properties = self._copied(delivery, headers, event_type)
        await self._publish(self._names.dead(self._consumer), delivery.body, properties, None)
        delivery.ack()
        logger.error(
            "%s dead-lettered %s %s after attempt %d: %s: %s",
            self._consumer,
            event_type or "an event of unknown type",
            delivery.id,
            delivery.attempt,
            reason,
            headers[EXCEPTION_MESSAGE] or headers[EXCEPTION_TYPE],
            extra={
                "consumer": self._consumer,
                "event_id": delivery.id,
                "event_type": event_type,
                "attempt": delivery.attempt,
                "correlation_id": delivery.properties.correlation_id,
                "reason": reason,
            },
        )

    def _copied(
        self, delivery: Delivery, headers: dict[str, Any], event_type: str | None
    ) -> Basic.Properties:
        return copied_properties(delivery.properties, headers, delivery.id, event_type)

    async def _publish(
        self, queue: str, body: bytes, properties: Basic.Properties, bucket_s: int | None
    ) -> None:
        try:
            await self._channel.publish("", queue, body, properties)
        except Unroutable:
            # Deleted under us, or a delay that the policy was not seen to give before.
            await self._declare(bucket_s)
            await self._channel.publish("", queue, body, properties)


class _Traceback(traceback.TracebackException):
    """A traceback whose last lines, the exception's own, do not push the frames out of it; nor is
    a text of a megabyte indented line by line while the neighbours wait for the processor."""

    def format_exception_only(self, **options: Any) -> Generator[str, None, None]:
        for text in super().format_exception_only(**options):
            is_long = len(text) > MESSAGE_LIMIT_BYTES
            yield f"{text[:MESSAGE_LIMIT_BYTES]}…\n" if is_long else text


def _kept_headers(delivery: Delivery) -> dict[str, Any]:
    """Return the headers that go on with a copy.

    Left out: what the broker wrote of earlier deaths; an earlier cause of ours; and CC and BCC,
    which would route the copy to other queues once more.
    """
    dropped = BROKER_DEATH_HEADERS | SENDER_SELECTED_HEADERS | set(CAUSE_HEADERS)
    return {name: value for name, value in delivery.headers.items() if name not in dropped}


def _message_of(error: BaseException) -> str:
    if isinstance(error, DeadLetter):
        return error.reason
    try:
        return str(error)
    except (
        Exception
    ) as broken:  # a user's __str__ may raise anything; the cause is kept all the same
        return f"(its text can't be had: {type(broken).__name__})"


def _clipped(text: str, limit_bytes: int, *, tail: bool = False) -> str:
    # A character takes a byte at least, so the rest need not be encoded to be cut off.
    text = text[-limit_bytes:] if tail else text[:limit_bytes]
    encoded = text.encode("utf-8", "replace")
    if len(encoded) <= limit_bytes:
        return encoded.decode("utf-8", "replace")
    cut = encoded[-limit_bytes:] if tail else encoded[:limit_bytes]
    return cut.decode("utf-8", "ignore")
