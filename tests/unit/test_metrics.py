"""Counting by the hundred gives what counting one by one gives."""

from __future__ import annotations

import time
from bisect import bisect_left
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rabbitflow.observe.metrics import (
    BUCKETS_S,
    DUPLICATE,
    FOLD_AT,
    RETRIED,
    SUCCEEDED,
    ConsumerMetrics,
    Histogram,
)

durations = st.floats(0, 1e5) | st.sampled_from(BUCKETS_S)


@given(st.lists(st.lists(durations, max_size=40), max_size=5), st.integers(0, 2 * FOLD_AT))
def test_every_duration_is_in_its_bucket_whenever_somebody_reads(
    rounds: list[list[float]], many: int
) -> None:
    histogram = Histogram()
    expected = [0] * (len(BUCKETS_S) + 1)
    total_s = 0.0
    for observed in [*rounds, [0.5] * many]:
        for duration_s in observed:
            histogram.observe(duration_s)
            expected[bisect_left(BUCKETS_S, duration_s)] += 1
            total_s += duration_s
        *counts, sum_s = histogram.figures()
        assert counts == expected
        assert sum_s == pytest.approx(total_s)


@pytest.mark.parametrize("events", [1, FOLD_AT, FOLD_AT + 1])
def test_one_call_counts_outcome_run_time_and_age(events: int) -> None:
    metrics = ConsumerMetrics()
    announced = datetime.now(UTC) - timedelta(seconds=7)
    for _ in range(events):
        metrics.of("ORDER_PLACED").succeeded(time.perf_counter() - 0.2, announced)
    figures = metrics.figures()["ORDER_PLACED"]
    assert figures["outcomes"][SUCCEEDED] == events
    *runs, run_s = figures["run"]
    *ages, age_s = figures["age"]
    assert sum(runs) == sum(ages) == events
    assert run_s / events == pytest.approx(0.2, abs=0.1)
    # To where the handling begins: without the handler's own time.
    assert age_s / events == pytest.approx(6.8, abs=0.2)


def test_an_event_that_is_old_on_purpose_has_no_age_and_one_from_the_future_is_new() -> None:
    metrics = ConsumerMetrics()
    metrics.of("ORDER_PLACED").succeeded(time.perf_counter(), None)
    metrics.of("ORDER_PLACED").failed(time.perf_counter(), datetime.now(UTC) + timedelta(hours=1))
    metrics.of("ORDER_PLACED").ended(RETRIED)
    figures = metrics.figures()["ORDER_PLACED"]
    *ages, age_s = figures["age"]
    assert (sum(ages), age_s) == (1, 0.0)
    assert sum(figures["run"][:-1]) == 2
    wanted = {SUCCEEDED: 1, RETRIED: 1, DUPLICATE: 0}
    assert wanted.items() <= figures["outcomes"].items()
