"""What a copy of a message carries while its queue is replaced, and when it is back."""

from __future__ import annotations

from typing import Any

from aiormq.abc import DeliveredMessage
from pamqp.commands import Basic

from rabbitflow.publisher import PERSISTENT
from rabbitflow.topology import (
    ACQUIRED_COUNT,
    COPIED_OFFSET,
    DELIVERY_COUNT,
    EXCHANGE,
    HELD_EXPIRATION,
    SENDER_SELECTED_HEADERS,
    STREAM_OFFSET,
)

# The broker writes these on what it delivers. What a message died of (x-death) stays: a dead letter
# of the broker's says nothing else of its cause.
_DELIVERY_HEADERS = frozenset({DELIVERY_COUNT, ACQUIRED_COUNT, STREAM_OFFSET})


def held(message: DeliveredMessage) -> Basic.Properties:
    """Return the properties of a message that waits while its queue is replaced.

    It must not expire there, so its expiration becomes a header.
    """
    headers = _headers(message)
    exchange = message.delivery.exchange  # type: ignore[union-attr]
    if exchange:
        headers.setdefault(EXCHANGE, exchange)
    expiration = message.header.properties.expiration
    if expiration is not None:
        headers[HELD_EXPIRATION] = expiration
    return _properties(message, headers, None)


def returned(message: DeliveredMessage) -> Basic.Properties:
    """Return the properties of a message that goes back to its queue. A retry waits its whole
    delay again: nobody but the broker knew how long it had waited."""
    headers = _headers(message)
    expiration = headers.pop(HELD_EXPIRATION, message.header.properties.expiration)
    return _properties(message, headers, expiration)


def logged(message: DeliveredMessage) -> Basic.Properties:
    """Return the properties of an event copied from one log to another; it says from where, so
    that an interrupted copy goes on there."""
    headers = _headers(message)
    exchange = message.delivery.exchange  # type: ignore[union-attr]
    if exchange:
        headers.setdefault(EXCHANGE, exchange)
    headers[COPIED_OFFSET] = offset(message)
    return _properties(message, headers, message.header.properties.expiration)


def offset(message: DeliveredMessage) -> int:
    """Return where in its stream a message is."""
    return int((message.header.properties.headers or {})[STREAM_OFFSET])  # type: ignore[arg-type]


def copied_offset(message: DeliveredMessage) -> int:
    """Return where in the other stream its original was; -1 where it is no copy."""
    found = (message.header.properties.headers or {}).get(COPIED_OFFSET, -1)
    return found if isinstance(found, int) else -1


def _headers(message: DeliveredMessage) -> dict[str, Any]:
    dropped = _DELIVERY_HEADERS | SENDER_SELECTED_HEADERS
    headers = message.header.properties.headers or {}
    return {name: value for name, value in headers.items() if name not in dropped}


def _properties(
    message: DeliveredMessage, headers: dict[str, Any], expiration: str | None
) -> Basic.Properties:
    """Return a message's properties with other headers. Left out: ``user_id``, which RabbitMQ
    checks against the user who publishes."""
    given = message.header.properties
    return Basic.Properties(
        content_type=given.content_type,
        content_encoding=given.content_encoding,
        headers=headers,
        delivery_mode=PERSISTENT,
        priority=given.priority,
        correlation_id=given.correlation_id,
        reply_to=given.reply_to,
        expiration=expiration,
        message_id=given.message_id,
        timestamp=given.timestamp,
        message_type=given.message_type,
        app_id=given.app_id,
    )
