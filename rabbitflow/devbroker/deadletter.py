"""What a dead letter carries: ``x-death`` and its kin, as RabbitMQ writes them."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from pamqp import encode

from rabbitflow.devbroker.frames import MALFORMED, short
from rabbitflow.devbroker.message import Headers, Message
from rabbitflow.devbroker.properties import edited, long, sized, text

DEATHS = "x-death"
REJECTED = "rejected"
EXPIRED = "expired"
TOO_MANY = "maxlen"
DELIVERY_LIMIT = "delivery_limit"

Death = dict[str, Any]


def dead_letter(
    message: Message,
    *,
    queue: str,
    reason: str,
    exchange: str,
    routing_key: str | None,
    now: float,
) -> Message:
    """Return what is published to the dead-letter exchange when ``message`` dies.

    Args:
        message: as it was in the queue.
        queue: in which it died.
        reason: ``rejected``, ``expired``, ``maxlen`` or ``delivery_limit``.
        exchange: the dead-letter exchange.
        routing_key: for it; the message's own keys where None.
        now: in seconds since the epoch.
    """
    add = {DEATHS: _written(_deaths_with(message, queue, reason, now))}
    if DEATHS not in message.headers:
        add["x-first-death-exchange"] = text(message.exchange)
        add["x-first-death-queue"] = text(queue)
        add["x-first-death-reason"] = text(reason)
    # With a key of its own, those of the sender are replaced, the further ones (CC) among them.
    drop = () if routing_key is None else ("CC",)
    # Without its expiration, or it would die of it again in the queue it goes to.
    raw = edited(message.raw, add=add, drop=drop, expires=False)
    key = message.routing_key if routing_key is None else routing_key
    return Message.of(exchange, key, raw, message.body)


def _deaths_with(message: Message, queue: str, reason: str, now: float) -> list[Death]:
    """Return its deaths, the latest first; the same in the same queue again only counts."""
    deaths = _deaths_of(message.headers)
    same = [
        death for death in deaths if (death.get("queue"), death.get("reason")) == (queue, reason)
    ]
    if same:
        again = {**same[0], "count": _count_of(same[0]) + 1}
        return [again, *(death for death in deaths if death is not same[0])]
    death: Death = {
        "count": 1,
        "reason": reason,
        "queue": queue,
        "time": datetime.fromtimestamp(int(now), UTC),
        "exchange": message.exchange,
        "routing-keys": [message.routing_key, *carbon_copies(message.headers, "CC")],
    }
    if message.properties.expiration is not None:
        death["original-expiration"] = message.properties.expiration
    return [death, *deaths]


def _written(deaths: list[Death]) -> bytes:
    tables = (
        b"".join(
            # A count is a long: clients in typed languages expect no other number.
            short(name) + (long(value) if name == "count" else encode.encode_table_value(value))
            for name, value in death.items()
        )
        for death in deaths
    )
    items = b"".join(b"F" + sized(table) for table in tables)
    return b"A" + sized(items)


def completes_a_cycle(queue: str, message: Message) -> bool:
    """Whether ``message`` was in ``queue`` before, and came back without a consumer's doing.

    RabbitMQ drops such a message silently, or it would go round for ever.
    """
    passed: list[Death] = []
    for death in _deaths_of(message.headers):
        passed.append(death)
        if death.get("queue") == queue:
            return all(each.get("reason") != REJECTED for each in passed)
    return False


def carbon_copies(headers: Headers, *names: str) -> list[str]:
    """Return the further routing keys of a message, from ``CC`` and ``BCC``."""
    return [key for name in names for key in _listed(headers.get(name)) if isinstance(key, str)]


def _deaths_of(headers: Headers) -> list[Death]:
    # A client may have written anything there.
    return [
        death
        for death in _listed(headers.get(DEATHS))
        if isinstance(death, dict) and _can_be_written(death)
    ]


def _can_be_written(death: Death) -> bool:
    try:
        _written([death])
    except MALFORMED:
        return False
    return True


def _listed(value: object) -> Iterable[Any]:
    return value if isinstance(value, list) else ()


def _count_of(death: Death) -> int:
    count = death.get("count")
    return count if isinstance(count, int) else 0
