"""What a copy of a message carries while its queue is replaced, and when it is back."""

from __future__ import annotations

from typing import Any

from aiormq.abc import DeliveredMessage
from pamqp.commands import Basic

from rabbitflow.copies import copied_properties
from rabbitflow.topology import (
    ACQUIRED_COUNT,
    COPIED_OFFSET,
    DELIVERY_COUNT,
    EXCHANGE,
    HELD_EXPIRATION,
    LOG_MARK,
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
    expiration = message.header.properties.expiration
    if expiration is not None:
        headers[HELD_EXPIRATION] = expiration
    return _copied(message, headers)


def returned(message: DeliveredMessage) -> Basic.Properties:
    """Return the properties of a message that goes back to its queue. A retry waits its whole
    delay again: nobody but the broker knew how long it had waited."""
    headers = _headers(message)
    expiration = headers.pop(HELD_EXPIRATION, message.header.properties.expiration)
    properties = _copied(message, headers)
    properties.expiration = expiration
    return properties


def logged(message: DeliveredMessage) -> Basic.Properties:
    """Return the properties of an event copied from one log to another; it says from where, so
    that an interrupted copy goes on there."""
    properties = _copied(message, {**_headers(message), COPIED_OFFSET: offset(message)})
    properties.expiration = message.header.properties.expiration
    return properties


def offset(message: DeliveredMessage) -> int:
    """Return where in its stream a message is."""
    found = (message.header.properties.headers or {})[STREAM_OFFSET]
    return int(found)  # type: ignore[arg-type]


def copied_offset(message: DeliveredMessage) -> int:
    """Return where in the other stream its original was; -1 where it is no copy."""
    found = (message.header.properties.headers or {}).get(COPIED_OFFSET, -1)
    return found if isinstance(found, int) else -1


def mark_of(message: DeliveredMessage) -> str:
    """Return the mark that a message in a log is; empty where it is an event."""
    return str((message.header.properties.headers or {}).get(LOG_MARK, ""))


def _headers(message: DeliveredMessage) -> dict[str, Any]:
    dropped = _DELIVERY_HEADERS | SENDER_SELECTED_HEADERS
    given = message.header.properties.headers or {}
    headers: dict[str, Any] = {name: value for name, value in given.items() if name not in dropped}
    exchange = message.delivery.exchange  # type: ignore[union-attr]
    if exchange:
        headers.setdefault(EXCHANGE, exchange)
    return headers


def _copied(message: DeliveredMessage, headers: dict[str, Any]) -> Basic.Properties:
    given = message.header.properties
    return copied_properties(given, headers, given.message_id, given.message_type)
