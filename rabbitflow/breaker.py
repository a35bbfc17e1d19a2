"""The circuit breaker: when events fail one and all, the queue keeps them until one succeeds."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from enum import Enum

from rabbitflow.durations import Duration, seconds


@dataclass(frozen=True, slots=True)
class Breaker:
    """When a consumer stops taking events, and when it tries again.

    While the breaker is open events are taken one at a time and no more often than it probes, so
    hardly any spends its attempts on a payment provider that is down.

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
    """The state of one consumer's breaker in one process. It has no clock: it is told the time.

    Attributes:
        is_open: whether events are held back, be it until the next probe or its end.
        window: how many outcomes are looked at.
        failures: how many of them failed.
        interval_s: from opening, or from the last probe that failed, to the next one.
    """

    def __init__(self, breaker: Breaker) -> None:
        self.is_open = False
        self.window = breaker.window
        self.failures = 0
        self.interval_s = seconds(breaker.probe_after)
        self._breaker = breaker
        self._outcomes: deque[bool] = deque()
        self._opened_at = 0.0

    def state(self, now: float) -> BreakerState:
        """The state at ``now``, in seconds of a monotonic clock."""
        if not self.is_open:
            return BreakerState.CLOSED
        return BreakerState.PROBING if now >= self.probes_at else BreakerState.OPEN

    @property
    def probes_at(self) -> float:
        """When the next event is let through, in seconds of the monotonic clock."""
        return self._opened_at + self.interval_s

    def record(self, *, failed: bool, now: float) -> bool:
        """Count an outcome, and return whether the breaker is open now. While it is, the outcome of
        an event that began before changes nothing."""
        if not self.is_open:
            self._count(failed, now)
        elif now >= self.probes_at:
            if failed:
                self._opened_at = now
                self.interval_s = min(2 * self.interval_s, seconds(self._breaker.cap))
            else:
                self._close()
        return self.is_open

    def _count(self, failed: bool, now: float) -> None:
        outcomes = self._outcomes
        outcomes.append(failed)
        self.failures += failed
        if len(outcomes) > self.window:
            self.failures -= outcomes.popleft()
        is_full = len(outcomes) == self.window
        if is_full and self.failures / self.window >= self._breaker.failure_rate:
            self.is_open = True
            self._opened_at = now

    def _close(self) -> None:
        self.is_open = False
        self.interval_s = seconds(self._breaker.probe_after)
        self._outcomes.clear()
        self.failures = 0
