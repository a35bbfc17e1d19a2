"""The figures in Prometheus' words: names, labels and families, made when somebody asks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from rabbitflow._version import __version__
from rabbitflow.observe.metrics import BUCKETS_S, Figures, PublishMetrics, add_figures
from rabbitflow.observe.state import ConsumerState


class WorkerCollector(Collector):
    """Shows the consumers of one worker. ``states`` is called with every scrape."""

    def __init__(self, states: Callable[[], Mapping[str, ConsumerState]]) -> None:
        self._states = states

    def collect(self) -> Iterator[Metric]:
        """Yield every family of a worker."""
        states = self._states()
        yield InfoMetricFamily("rabbitflow_build", "This build.", value={"version": __version__})
        yield from _handled(states)
        published: Figures = {}
        for state in states.values():
            add_figures(published, state.published)
        yield from _published(published)
        yield from _gauges(states)


class PublisherCollector(Collector):
    """Shows what a publisher of the user's own process announced:
    ``REGISTRY.register(PublisherCollector(publisher.metrics))``."""

    def __init__(self, metrics: PublishMetrics) -> None:
        self._metrics = metrics

    def collect(self) -> Iterator[Metric]:
        """Yield the families of a publisher."""
        yield from _published(self._metrics.figures())


class RelayCollector(Collector):
    """Shows an outbox as its relay sees it, and what the relay announces.

    Args:
        outbox: returns the figures: active, waiting, lag in seconds, refused, relayed.
        metrics: of the relay's publisher.
    """

    def __init__(self, outbox: Callable[[], Mapping[str, float]], metrics: PublishMetrics) -> None:
        self._outbox = outbox
        self._metrics = metrics

    def collect(self) -> Iterator[Metric]:
        """Yield the families of a relay."""
        figures = self._outbox()
        for name, figure, documentation in (
            ("relay_active", "active", "Whether this relay announces, and does not stand by."),
            ("outbox_waiting", "waiting", "Events of the outbox that are not announced yet."),
            ("outbox_lag_seconds", "lag_s", "How long the oldest of them has waited."),
            ("outbox_refused", "refused", "Events of the outbox that can't be announced."),
        ):
            yield GaugeMetricFamily(f"rabbitflow_{name}", documentation, value=figures[figure])
        yield from _published(self._metrics.figures())


def scraped(collector: Collector) -> Any:
    """Return the WSGI application that shows what ``collector`` collects."""
    registry = CollectorRegistry()
    registry.register(collector)
    return make_wsgi_app(registry)


def _handled(states: Mapping[str, ConsumerState]) -> Iterator[Metric]:
    labels = ["consumer", "event_type"]
    ended = CounterMetricFamily(
        "rabbitflow_events_handled", "Events by how they ended.", labels=[*labels, "outcome"]
    )
    run = HistogramMetricFamily(
        "rabbitflow_handler_seconds", "Run time of handlers.", labels=labels
    )
    age = HistogramMetricFamily(
        "rabbitflow_event_age_seconds",
        "From the announcement to the first handling.",
        labels=labels,
    )
    for name, state in states.items():
        for event_type, figures in state.handled.items():
            for outcome, count in figures["outcomes"].items():
                ended.add_metric([name, event_type, outcome], count)
            _add_histogram(run, [name, event_type], figures["run"])
            _add_histogram(age, [name, event_type], figures["age"])
    yield from (ended, run, age)


def _published(figures: Figures) -> Iterator[Metric]:
    ended = CounterMetricFamily(
        "rabbitflow_events_published",
        "Events announced, by how the broker answered.",
        labels=["event_type", "outcome"],
    )
    took = HistogramMetricFamily(
        "rabbitflow_publish_seconds", "From publish to confirm.", labels=["event_type"]
    )
    for event_type, figure in figures.items():
        for outcome, count in figure["outcomes"].items():
            ended.add_metric([event_type, outcome], count)
        _add_histogram(took, [event_type], figure["run"])
    yield from (ended, took)


def _gauges(states: Mapping[str, ConsumerState]) -> Iterator[Metric]:
    def gauge(name: str, documentation: str, *labels: str) -> GaugeMetricFamily:
        return GaugeMetricFamily(f"rabbitflow_{name}", documentation, labels=["consumer", *labels])

    up = gauge("consumer_up", "Whether all processes of the consumer consume and can settle.")
    paused = gauge("consumer_paused", "Whether an operator or its breaker paused it.")
    breaker = gauge("breaker_open", "Whether its circuit breaker is open, or probing.")
    in_flight = gauge("in_flight", "Deliveries in the worker, not settled yet.")
    waiting = gauge(
        "oldest_waiting_seconds",
        "Since the announcement of the oldest event that the worker has and has not begun.",
    )
    messages = gauge("queue_messages", "Messages in the consumer's queues.", "state")
    connected = gauge("broker_connected", "Whether the connection stands.", "role")
    restarts = CounterMetricFamily(
        "rabbitflow_child_restarts", "Processes started again.", labels=["consumer", "reason"]
    )
    for name, state in states.items():
        up.add_metric([name], float(state.is_up))
        paused.add_metric([name], float(state.is_paused))
        breaker.add_metric([name], float(state.is_breaker_open))
        in_flight.add_metric([name], state.in_flight)
        waiting.add_metric([name], state.oldest_waiting_s)
        for kind, count in state.messages.items():
            messages.add_metric([name, kind], count)
        for role, stands in state.connected.items():
            connected.add_metric([name, role], float(stands))
        for reason, count in state.restarts.items():
            restarts.add_metric([name, reason], count)
    yield from (up, paused, breaker, in_flight, waiting, messages, connected, restarts)


def _add_histogram(family: HistogramMetricFamily, labels: list[str], figures: list[float]) -> None:
    *counts, sum_s = figures
    buckets: list[tuple[str, float]] = []
    total = 0.0
    for bound, count in zip([*map(str, BUCKETS_S), "+Inf"], counts, strict=True):
        total += count
        buckets.append((bound, total))
    family.add_metric(labels, buckets=buckets, sum_value=sum_s)
