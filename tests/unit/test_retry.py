"""The verdict on a failure is a pure function of policy, attempt, first failure and exception."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
import tenacity
from hypothesis import given
from hypothesis import strategies as st

from rabbitflow import Consumer, DeadLetter, Retry, RetryLater
from rabbitflow.errors import HandlerTimeout
from rabbitflow.retry import (
    REJECTED,
    RETRIES_EXHAUSTED,
    TIMED_OUT,
    Dead,
    Failure,
    RetryIn,
    Verdict,
)
from rabbitflow.topology import bucket_for

NOW = datetime(2026, 4, 3, 10, 30, tzinfo=UTC)


class CardDeclined(Exception):
    """The bank says no."""


def verdict(
    policy: Retry, attempt: int = 1, error: Exception | None = None, failing_for_s: float = 0
) -> Verdict:
    first = NOW - timedelta(seconds=failing_for_s)
    return policy.verdict(Failure(error or ValueError(), attempt, first, NOW))


def test_exponential_waits_twice_as_long_each_time_up_to_its_cap() -> None:
    policy = Retry.exponential(attempts=6, first=2, cap=10)
    waits = [verdict(policy, attempt) for attempt in range(1, 7)]
    assert waits[:5] == [RetryIn(2), RetryIn(4), RetryIn(8), RetryIn(10), RetryIn(10)]
    assert waits[5] == Dead(RETRIES_EXHAUSTED)


def test_a_schedule_is_followed_and_then_over() -> None:
    policy = Retry.schedule("1s", "30s", "5m")
    assert [verdict(policy, attempt) for attempt in range(1, 5)] == [
        RetryIn(1),
        RetryIn(30),
        RetryIn(300),
        Dead(RETRIES_EXHAUSTED),
    ]


def test_fixed_counts_the_first_attempt() -> None:
    policy = Retry.fixed(attempts=2, wait=10)
    assert verdict(policy, 1) == RetryIn(10)
    assert verdict(policy, 2) == Dead(RETRIES_EXHAUSTED)


def test_none_never_retries() -> None:
    assert verdict(Retry.none()) == verdict(Retry.schedule()) == Dead(RETRIES_EXHAUSTED)


def test_exceptions_that_no_retry_mends_are_rejected_at_once() -> None:
    policy = Retry.fixed(never=(CardDeclined,))
    assert verdict(policy, error=CardDeclined()) == Dead(REJECTED)
    assert verdict(policy, error=ValueError()) == RetryIn(10)


def test_with_only_every_other_exception_is_rejected() -> None:
    policy = Retry.fixed(only=(ConnectionError,))
    assert verdict(policy, error=ConnectionResetError()) == RetryIn(10)
    assert verdict(policy, error=ValueError()) == Dead(REJECTED)


def test_a_handler_may_ask_for_its_own_delay_within_the_limit_of_attempts() -> None:
    policy = Retry.fixed(attempts=3, wait=10, only=(ConnectionError,))
    assert verdict(policy, 2, RetryLater(90)) == RetryIn(90)
    assert verdict(policy, 3, RetryLater(90)) == Dead(RETRIES_EXHAUSTED)


@pytest.mark.parametrize("wait_s", [-1, float("inf"), float("nan")])
def test_a_delay_that_is_none_is_refused_where_it_is_asked_for(wait_s: float) -> None:
    with pytest.raises(ValueError, match="0 or more"):
        RetryLater(wait_s)


def test_max_age_counts_the_wait_that_a_handler_asks_for_only_when_it_is_over() -> None:
    policy = Retry.fixed(attempts=100, wait=10, max_age="1h")
    assert verdict(policy, 2, RetryLater(7200), failing_for_s=60) == RetryIn(7200)
    assert verdict(policy, 3, failing_for_s=7260) == Dead(RETRIES_EXHAUSTED)


def test_never_wins_over_only() -> None:
    policy = Retry.fixed(only=(ConnectionError,), never=(ConnectionResetError,))
    assert verdict(policy, error=ConnectionResetError()) == Dead(REJECTED)
    assert verdict(policy, error=ConnectionAbortedError()) == RetryIn(10)


@given(st.integers(1, 10_000), st.floats(0.001, 1000), st.floats(0.001, 100_000))
def test_no_wait_is_longer_than_the_cap(attempt: int, first: float, cap: float) -> None:
    found = verdict(Retry.exponential(attempts=20_000, first=first, cap=cap), attempt)
    assert isinstance(found, RetryIn)
    assert 0 <= found.delay_s <= cap


@given(
    st.integers(1, 30),
    st.floats(0, 5000),
    st.sampled_from([ValueError(), CardDeclined(), RetryLater(3), DeadLetter("no"), OSError()]),
)
def test_the_same_failure_always_has_the_same_verdict(
    attempt: int, failing_for_s: float, error: Exception
) -> None:
    policy = Retry.exponential(attempts=9, max_age="1h", never=(CardDeclined,))
    found = verdict(policy, attempt, error, failing_for_s)
    assert found == verdict(policy, attempt, error, failing_for_s)
    if isinstance(found, RetryIn):
        assert attempt < 9
        assert failing_for_s < 3600


def test_a_handler_may_ask_for_the_dead_letters() -> None:
    assert verdict(Retry.fixed(), error=DeadLetter("no such user")) == Dead(REJECTED)


def test_a_timeout_is_retried_like_an_exception_and_named_at_the_end() -> None:
    policy = Retry.fixed(attempts=2)
    assert verdict(policy, 1, HandlerTimeout()) == RetryIn(10)
    assert verdict(policy, 2, HandlerTimeout()) == Dead(TIMED_OUT)


def test_max_age_counts_from_the_first_failure() -> None:
    policy = Retry.fixed(attempts=100, wait=10, max_age="1h")
    assert verdict(policy, 2, failing_for_s=3599) == RetryIn(10)
    assert verdict(policy, 2, failing_for_s=3600) == Dead(RETRIES_EXHAUSTED)


def test_any_strategy_of_tenacity_can_be_passed() -> None:
    policy = Retry(
        stop=tenacity.stop_before_delay(60),
        wait=tenacity.wait_incrementing(start=5, increment=5),
        retry=tenacity.retry_if_exception_message(match="busy"),
    )
    assert verdict(policy, 2, ValueError("busy")) == RetryIn(10)
    assert verdict(policy, 2, ValueError("gone")) == Dead(REJECTED)
    assert verdict(policy, 2, ValueError("busy"), failing_for_s=51) == Dead(RETRIES_EXHAUSTED)


@given(st.integers(1, 9), st.floats(0, 3))
def test_jitter_stays_within_its_bounds(attempt: int, jitter: float) -> None:
    found = verdict(Retry.exponential(attempts=10, first=1, cap=60, jitter=jitter), attempt)
    shortest = min(60, 2 ** (attempt - 1))
    assert isinstance(found, RetryIn)
    assert shortest <= found.delay_s <= shortest + jitter


def test_the_delays_a_policy_reaches_are_known_before_it_is_used() -> None:
    assert Retry.schedule("1s", "30s").reachable_delays_s() == [(1, 1), (30, 30)]
    assert Retry.none().reachable_delays_s() == []
    assert Retry.exponential(attempts=4, first=1, cap=3).reachable_delays_s() == [
        (1, 1),
        (2, 2),
        (3, 3),
    ]


@given(st.integers(1, 12), st.floats(0.1, 60), st.floats(1, 4000))
def test_every_retry_finds_a_queue_that_was_declared_at_start(
    attempts: int, first: float, cap: float
) -> None:
    policy = Retry.exponential(attempts=attempts, first=first, cap=cap)
    payment = Consumer("payment", retry=policy)
    payment.on("ORDER_PLACED")(lambda event: None)
    declared = payment.retry_buckets_s()
    for attempt in range(1, attempts):
        found = verdict(policy, attempt)
        assert isinstance(found, RetryIn)
        assert bucket_for(found.delay_s) in declared


@pytest.mark.parametrize("attempts", [0, -1])
def test_attempts_below_one_are_refused(attempts: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        Retry.fixed(attempts=attempts)


def test_a_policy_that_fails_itself_ends_the_attempts_and_not_the_process() -> None:
    class RetryAfter(tenacity.wait.wait_base):
        def __call__(self, retry_state: tenacity.RetryCallState) -> float:
            assert retry_state.outcome is not None
            return float(retry_state.outcome.exception().retry_after_s)  # type: ignore[union-attr]

    policy = Retry(stop=tenacity.stop_after_attempt(5), wait=RetryAfter())
    assert policy.reachable_delays_s() == []
    fitting = ConnectionError()
    fitting.retry_after_s = 7  # type: ignore[attr-defined]
    assert verdict(policy, error=fitting) == RetryIn(7.0)
    assert verdict(policy, error=ValueError()) == Dead(RETRIES_EXHAUSTED)
