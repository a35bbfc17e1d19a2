"""Durations as people write them: ``"30s"``, ``"5m"``, ``"1h30m"``, seconds, or a timedelta."""

from __future__ import annotations

import re
from datetime import timedelta

_UNITS_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_PART = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)")
_WHOLE = re.compile(rf"(?:{_PART.pattern}\s*)+")

Duration = float | str | timedelta


def seconds(duration: Duration) -> float:
    """Return a duration in seconds.

    Raises:
        ValueError: not a duration, or a negative one.
    """
    if isinstance(duration, timedelta):
        value = duration.total_seconds()
    elif isinstance(duration, str):
        if _WHOLE.fullmatch(duration.strip()) is None:
            raise ValueError(f"{duration!r} is no duration; write 500ms, 30s, 5m, 2h, 1d or 1h30m")
        value = sum(float(number) * _UNITS_S[unit] for number, unit in _PART.findall(duration))
    else:
        value = float(duration)
    if not 0 <= value < float("inf"):
        raise ValueError(f"a duration is 0 s or more, not {duration!r}")
    return value
