"""What time it is for messages: the real time, or one that a test moves by hand."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import time
from collections.abc import Callable
from typing import Protocol


class Timer(Protocol):
    """A callback that is due later."""

    def cancel(self) -> None:
        """Let it not happen; harmless when it already has."""


class Clock(Protocol):
    """The time, in seconds since the epoch, and callbacks that are due at a time."""

    def now(self) -> float:
        """Seconds since the epoch."""

    def call_at(self, when: float, callback: Callable[[], None]) -> Timer:
        """Call ``callback`` at ``when``, in seconds since the epoch, or soon where that is over."""


class LoopClock:
    """The real time, on the running event loop."""

    def now(self) -> float:
        """Seconds since the epoch."""
        return time.time()

    def call_at(self, when: float, callback: Callable[[], None]) -> Timer:
        """Call ``callback`` at ``when``, in seconds since the epoch."""
        return asyncio.get_running_loop().call_later(max(0.0, when - time.time()), callback)


class _Alarm:
    __slots__ = ("callback", "cancelled", "when")

    def __init__(self, when: float, callback: Callable[[], None]) -> None:
        self.when = when
        self.callback = callback
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class VirtualClock:
    """A time that stands still until :meth:`advance` moves it: five minutes pass in no time.

    Args:
        now: the time it starts with, in seconds since the epoch; the real one where None.
    """

    def __init__(self, now: float | None = None) -> None:
        self._now = time.time() if now is None else now
        self._alarms: list[tuple[float, int, _Alarm]] = []
        self._numbers = itertools.count()

    def now(self) -> float:
        """Seconds since the epoch."""
        return self._now

    def call_at(self, when: float, callback: Callable[[], None]) -> Timer:
        """Call ``callback`` once the time has been moved to ``when``; never by itself."""
        alarm = _Alarm(when, callback)
        heapq.heappush(self._alarms, (when, next(self._numbers), alarm))
        return alarm

    @property
    def next_due(self) -> float | None:
        """When the next callback is due, in seconds since the epoch; None where none is."""
        while self._alarms and self._alarms[0][2].cancelled:
            heapq.heappop(self._alarms)
        return self._alarms[0][0] if self._alarms else None

    def advance(self, seconds: float) -> None:
        """Let ``seconds`` pass. Each callback that falls due sees the time it was due at; one that
        it asks for within the span happens too."""
        if seconds < 0:
            raise ValueError(f"time does not go back: {seconds} s")
        end = self._now + seconds
        while (due := self.next_due) is not None and due <= end:
            self._now = max(self._now, due)
            heapq.heappop(self._alarms)[2].callback()
        self._now = end
