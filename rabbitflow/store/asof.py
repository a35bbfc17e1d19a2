"""``--as-of``: a point in time, as a person writes it."""

from __future__ import annotations

from datetime import UTC, date, datetime, time

from rabbitflow.errors import EventError


def as_of(text: str) -> datetime:
    """Return the moment that ``text`` names, in UTC.

    A date, ``2026-03-15``, means the end of that day in UTC: what happened on it counts. A time,
    ``2026-03-15T18:00``, is in UTC too unless it says otherwise (``+05:30``, ``Z``); what happened
    at that very moment counts.

    Raises:
        EventError: it is neither.
    """
    try:
        return datetime.combine(date.fromisoformat(text), time.max, tzinfo=UTC)
    except ValueError:
        pass
    try:
        moment = datetime.fromisoformat(text)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        raise EventError(
            f"not a point in time: {text!r}; write 2026-03-15 (to the end of that day, UTC) or"
            " 2026-03-15T18:00+05:30"
        ) from None
