"""Counting by the hundred gives what counting one by one gives."""

from __future__ import annotations

from bisect import bisect_left

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rabbitflow.observe.metrics import BUCKETS_S, FOLD_AT, Histogram

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
