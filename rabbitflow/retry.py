"""Retry: when a failed event is delivered again, said in tenacity's words, decided without I/O.

The attempts live on the broker, not in a sleeping process: the policy only returns a verdict, and
settlement carries it out.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception_type,
    retry_if_not_exception_type,
    stop_after_attempt,
    stop_after_delay,
    wait_chain,
    wait_exponential,
    wait_fixed,
    wait_none,
    wait_random,
)
from tenacity.retry import retry_base
from tenacity.stop import stop_base
from tenacity.wait import wait_base

from rabbitflow.durations import Duration, seconds
from rabbitflow.errors import DeadLetter, HandlerTimeout, RetryLater

logger = logging.getLogger(__name__)

ExceptionTypes = tuple[type[BaseException], ...]

_PROBED_ATTEMPTS: Final = 100
_PROBES_PER_ATTEMPT: Final = 20


@dataclass(frozen=True, slots=True)
class Failure:
    """One failed attempt.

    Fields:
        error: what the handler raised.
        attempt: which attempt failed; the first is 1.
        first_failed_at: when the event's first attempt failed.
        failed_at: when this one did.
    """

    error: BaseException
    attempt: int
    first_failed_at: datetime
    failed_at: datetime


@dataclass(frozen=True, slots=True)
class RetryIn:
    """Deliver the event again after ``delay_s`` seconds."""

    delay_s: float


@dataclass(frozen=True, slots=True)
class Dead:
    """Keep the event among the dead letters, for ``reason``."""

    reason: str


Verdict = RetryIn | Dead

RETRIES_EXHAUSTED: Final = "retries-exhausted"
REJECTED: Final = "rejected"
INVALID: Final = "invalid"
NO_HANDLER: Final = "no-handler"
CRASHED: Final = "crashed"
TIMED_OUT: Final = "timeout"


@dataclass(frozen=True, slots=True)
class Retry:
    """A policy of durable retries, built from tenacity's strategies.

    Fields:
        stop: when to give up, e.g. ``stop_after_attempt(5) | stop_after_delay(3600)``. Attempts
            count the first one; a delay counts from the first failure, across restarts.
        wait: how long until the next attempt.
        retry: which exceptions are worth another attempt.
        immediate: how often the handler is run again at once, in the process, before a delivery
            counts as a failed attempt.
    """

    stop: stop_base
    wait: wait_base = field(default_factory=wait_none)
    retry: retry_base = field(default_factory=lambda: retry_if_exception_type(Exception))
    immediate: int = 0

    @classmethod
    def exponential(
        cls,
        attempts: int = 5,
        first: Duration = 2,
        cap: Duration = 300,
        *,
        jitter: Duration = 0,
        max_age: Duration | None = None,
        never: ExceptionTypes = (),
        only: ExceptionTypes = (),
        immediate: int = 0,
    ) -> Retry:
        """Wait ``first`` seconds, then twice as long each time, at most ``cap``.

        Args:
            attempts: how often the handler runs in all.
            first: the first wait, in seconds or as ``"2s"``.
            cap: the longest wait, likewise.
            jitter: up to this much is added to each wait, at random.
            max_age: give up this long after the first failure.
            never: exceptions that no retry mends: dead-lettered at once.
            only: when given, every other exception is dead-lettered at once.
            immediate: runs of the handler at once, before a delivery counts as failed.
        """
        wait = wait_exponential(multiplier=seconds(first), max=seconds(cap))
        return cls._of(attempts, wait, jitter, max_age, never, only, immediate)

    @classmethod
    def fixed(
        cls,
        attempts: int = 3,
        wait: Duration = 10,
        *,
        jitter: Duration = 0,
        max_age: Duration | None = None,
        never: ExceptionTypes = (),
        only: ExceptionTypes = (),
        immediate: int = 0,
    ) -> Retry:
        """Wait the same time before every attempt. Arguments as in :meth:`exponential`."""
        return cls._of(attempts, wait_fixed(seconds(wait)), jitter, max_age, never, only, immediate)

    @classmethod
    def schedule(
        cls,
        *waits: Duration,
        jitter: Duration = 0,
        max_age: Duration | None = None,
        never: ExceptionTypes = (),
        only: ExceptionTypes = (),
        immediate: int = 0,
    ) -> Retry:
        """Wait as listed: ``Retry.schedule("1s", "30s", "5m")`` runs the handler four times."""
        if not waits:
            return cls.none()
        chain = wait_chain(*(wait_fixed(seconds(wait)) for wait in waits))
        return cls._of(len(waits) + 1, chain, jitter, max_age, never, only, immediate)

    @classmethod
    def none(cls) -> Retry:
        """Run the handler once; a failure is a dead letter."""
        return cls(stop=stop_after_attempt(1))

    @classmethod
    def _of(
        cls,
        attempts: int,
        wait: wait_base,
        jitter: Duration,
        max_age: Duration | None,
        never: ExceptionTypes,
        only: ExceptionTypes,
        immediate: int,
    ) -> Retry:
        if attempts < 1:
            raise ValueError(f"attempts counts the first one, so it is at least 1, not {attempts}")
        stop: stop_base = stop_after_attempt(attempts)
        if max_age is not None:
            stop = stop | stop_after_delay(seconds(max_age))
        if seconds(jitter):
            wait = wait + wait_random(0, seconds(jitter))
        retry: retry_base = retry_if_exception_type(only or Exception)
        if never:
            retry = retry & retry_if_not_exception_type(never)
        return cls(stop, wait, retry, immediate)

    def verdict(self, failure: Failure) -> Verdict:
        """Return what becomes of a failed attempt. Pure: the same failure, the same policy; only a
        policy with jitter draws a random number.

        A strategy of the user's own that fails itself is logged, and ends the event's attempts: it
        would fail again, and take the process along each time.
        """
        try:
            return self._verdict(failure)
        except Exception:
            logger.exception("the retry policy failed; no further attempt is made")
            return Dead(RETRIES_EXHAUSTED)

    def _verdict(self, failure: Failure) -> Verdict:
        error = failure.error
        if isinstance(error, DeadLetter):
            return Dead(REJECTED)
        state = _state_of(failure)
        asked = isinstance(error, RetryLater)
        if not asked and not self.retry(state):
            return Dead(REJECTED)
        delay_s = error.seconds if isinstance(error, RetryLater) else float(self.wait(state))
        state.upcoming_sleep = delay_s
        if self.stop(state):
            return Dead(TIMED_OUT if isinstance(error, HandlerTimeout) else RETRIES_EXHAUSTED)
        return RetryIn(max(0.0, delay_s))

    def is_worth_retrying(self, failure: Failure) -> bool:
        """Whether the exception itself is one that another run may mend."""
        if isinstance(failure.error, DeadLetter | RetryLater):
            return False
        try:
            return bool(self.retry(_state_of(failure)))
        except Exception:
            logger.exception("the retry policy failed; it is not run again at once")
            return False

    @property
    def is_endless(self) -> bool:
        """Whether it was not seen to end."""
        return len(self.reachable_delays_s()) == _PROBED_ATTEMPTS

    def reachable_delays_s(self) -> list[tuple[float, float]]:
        """Return the shortest and longest delay seen for each attempt that may be retried.

        tenacity's strategies can't be asked for their bounds, so they are run, on a TimeoutError.
        What a random or a hand-written strategy gives beyond that is met when it happens; so is
        one that fails here because it looks for an exception of its own.
        """
        now = datetime.now(UTC)
        delays: list[tuple[float, float]] = []
        for attempt in range(1, _PROBED_ATTEMPTS + 1):
            state = _state_of(Failure(TimeoutError(), attempt, now, now))
            try:
                waits = [float(self.wait(state)) for _ in range(_PROBES_PER_ATTEMPT)]
                state.upcoming_sleep = min(waits)
                if self.stop(state):
                    break
            except Exception:
                logger.debug("the retry policy can't be run beforehand", exc_info=True)
                break
            delays.append((min(waits), max(waits)))
        return delays


# Strategies are handed the object that retries; ours never runs, it only fills that place.
_CARRIER = AsyncRetrying()


def _state_of(failure: Failure) -> RetryCallState:
    state = RetryCallState(_CARRIER, None, (), {})
    error = failure.error
    state.set_exception((type(error), error, error.__traceback__))
    state.attempt_number = failure.attempt
    state.start_time = 0.0
    state.outcome_timestamp = (failure.failed_at - failure.first_failed_at).total_seconds()
    return state
