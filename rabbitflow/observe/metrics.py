"""What is counted, at a cost that the hot path does not feel.

Handlers and publishers count into plain integers here. prometheus-client's own counters take a lock
and, over several processes, a memory-mapped file for each of the three figures an event has; these
take under 1 µs together. A child sends its figures to the supervisor, which adds them up and shows
them (:mod:`rabbitflow.observe.exposition`).
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping
from datetime import datetime
from math import inf
from threading import Lock
from time import perf_counter, time
from typing import Any

BUCKETS_S = (
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
    30.0,
    60.0,
    300.0,
    1800.0,
    7200.0,
)
"""Upper bounds of the histograms, in seconds; what takes longer is counted under +Inf."""

FOLD_AT = 64
"""How many durations of one histogram wait for their buckets. With more of them less is done for
each, and yet it takes longer: what is kept is not in the processor's cache any more."""

SUCCEEDED, RETRIED, DEAD_LETTERED = "succeeded", "retried", "dead_lettered"
DUPLICATE = "duplicate"
OUTCOMES = (SUCCEEDED, RETRIED, DEAD_LETTERED, DUPLICATE)
"""How the handling of an event ends."""
CONFIRMED, UNROUTABLE, FAILED = "confirmed", "unroutable", "failed"
PUBLISH_OUTCOMES = (CONFIRMED, UNROUTABLE, FAILED)
"""How a publish ends."""

UNKNOWN_TYPE = "unknown"
"""The label of events whose type no handler is for: a foreign publisher must not make labels."""

Figures = dict[str, Any]


class Histogram:
    """Counts durations by bucket. Any thread may read the figures.

    Durations are kept as they come and sorted into their buckets by the hundred: sorting and adding
    up a list is C's work, and costs a third of finding the bucket of each.
    """

    __slots__ = ("_counts", "_folding", "_pending", "_sum_s")

    def __init__(self) -> None:
        self._counts = [0] * (len(BUCKETS_S) + 1)
        self._sum_s = 0.0
        self._pending: list[float] = []
        self._folding = Lock()

    def observe(self, duration_s: float) -> None:
        """Count one duration."""
        pending = self._pending
        pending.append(duration_s)
        if len(pending) >= FOLD_AT:
            self._fold()

    def observe_all(self, durations_s: Iterable[float]) -> None:
        """Count many."""
        self._pending.extend(durations_s)
        self._fold()

    def figures(self) -> list[float]:
        """The counts, the sum behind them."""
        self._fold()
        return [*self._counts, self._sum_s]

    def _fold(self) -> None:
        with self._folding:
            # What is observed meanwhile comes behind those that are taken, and stays.
            taken = self._pending[:]
            del self._pending[: len(taken)]
            taken.sort()
            counts, placed = self._counts, 0
            while placed < len(taken):
                # Most of what comes together belongs together.
                bucket = bisect_left(BUCKETS_S, taken[placed])
                bound_s = BUCKETS_S[bucket] if bucket < len(BUCKETS_S) else inf
                up_to = bisect_right(taken, bound_s, placed)
                counts[bucket] += up_to - placed
                placed = up_to
            self._sum_s += sum(taken)


class HandlerMetrics:
    """What one consumer did with one event type. Any thread may read the figures.

    An event that succeeded, nearly every one, is counted by one call that reads one clock: its run
    time, its age and its outcome are worked out by the hundred.
    """

    __slots__ = ("_age", "_folding", "_outcomes", "_ran", "_run", "_succeeded")

    def __init__(self) -> None:
        # Shown as 0 from the start: a rate needs a value before the first increase.
        self._outcomes = dict.fromkeys(OUTCOMES, 0)
        self._run = Histogram()
        self._age = Histogram()
        self._ran: list[tuple[float, float, datetime | None]] = []
        self._succeeded = 0
        self._folding = Lock()

    def succeeded(self, began: float, announced: datetime | None) -> None:
        """Count an event whose handler just returned.

        Args:
            began: when it began, by ``time.perf_counter``.
            announced: when it was announced; None where it is old on purpose, which is no age.
        """
        self._succeeded += 1
        ran = self._ran
        ran.append((began, perf_counter(), announced))
        if len(ran) >= FOLD_AT:
            self._fold()

    def failed(self, began: float, announced: datetime | None) -> None:
        """Count the run of a handler that just raised; :meth:`ended` says what became of it."""
        self._ran.append((began, perf_counter(), announced))
        if len(self._ran) >= FOLD_AT:
            self._fold()

    def ended(self, outcome: str) -> None:
        """Count how an event ended that did not succeed."""
        self._outcomes[outcome] += 1

    def figures(self) -> Figures:
        """Return everything as JSON: ``{"outcomes", "run", "age"}``."""
        self._fold()
        return {
            "outcomes": self._outcomes | {SUCCEEDED: self._succeeded},
            "run": self._run.figures(),
            "age": self._age.figures(),
        }

    def _fold(self) -> None:
        with self._folding:
            taken = self._ran[:]
            del self._ran[: len(taken)]
            self._run.observe_all([ended - began for began, ended, _ in taken])
            # What both clocks are apart, read now: a run is counted within a second or so.
            apart_s = time() - perf_counter()
            ages_s = [
                apart_s + began - announced.timestamp()
                for began, _, announced in taken
                if announced is not None
            ]
            # Clocks differ between hosts.
            self._age.observe_all([age_s if age_s > 0.0 else 0.0 for age_s in ages_s])


class ConsumerMetrics:
    """What one consumer did, by event type."""

    def __init__(self) -> None:
        self._by_type: dict[str, HandlerMetrics] = {}

    def of(self, event_type: str) -> HandlerMetrics:
        """Return the metrics of a handled event type; keep them, to save the look-up."""
        metrics = self._by_type.get(event_type)
        if metrics is None:
            metrics = self._by_type[event_type] = HandlerMetrics()
        return metrics

    def figures(self) -> Figures:
        """Return everything as JSON: ``{event_type: {"outcomes", "run", "age"}}``."""
        return {
            event_type: metrics.figures() for event_type, metrics in list(self._by_type.items())
        }


class PublishMetrics:
    """What one publisher announced, by event type. Any thread may read the figures."""

    def __init__(self) -> None:
        self._by_type: dict[str, tuple[dict[str, int], Histogram]] = {}

    def ended(self, event_type: str, outcome: str, took_s: float) -> None:
        """Count one publish and how long its confirm took."""
        metrics = self._by_type.get(event_type)
        if metrics is None:
            outcomes = dict.fromkeys(PUBLISH_OUTCOMES, 0)
            metrics = self._by_type[event_type] = outcomes, Histogram()
        metrics[0][outcome] += 1
        metrics[1].observe(took_s)

    def figures(self) -> Figures:
        """Return everything as JSON: ``{event_type: {"outcomes", "run"}}``."""
        return {
            event_type: {"outcomes": dict(outcomes), "run": took.figures()}
            for event_type, (outcomes, took) in list(self._by_type.items())
        }


def add_figures(total: Figures, more: Mapping[str, Any]) -> None:
    """Add figures of the same shape into ``total``: numbers, lists of numbers, nested mappings."""
    for name, value in more.items():
        if isinstance(value, Mapping):
            add_figures(total.setdefault(name, {}), value)
        elif isinstance(value, list):
            before = total.get(name) or [0] * len(value)
            total[name] = [one + another for one, another in zip(before, value, strict=True)]
        else:
            total[name] = total.get(name, 0) + value
