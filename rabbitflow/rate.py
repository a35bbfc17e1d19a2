"""A rate limit: evenly spaced starts, by the generic cell rate algorithm (ITU-T I.371, annex A)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Self

_RATE = re.compile(r"(\d+(?:\.\d+)?)\s*/\s*(s|m|h)")
_PERIOD_S = {"s": 1.0, "m": 60.0, "h": 3600.0}


@dataclass(frozen=True, slots=True)
class Rate:
    """So many events in so many seconds, in one process."""

    events: float
    per_s: float

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``"50/s"``, ``"600/m"`` or ``"10/h"``. Raises ValueError where it is none."""
        found = _RATE.fullmatch(text.strip())
        if found is None or float(found[1]) == 0:
            raise ValueError(f"{text!r} is no rate; write 50/s, 600/m or 10/h")
        return cls(float(found[1]), _PERIOD_S[found[2]])


class Pacer:
    """Says how long to wait before the next start. Never more than ``rate`` over any long time; a
    tenth of a second's worth may start together."""

    def __init__(self, rate: Rate) -> None:
        self._spacing_s = rate.per_s / rate.events
        self._burst_s = max(0.0, 0.1 - self._spacing_s)
        self._next_at = float("-inf")

    def reserve(self, now: float) -> float:
        """Take the next start, and return how many seconds it lies ahead."""
        at = max(now - self._burst_s, self._next_at)
        self._next_at = at + self._spacing_s
        return max(0.0, at - now)
