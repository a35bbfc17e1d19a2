"""One dead letter: the message, and why it is one, whoever wrote it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from pamqp.commands import Basic

from rabbitflow.copies import copied_properties
from rabbitflow.event import derived_id, type_of
from rabbitflow.topology import (
    ATTEMPT,
    BROKER_DEATH_HEADERS,
    CAUSE_HEADERS,
    DEATH,
    DELIVERY_COUNT,
    EVENT_TYPE,
    EXCEPTION_MESSAGE,
    EXCEPTION_TYPE,
    EXCHANGE,
    FAILED_AT,
    FIRST_DEATH_EXCHANGE,
    FIRST_FAILED_AT,
    HOST,
    REASON,
    REPLAYS,
    SENDER_SELECTED_HEADERS,
    SIGNED_BY,
    TRACEBACK,
    VERSION,
    Names,
)

UNKNOWN_REASON = "unknown"
"""Of a message that neither we nor the broker dead-lettered: somebody else put it there."""

_NOT_KEPT = BROKER_DEATH_HEADERS | SENDER_SELECTED_HEADERS


@dataclass(frozen=True, slots=True)
class Letter:
    """A dead letter, its cause read from our headers, else from what the broker wrote.

    Fields:
        id: of the event; where a foreign publisher gave none, derived from the body.
        body: byte for byte as it came.
        properties: as they are in the dead-letter queue.
        event_type: what it was, as far as anything tells.
        reason: ours (``retries-exhausted``, ``rejected``, ``invalid``, ``no-handler``, ``crashed``,
            ``timeout``), the broker's (``delivery-limit``, ``expired``, …), or ``unknown``.
        exception_type, exception_message, traceback: what the handler raised.
        attempt: how often it was tried; 0 where nothing tells.
        replays: how often it was replayed before.
        first_failed_at, failed_at: when its first and its last attempt failed.
        exchange: it was first published to.
        host, version: where it failed, and the rabbitflow there.
        times_held: how often the broker handed it out and took it back since it is here.
    """

    id: str
    body: bytes
    properties: Basic.Properties
    event_type: str | None = None
    reason: str = UNKNOWN_REASON
    exception_type: str | None = None
    exception_message: str | None = None
    traceback: str | None = None
    attempt: int = 0
    replays: int = 0
    first_failed_at: datetime | None = None
    failed_at: datetime | None = None
    exchange: str | None = None
    host: str | None = None
    version: str | None = None
    times_held: int = 0

    @classmethod
    def read(cls, body: bytes, properties: Basic.Properties, names: Names) -> Letter:
        """Read a message of a dead-letter queue. Headers may be anybody's and hold anything."""
        headers = properties.headers or {}
        death = _last_death(headers)
        reason = _text(headers.get(REASON)) or _text(death.get("reason")) or UNKNOWN_REASON
        exchange = _text(headers.get(EXCHANGE)) or _text(headers.get(FIRST_DEATH_EXCHANGE))
        failed_at = _moment(headers.get(FAILED_AT)) or _moment(death.get("time"))
        return cls(
            id=properties.message_id or derived_id(body),
            body=body,
            properties=properties,
            event_type=(
                properties.message_type
                or _text(headers.get(EVENT_TYPE))
                or (names.event_type(exchange) if exchange else None)
                or type_of(body)
            ),
            # RabbitMQ says delivery_limit and maxlen; ours are written with hyphens.
            reason=reason.replace("_", "-"),
            exception_type=_text(headers.get(EXCEPTION_TYPE)),
            exception_message=_text(headers.get(EXCEPTION_MESSAGE)),
            traceback=_text(headers.get(TRACEBACK)),
            attempt=_count(headers.get(ATTEMPT)),
            replays=_count(headers.get(REPLAYS)),
            first_failed_at=_moment(headers.get(FIRST_FAILED_AT)) or failed_at,
            failed_at=failed_at,
            exchange=exchange,
            host=_text(headers.get(HOST)),
            version=_text(headers.get(VERSION)),
            times_held=_count(headers.get(DELIVERY_COUNT)),
        )

    @property
    def signed_by(self) -> str | None:
        """The key that it says it is signed with; nobody has verified it."""
        return _text((self.properties.headers or {}).get(SIGNED_BY))

    def replayed(self) -> Basic.Properties:
        """Return its properties for the consumer's queue: as a first attempt, its id kept, its
        replays counted, its cause dropped."""
        dropped = _NOT_KEPT.union(CAUSE_HEADERS, (ATTEMPT, FIRST_FAILED_AT))
        headers = self._headers_without(dropped)
        headers[REPLAYS] = self.replays + 1
        if self.exchange:
            headers[EXCHANGE] = self.exchange
        return copied_properties(self.properties, headers, self.id, self.event_type)

    def kept(self) -> Basic.Properties:
        """Return its properties for a copy among the dead letters: with its cause, also that which
        the broker alone had written, in our headers."""
        headers = self._headers_without(_NOT_KEPT)
        cause = {
            REASON: None if self.reason == UNKNOWN_REASON else self.reason,
            FAILED_AT: None if self.failed_at is None else self.failed_at.isoformat(),
            EXCHANGE: self.exchange,
            EVENT_TYPE: self.event_type,
        }
        for name, value in cause.items():
            if value is not None:
                headers.setdefault(name, value)
        return copied_properties(self.properties, headers, self.id, self.event_type)

    def _headers_without(self, dropped: Collection[str]) -> dict[str, Any]:
        headers = self.properties.headers or {}
        return {name: value for name, value in headers.items() if name not in dropped}


@dataclass(frozen=True, slots=True)
class Selection:
    """Which dead letters are meant. What is empty does not restrict; the rest must all hold.

    Fields:
        ids: of events.
        exceptions: types, as the dead letter names them (``CardDeclined``).
        event_types: such as ``ORDER_PLACED``.
        reasons: such as ``retries-exhausted``.
    """

    ids: frozenset[str] = frozenset()
    exceptions: frozenset[str] = frozenset()
    event_types: frozenset[str] = frozenset()
    reasons: frozenset[str] = frozenset()

    def matches(self, letter: Letter) -> bool:
        """Whether ``letter`` is one of them."""
        return (
            (not self.ids or letter.id in self.ids)
            and (not self.exceptions or letter.exception_type in self.exceptions)
            and (not self.event_types or letter.event_type in self.event_types)
            and (not self.reasons or letter.reason in self.reasons)
        )


EVERYTHING = Selection()


def _last_death(headers: Mapping[str, Any]) -> Mapping[str, Any]:
    deaths = headers.get(DEATH)
    if isinstance(deaths, list) and deaths and isinstance(deaths[0], Mapping):
        return deaths[0]
    return {}


def _text(value: object) -> str | None:
    if value is None or not str(value):
        return None
    if isinstance(value, bytes | bytearray):
        return value.decode("utf-8", "replace")
    return str(value)


def _count(value: object) -> int:
    return max(0, value) if isinstance(value, int) else 0


def _moment(value: object) -> datetime | None:
    if not isinstance(value, datetime):
        try:
            value = datetime.fromisoformat(str(value))
        except ValueError:
            return None
    return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
