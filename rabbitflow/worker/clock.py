"""The time that breakers, rate limits and retries go by: the real one, or a test's."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Protocol


class Timer(Protocol):
    """A callback that is due later."""

    def cancel(self) -> None:
        """Let it not happen."""


class Clock(Protocol):
    """Says how late it is, and calls back. Handlers' time-outs do not go by it: a handler's own
    work takes real time."""

    def now(self) -> float:
        """Seconds that never go back, from any beginning."""

    def utc(self) -> datetime:
        """The time of day, in UTC."""

    def call_at(self, when: float, callback: Callable[[], None]) -> Timer:
        """Call ``callback`` when :meth:`now` has come to ``when``."""


class SteadyClock:
    """The real time, on the running event loop."""

    def now(self) -> float:
        """Seconds of the monotonic clock."""
        return time.monotonic()

    def utc(self) -> datetime:
        """The time of day."""
        return datetime.now(UTC)

    def call_at(self, when: float, callback: Callable[[], None]) -> Timer:
        """Call ``callback`` at ``when``, by the loop's own clock, which may differ by a tick."""
        return asyncio.get_running_loop().call_later(max(0.0, when - time.monotonic()), callback)


async def wait_until(when: float, clock: Clock) -> None:
    """Return when ``clock`` has come to ``when``."""
    come: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def wake() -> None:
        if not come.done():
            come.set_result(None)

    timer = clock.call_at(when, wake)
    try:
        await come
    finally:
        timer.cancel()
