"""Which part of an event log is meant: where to begin, which moments to take."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from rabbitflow.durations import seconds
from rabbitflow.errors import EventError
from rabbitflow.event import Event

FIRST, LAST, NEXT = "first", "last", "next"
"""Words for where to begin: the oldest entry kept, about the newest, the next to come."""

Start = str | int | datetime

CLOCK_SKEW = timedelta(minutes=10)
"""The log is searched by when the broker stored an entry, events say when they happened. So much
earlier is begun, that events of announcers whose clock is ahead are not missed."""


@dataclass(frozen=True, slots=True)
class Span:
    """A part of an event log.

    Fields:
        start: a word of :data:`FIRST`, :data:`LAST`, :data:`NEXT`; an offset; or a moment.
        until: events that happened at this moment or later are left out; None for no end.
    """

    start: Start = FIRST
    until: datetime | None = None

    @property
    def argument(self) -> str | int | datetime:
        """Where the broker is asked to begin."""
        if isinstance(self.start, datetime):
            # The broker keeps whole seconds.
            return (self.start - CLOCK_SKEW).replace(microsecond=0)
        return self.start

    def holds(self, event: Event[Any]) -> bool:
        """Whether ``event`` happened within the moments that are meant."""
        if isinstance(self.start, datetime) and event.timestamp < self.start:
            return False
        return self.until is None or event.timestamp < self.until


def parse_start(text: str, now: datetime | None = None) -> Start:
    """Read where to begin: ``first``, ``last``, ``next``, an offset, a moment or ``"2h"`` ago.

    Raises:
        EventError: it is none of them.
    """
    if text in (FIRST, LAST, NEXT):
        return text
    return int(text) if text.isdecimal() else parse_moment(text, now)


def parse_moment(text: str, now: datetime | None = None) -> datetime:
    """Read a moment: ISO 8601, a date being its midnight in UTC, or ``"2h"`` ago.

    Raises:
        EventError: it is neither.
    """
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        try:
            return (now or datetime.now(UTC)) - timedelta(seconds=seconds(text))
        except (ValueError, OverflowError):
            raise EventError(
                f"{text!r} is no moment; write 2026-03-15, 2026-03-15T10:30:00+05:30, or 2h for two"
                " hours ago"
            ) from None
    return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
