"""The intake: whether, and how many, events this process takes just now."""

from __future__ import annotations

import asyncio

from rabbitflow.breaker import Breaker, BreakerState, Circuit
from rabbitflow.rate import Pacer, Rate
from rabbitflow.worker.acks import Acks
from rabbitflow.worker.clock import Clock, SteadyClock, Timer, wait_until

KEEPS_ONE_BELOW_S = 1.0
"""A breaker that probes more often keeps an event here for it: to cancel and to consume again costs
the broker more than an event."""


class Intake:
    """Joins everything that may hold a consumer back: caution after a crash, an operator's pause,
    the circuit breaker, the rate limit.

    It decides; the runtime asks the broker for as many events as :attr:`prefetch` says whenever
    :attr:`changed` is set, and every worker task passes :meth:`admit` before it begins an event.

    Args:
        prefetch: when nothing holds it back.
        is_cautious: begin with one event at a time, as after a crash.
        breaker: opens on failures; None for none.
        rate: of starts; None for no limit.
        clock: by which the breaker probes and the rate spaces.

    Attributes:
        changed: set when :attr:`prefetch` is another one, or an operator's pause began or ended.
        held: how many wait in :meth:`admit`.
        circuit: the breaker's, or None.
        is_free: whether events begin without :meth:`admit`.
    """

    def __init__(
        self,
        prefetch: int,
        *,
        is_cautious: bool,
        breaker: Breaker | None,
        rate: Rate | None,
        clock: Clock | None = None,
    ) -> None:
        self.changed = asyncio.Event()
        self.is_paused = False
        self.held = 0
        self.circuit = None if breaker is None else Circuit(breaker)
        self._clock = clock or SteadyClock()
        self._full = prefetch
        self._is_cautious = is_cautious
        self._pacer = None if rate is None else Pacer(rate)
        self._moved = asyncio.Event()
        self._is_probe_out = False
        self._probe_timer: Timer | None = None
        self._is_told = (self.is_paused, self.prefetch)
        self.is_free = self._pacer is None

    @property
    def breaker_state(self) -> BreakerState:
        """The breaker's state; closed where there is none."""
        if self.circuit is None:
            return BreakerState.CLOSED
        return self.circuit.state(self._clock.now())

    @property
    def holds_back(self) -> bool:
        """Whether events that are here may have to wait for an operator or the breaker."""
        return self.is_paused or (self.circuit is not None and self.circuit.is_open)

    @property
    def prefetch(self) -> int:
        """How many unsettled events to ask the broker for; 0 for none at all."""
        if self.is_paused:
            return 0
        circuit = self.circuit
        if circuit is None or not circuit.is_open:
            return self.full
        is_due = circuit.state(self._clock.now()) is BreakerState.PROBING
        return 1 if is_due or circuit.interval_s < KEEPS_ONE_BELOW_S else 0

    def trust(self) -> None:
        """An event came that was never taken back: the caution after a crash is over."""
        if self._is_cautious:
            self._is_cautious = False
            self._move()

    def pause(self, is_paused: bool) -> None:
        """Take no events, or take them again, as an operator wants it."""
        if self.is_paused != is_paused:
            self.is_paused = is_paused
            self._move()

    @property
    def full(self) -> int:
        """How many unsettled events to ask for while nothing but caution holds it back."""
        return 1 if self._is_cautious else self._full

    def wake(self) -> None:
        """Let those that wait in :meth:`admit` look again whether theirs is given up."""
        self._moved.set()

    async def admit(self, acks: Acks) -> None:
        """Return when the next event may begin, or its subscription is given up. Not needed while
        :attr:`is_free`."""
        self.held += 1
        try:
            while self._must_wait() and not acks.is_given_up:
                self._moved.clear()
                await self._moved.wait()
            if self.breaker_state is BreakerState.PROBING:
                self._is_probe_out = True
            if self._pacer is not None:
                now = self._clock.now()
                wait_s = self._pacer.reserve(now)
                if wait_s:
                    await wait_until(now + wait_s, self._clock)
        finally:
            self.held -= 1

    def record(self, *, failed: bool | None) -> None:
        """Tell the breaker of an outcome; None for one that says nothing of the service's health,
        such as an invalid payload."""
        circuit = self.circuit
        if circuit is None:
            return
        if not circuit.is_open:
            if failed is not None and circuit.record(failed=failed, now=self._clock.now()):
                self._move()
            return
        now = self._clock.now()
        before = circuit.state(now)
        if before is BreakerState.PROBING:
            self._is_probe_out = False
        if failed is not None:
            circuit.record(failed=failed, now=now)
        if circuit.state(now) is not before or before is BreakerState.PROBING:
            self._move()

    def close(self) -> None:
        """Drop the timer."""
        if self._probe_timer is not None:
            self._probe_timer.cancel()

    def _must_wait(self) -> bool:
        if self.is_paused:
            return True
        match self.breaker_state:
            case BreakerState.OPEN:
                return True
            case BreakerState.PROBING:
                return self._is_probe_out
        return False

    def _move(self) -> None:
        self.is_free = self._pacer is None and not self.holds_back
        wanted = (self.is_paused, self.prefetch)
        if wanted != self._is_told:
            self._is_told = wanted
            self.changed.set()
        self._moved.set()
        if self.circuit is not None and self.breaker_state is BreakerState.OPEN:
            self.close()
            # A little late rather than early: the loop's clock and ours may differ by a tick.
            self._probe_timer = self._clock.call_at(self.circuit.probes_at + 0.001, self._move)
