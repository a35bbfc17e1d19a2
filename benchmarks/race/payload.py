"""The events of the race: the order of the project's samples, padded to the size asked for."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from typing import Any

ORDER: dict[str, Any] = {
    "orderId": "ORD-2026-000123",
    "customerId": "CUST-77",
    "amount": 1500,
    "currency": "USD",
    "items": [{"productId": "P-1", "quantity": 2}, {"productId": "P-2", "quantity": 1}],
}
EVENT_TYPE = "ORDER_PLACED"


def order(size_bytes: int = 0, *, now: bool = False) -> dict[str, Any]:
    """Return the data of one event whose body is about ``size_bytes`` (300 where not given)."""
    return {
        **ORDER,
        "sentAt": time.time() if now else 0.0,
        "note": "x" * max(0, size_bytes - 300),
    }


def event_id(number: int) -> str:
    """Return an id as long as a UUID."""
    return f"01990000-0000-7000-8000-{number:012d}"


def envelope(number: int, data: dict[str, Any]) -> dict[str, Any]:
    """Return a whole event."""
    return {
        "id": event_id(number),
        "type": EVENT_TYPE,
        "timestamp": datetime.now(UTC).isoformat(),
        "data": data,
    }


def body(number: int, size_bytes: int = 0, *, now: bool = False) -> bytes:
    """Return the JSON body of an event."""
    return json.dumps(envelope(number, order(size_bytes, now=now))).encode()
