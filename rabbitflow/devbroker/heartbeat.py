"""Heartbeats of one connection: that it is heard, and that it hears."""

from __future__ import annotations

from collections.abc import Callable

from rabbitflow.devbroker.clock import Clock, Timer


class Heartbeat:
    """Speaks up when nothing else was sent, and gives up a peer that is silent.

    Args:
        clock: by which it counts.
        interval_s: that was agreed on.
        beat: sends a heartbeat.
        give_up: called once nothing was heard for two intervals.
    """

    def __init__(
        self,
        clock: Clock,
        interval_s: float,
        beat: Callable[[], None],
        give_up: Callable[[], None],
    ) -> None:
        self._clock = clock
        self._interval_s = interval_s
        self._beat = beat
        self._give_up = give_up
        self._heard_at = clock.now()
        self._has_sent = False
        self._timer: Timer | None = None
        self._wait()

    def heard(self) -> None:
        """Note that bytes came."""
        self._heard_at = self._clock.now()

    def sent(self) -> None:
        """Note that bytes were sent."""
        self._has_sent = True

    def stop(self) -> None:
        """The connection is gone."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _wait(self) -> None:
        self._timer = self._clock.call_at(self._clock.now() + self._interval_s / 2, self._tick)

    def _tick(self) -> None:
        if self._clock.now() - self._heard_at >= 2 * self._interval_s:
            self._timer = None
            self._give_up()
            return
        if not self._has_sent:
            self._beat()
        self._has_sent = False
        self._wait()
