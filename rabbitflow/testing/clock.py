"""The time of a test: it stands still until the test lets it pass."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

from rabbitflow.devbroker import VirtualClock
from rabbitflow.worker.clock import Timer


class TestTime:
    """One time for the broker and for the consumers on it.

    Args:
        broker: the clock of the broker.
    """

    __test__ = False

    def __init__(self, broker: VirtualClock) -> None:
        self.broker = broker

    def now(self) -> float:
        """Seconds since the epoch; they go on when the test says so."""
        return self.broker.now()

    def utc(self) -> datetime:
        """The same as a time of day."""
        return datetime.fromtimestamp(self.broker.now(), UTC)

    def call_at(self, when: float, callback: Callable[[], None]) -> Timer:
        """Call ``callback`` once the test has let it become ``when``."""
        return self.broker.call_at(when, callback)
