"""Spans of events, after OpenTelemetry's semantic conventions for messaging.

Needs the extra ``otel``; everybody else asks :func:`rabbitflow.observe.tracing.tracing` first. The
context travels in the message's headers as the configured propagator writes it: W3C's
``traceparent``, ``tracestate`` and ``baggage`` unless told otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from opentelemetry import context as contexts
from opentelemetry import propagate, trace
from opentelemetry.trace import Link, SpanKind, Status, StatusCode

from rabbitflow._version import __version__

Attributes = dict[str, str | int | bool]


def is_set_up() -> bool:
    """Whether this process has a tracer provider that somebody chose."""
    return not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)


def flush(within_s: float) -> None:
    """Send the spans that wait for their batch: a worker's processes end without exit handlers."""
    force_flush = getattr(trace.get_tracer_provider(), "force_flush", None)  # the API has none
    if force_flush is not None:
        force_flush(int(within_s * 1000))


class Bookmark:
    """A place in a trace, to come back to from another task."""

    def __init__(self) -> None:
        self._context = contexts.get_current()

    @contextmanager
    def resumed(self) -> Iterator[None]:
        """Make it the current one for a while."""
        token = contexts.attach(self._context)
        try:
            yield
        finally:
            contexts.detach(token)

    def link(self) -> Link:
        """Point to it."""
        return Link(trace.get_current_span(self._context).get_span_context())


class Spans:
    """Makes the spans of publishing and processing events.

    Args:
        provider: who gets them; the one of this process where it is not given.
    """

    def __init__(self, provider: trace.TracerProvider | None = None) -> None:
        self._tracer = trace.get_tracer("rabbitflow", __version__, provider)
        self._fields = propagate.get_global_textmap().fields

    @contextmanager
    def publishing(self, destination: str, attributes: Attributes) -> Iterator[dict[str, Any]]:
        """A span around one publish; yields the headers that carry it on."""
        with self._tracer.start_as_current_span(
            f"publish {destination}",
            kind=SpanKind.PRODUCER,
            attributes=_described("publish", "send", destination, attributes),
        ) as span:
            headers: dict[str, Any] = {}
            propagate.inject(headers)
            try:
                yield headers
            except Exception as error:
                span.set_attribute("error.type", type(error).__qualname__)
                raise

    @contextmanager
    def processing(
        self,
        destination: str,
        headers: Mapping[str, Any],
        attributes: Attributes,
        *,
        is_replay: bool,
    ) -> Iterator[None]:
        """A span around the handling of one delivery, in the trace of who announced the event.

        A replay may come months later, so it is a trace of its own that links to the first one.
        """
        # A foreign publisher may have put anything under these names.
        carrier = {
            name: value for name in self._fields if isinstance(value := headers.get(name), str)
        }
        parent = propagate.extract(carrier, contexts.Context())
        links = []
        if is_replay:
            announced = trace.get_current_span(parent).get_span_context()
            links = [Link(announced)] if announced.is_valid else []
            parent = contexts.Context()
        token = contexts.attach(parent)
        try:
            with self._tracer.start_as_current_span(
                f"process {destination}",
                kind=SpanKind.CONSUMER,
                links=links,
                attributes=_described("process", "process", destination, attributes),
            ):
                yield
        finally:
            contexts.detach(token)

    @contextmanager
    def batch(self, destination: str, members: Sequence[Bookmark]) -> Iterator[None]:
        """A span around one run of a batch handler, linked to those of its events."""
        with self._tracer.start_as_current_span(
            f"process batch {destination}",
            links=[member.link() for member in members],
            attributes=_described(
                "process", "process", destination, {"messaging.batch.message_count": len(members)}
            ),
        ):
            yield

    def bookmark(self) -> Bookmark:
        """Return the current place."""
        return Bookmark()

    def failed(self, error: Exception, outcome: str) -> None:
        """Note on the current span why its event failed, and what becomes of it."""
        span = trace.get_current_span()
        span.set_attribute("error.type", type(error).__qualname__)
        span.set_attribute("rabbitflow.outcome", outcome)
        span.record_exception(error)
        span.set_status(Status(StatusCode.ERROR))


def _described(name: str, kind: str, destination: str, attributes: Attributes) -> Attributes:
    return {
        "messaging.system": "rabbitmq",
        "messaging.operation.name": name,
        "messaging.operation.type": kind,
        "messaging.destination.name": destination,
        **attributes,
    }
