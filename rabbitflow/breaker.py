"""The circuit breaker: when most events fail, the queue keeps them until the cause is mended."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from enum import Enum

from rabbitflow.durations import Duration, seconds


@dataclass(frozen=True, slots=True)
class Breaker:
    """When a consumer stops taking events, and when it tries again.

    While the breaker is open no event is taken, so none spends its attempts on a payment provider
    that is down.

    Fields:
        failure_rate: it opens when at least this share of the last outcomes failed.
        window: how many outcomes are looked at; nothing is judged before there are so many.
        probe_after: how long after opening one event is let through, in seconds or as ``"5s"``.
        cap: each probe that fails doubles the interval, up to this.
    """

    failure_rate: float = 0.5
    window: int = 20
    probe_after: Duration = 5
    cap: Duration = 300

    def __post_init__(self) -> None:
        if not 0 < self.failure_rate <= 1:
            raise ValueError(f"failure_rate is above 0 and at most 1, not {self.failure_rate}")
        if self.window < 1:
            raise ValueError(f"window is at least 1, not {self.window}")
        if not 0 < seconds(self.probe_after) <= seconds(self.cap):
            raise ValueError("probe_after is above 0 and at most cap")


class BreakerState(Enum):
    """Closed lets everything through, open nothing, probing one event at a time."""

    CLOSED = "closed"
    OPEN = "open"
    PROBING = "probing"


class Circuit:
    """The state of one consumer's breaker in one process. It has no clock: it is told the time."""

    def __init__(self, breaker: Breaker) -> None:
        self._breaker = breaker
        self._outcomes: deque[bool] = deque(maxlen=breaker.window)
        self._interval_s = seconds(breaker.probe_after)
        self._opened_at = 0.0
        self._is_open = False

    def state(self, now: float) -> BreakerState:
        """The state at ``now``, in seconds of a monotonic clock."""
        if not self._is_open:
            return BreakerState.CLOSED
        return BreakerState.PROBING if now >= self.probes_at else BreakerState.OPEN

    @property
    def probes_at(self) -> float:
        """When the next event is let through, in seconds of the monotonic clock."""
        return self._opened_at + self._interval_s

    def record(self, *, failed: bool, now: float) -> None:
        """Count an outcome. One of an event that began before the breaker opened changes nothing
        while it is open."""
        match self.state(now):
            case BreakerState.OPEN:
                return
            case BreakerState.PROBING if failed:
                self._opened_at = now
                self._interval_s = min(2 * self._interval_s, seconds(self._breaker.cap))
            case BreakerState.PROBING:
                self._is_open = False
                self._interval_s = seconds(self._breaker.probe_after)
                self._outcomes.clear()
            case BreakerState.CLOSED:
                self._outcomes.append(failed)
                full = len(self._outcomes) == self._breaker.window
                rate = sum(self._outcomes) / self._breaker.window
                if full and rate >= self._breaker.failure_rate:
                    self._is_open = True
                    self._opened_at = now
