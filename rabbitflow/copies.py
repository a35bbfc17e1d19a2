"""Copies of a message for another queue: its properties as they were, with headers that go."""

from __future__ import annotations

import struct
from typing import Any

from pamqp import encode
from pamqp.commands import Basic

from rabbitflow.event import SHORT_TEXT_BYTES
from rabbitflow.publisher import PERSISTENT
from rabbitflow.topology import HEADER_PREFIX, HEADERS_LIMIT_BYTES

_UNWRITABLE = (TypeError, ValueError, OverflowError, struct.error)


def copied_properties(
    given: Basic.Properties, headers: dict[str, Any], event_id: str | None, event_type: str | None
) -> Basic.Properties:
    """Return the properties of a message for its copy, with new headers.

    Left out: ``user_id``, which RabbitMQ checks against the user who publishes, and the expiration.
    """
    return Basic.Properties(
        content_type=given.content_type,
        content_encoding=given.content_encoding,
        headers=_bounded(headers),
        delivery_mode=PERSISTENT,
        priority=given.priority,
        correlation_id=given.correlation_id,
        reply_to=given.reply_to,
        message_id=event_id,
        timestamp=given.timestamp,
        message_type=given.message_type or _short(event_type),
        app_id=given.app_id,
    )


def _short(event_type: str | None) -> str | None:
    """An event type as a property, which holds 255 bytes: none where anybody wrote a longer one."""
    if event_type is None or len(event_type.encode("utf-8", "replace")) > SHORT_TEXT_BYTES:
        return None
    return event_type


def _bounded(headers: dict[str, Any]) -> dict[str, Any]:
    """Return ``headers`` within the limit: foreign ones go first, the largest before the others."""
    kept: dict[str, Any] = {}
    sizes: dict[str, int] = {}
    for name, value in headers.items():
        kept[name], sizes[name] = _written(name, value)
    total = sum(sizes.values())
    for name in sorted(sizes, key=lambda name: -sizes[name]):
        if total <= HEADERS_LIMIT_BYTES:
            break
        if not name.startswith(HEADER_PREFIX):
            total -= sizes[name]
            del kept[name]
    return kept


def _written(name: str, value: Any) -> tuple[Any, int]:
    """Return a value that AMQP has a form for, and its size: a foreign header may hold what the
    client library reads and can't write again, such as text that is no UTF-8."""
    try:
        return value, len(encode.field_table({name: value}))
    except _UNWRITABLE:
        value = _writable(value)
        return value, len(encode.field_table({name: value}))


def _writable(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _writable(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_writable(inner) for inner in value]
    if isinstance(value, bytes):
        return bytearray(value)
    try:
        encode.encode_table_value(value)
    except _UNWRITABLE:
        return str(value)
    return value
