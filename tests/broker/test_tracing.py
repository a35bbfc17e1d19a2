"""One event is followed through every service, in one trace."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pika
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from rabbitflow import Consumer, Context, Event, Publisher, Retry
from rabbitflow.observe.spans import Spans
from rabbitflow.settings import Settings
from rabbitflow.topology import REPLAYS
from rabbitflow.worker.runtime import ConsumerRuntime
from tests.harness.broker import Probe
from tests.harness.spans import spans_in
from tests.harness.waiting import eventually
from tests.harness.workers import Worker


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    """Every publisher and consumer made in this test tells the exporter."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    for module in ("rabbitflow.publisher", "rabbitflow.worker.handling"):
        monkeypatch.setattr(f"{module}.tracing", lambda: Spans(provider))
    return exporter


@asynccontextmanager
async def running(*consumers: Consumer, settings: Settings) -> AsyncIterator[None]:
    """Run consumers in this process."""
    runtimes = [ConsumerRuntime(consumer, settings) for consumer in consumers]
    async with asyncio.TaskGroup() as group:
        for runtime in runtimes:
            group.create_task(runtime.run())
        try:
            await eventually(lambda: all(runtime.is_ready for runtime in runtimes))
            yield
        finally:
            for runtime in runtimes:
                runtime.stop()


def one(exporter: InMemorySpanExporter, name: str) -> ReadableSpan:
    """The only finished span of a name, without the namespace."""
    (found,) = every(exporter, name)
    return found


def every(exporter: InMemorySpanExporter, name: str) -> list[ReadableSpan]:
    return [span for span in exporter.get_finished_spans() if without_namespace(span) == name]


def without_namespace(span: ReadableSpan) -> str:
    operation, destination = span.name.rsplit(" ", 1)
    parts = [part.split(".", 1)[1] for part in destination.split(":")]
    return f"{operation} {':'.join(parts)}"


def names(exporter: InMemorySpanExporter) -> list[str]:
    return sorted(without_namespace(span) for span in exporter.get_finished_spans())


def ids(span: ReadableSpan) -> tuple[int, int]:
    assert span.context is not None
    return span.context.trace_id, span.context.span_id


def is_child(child: ReadableSpan, parent: ReadableSpan) -> bool:
    assert child.parent is not None
    return (child.parent.trace_id, child.parent.span_id) == ids(parent)


async def test_a_chain_of_events_is_one_trace(
    traced: InMemorySpanExporter, settings: Settings, publisher: Publisher
) -> None:
    payment, email = Consumer("payment"), Consumer("email")
    seen: list[int] = []

    @payment.on("ORDER_PLACED")
    def charge(event: Event, context: Context) -> None:  # type: ignore[type-arg]
        context.publish_sync("PAYMENT_COMPLETED", {"paid": event.data["number"]})

    @email.on("PAYMENT_COMPLETED")
    async def thank(event: Event) -> None:  # type: ignore[type-arg]
        seen.append(trace.get_current_span().get_span_context().span_id)

    async with running(payment, email, settings=settings):
        event = await publisher.publish("ORDER_PLACED", {"number": 1}, correlation_id="c-1")
        await eventually(lambda: "process events.PAYMENT_COMPLETED:email" in names(traced))
    announced = one(traced, "publish events.ORDER_PLACED")
    charged = one(traced, "process events.ORDER_PLACED:payment")
    paid = one(traced, "publish events.PAYMENT_COMPLETED")
    thanked = one(traced, "process events.PAYMENT_COMPLETED:email")
    assert announced.parent is None
    assert is_child(charged, announced)
    assert is_child(paid, charged)
    assert is_child(thanked, paid)
    assert {ids(span)[0] for span in (announced, charged, paid, thanked)} == {ids(announced)[0]}
    assert (announced.kind, charged.kind) == (trace.SpanKind.PRODUCER, trace.SpanKind.CONSUMER)
    assert seen == [ids(thanked)[1]], "a handler's own spans belong below ours"
    assert charged.attributes is not None
    exchange = f"{settings.namespace}.events.ORDER_PLACED"
    assert dict(charged.attributes) | {"messaging.rabbitmq.message.delivery_tag": 1} == {
        "messaging.system": "rabbitmq",
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.destination.name": f"{exchange}:{settings.namespace}.payment",
        "messaging.message.id": event.id,
        "messaging.message.conversation_id": "c-1",
        "messaging.message.body.size": len(event.encode()),
        "messaging.rabbitmq.message.delivery_tag": 1,
        "rabbitflow.consumer": "payment",
        "rabbitflow.attempt": 1,
    }
    assert announced.attributes is not None
    assert announced.attributes["messaging.operation.type"] == "send"


async def test_retries_dead_letters_and_replays_are_found_from_the_first_trace(
    traced: InMemorySpanExporter, settings: Settings, publisher: Publisher, probe: Probe
) -> None:
    payment = Consumer("payment", retry=Retry.fixed(attempts=2, wait=0.05))
    is_mended = False

    @payment.on("ORDER_PLACED")
    async def charge(event: Event) -> None:  # type: ignore[type-arg]
        if not is_mended:
            raise ConnectionError("the bank is down")

    async with running(payment, settings=settings):
        await publisher.publish("ORDER_PLACED", {"number": 1})
        dead = probe.names.dead("payment")
        await eventually(lambda: probe.depth(dead) == 1)
        attempts = "process events.ORDER_PLACED:payment"
        # A span ends when its dead letter is confirmed, which may be seen before.
        await eventually(lambda: len(every(traced, attempts)) == 2)
        announced = one(traced, "publish events.ORDER_PLACED")
        first, second = every(traced, attempts)
        assert is_child(first, announced)
        assert is_child(second, announced)
        for span, attempt, outcome in ((first, 1, "retried"), (second, 2, "dead_lettered")):
            assert span.attributes is not None
            assert span.attributes["rabbitflow.attempt"] == attempt
            assert span.attributes["rabbitflow.outcome"] == outcome
            assert span.attributes["error.type"] == "ConnectionError"
            assert span.status.status_code is trace.StatusCode.ERROR
        traced.clear()
        is_mended = True
        message = probe.take(dead)
        assert message is not None
        headers, properties, body = message
        kept = {name: headers[name] for name in headers if not name.startswith("x-")}
        properties.headers = {**kept, REPLAYS: 1}
        probe.publish("", probe.names.queue("payment"), body, properties)
        await eventually(lambda: len(names(traced)) == 1)
    (replayed,) = traced.get_finished_spans()
    assert replayed.parent is None, "a replay may come months later"
    assert [(link.context.trace_id, link.context.span_id) for link in replayed.links] == [
        ids(announced)
    ]


async def test_an_event_that_is_none_has_a_span_that_says_so(
    traced: InMemorySpanExporter, settings: Settings, probe: Probe
) -> None:
    payment = Consumer("payment")

    @payment.on("ORDER_PLACED")
    async def charge(event: Event) -> None:  # type: ignore[type-arg]
        """Reacts to nothing."""

    odd = pika.BasicProperties(headers={"traceparent": 7, "tracestate": b"\xff", "baggage": None})
    async with running(payment, settings=settings):
        probe.publish(probe.names.exchange("ORDER_PLACED"), "", b"not JSON", odd)
        await eventually(lambda: len(names(traced)) == 1)
    (span,) = traced.get_finished_spans()
    assert span.parent is None
    assert span.attributes is not None
    assert span.attributes["error.type"] == "EventError"
    assert span.attributes["rabbitflow.outcome"] == "dead_lettered"


async def test_what_a_batch_announces_belongs_to_the_trace_of_each_event(
    traced: InMemorySpanExporter, settings: Settings, publisher: Publisher
) -> None:
    payment = Consumer("payment", concurrency=1)

    @payment.on_batch("ORDER_PLACED", size=2, within=5)
    async def charge(events: list[Event], contexts: list[Context]) -> None:  # type: ignore[type-arg]
        for event, context in zip(events, contexts, strict=True):
            await context.publish("PAYMENT_COMPLETED", event.data)

    async with running(payment, settings=settings):
        await publisher.publish("ORDER_PLACED", {"number": 1})
        await publisher.publish("ORDER_PLACED", {"number": 2})
        await eventually(lambda: len(names(traced)) == 7)
    orders = every(traced, "publish events.ORDER_PLACED")
    processed = every(traced, "process events.ORDER_PLACED:payment")
    paid = every(traced, "publish events.PAYMENT_COMPLETED")
    batch = one(traced, "process batch payment")
    assert {ids(span)[0] for span in paid} == {ids(span)[0] for span in orders}
    assert all(any(is_child(done, span) for span in processed) for done in paid)
    linked = {(link.context.trace_id, link.context.span_id) for link in batch.links}
    assert linked == {ids(span) for span in processed}


async def test_the_trace_goes_across_processes_and_its_last_spans_are_sent(
    worker: Worker, settings: Settings, tmp_path: Path
) -> None:
    file = tmp_path / "spans"
    worker.module(
        "payment",
        """
        from tests.harness import spans
        spans.set_up()
        payment = Consumer("payment")
        @payment.on("ORDER_PLACED")
        async def charge(event: Event, context: Context) -> None:
            await context.publish("PAYMENT_COMPLETED", event.data)
        """,
    )
    worker.module(
        "email",
        """
        from tests.harness import spans
        spans.set_up()
        email = Consumer("email")
        @email.on("PAYMENT_COMPLETED")
        def thank(event: Event) -> None:
            ledger.write("email", event.id)
        """,
    )
    worker.start(TEST_SPANS=str(file))
    await worker.ready("payment", "email")
    producer = (
        "from tests.harness import spans; spans.set_up()\n"
        "from rabbitflow import SyncPublisher\n"
        "SyncPublisher().publish('ORDER_PLACED', {'number': 1})\n"
    )
    environment = worker.environment(TEST_SPANS=str(file))
    subprocess.run([sys.executable, "-c", producer], env=environment, check=True, timeout=30)
    await eventually(lambda: len(worker.ledger.ids("email")) == 1)
    worker.signal()
    assert worker.exit_code() == 0
    spans = spans_in(file)
    assert len({span["context"]["trace_id"] for span in spans}) == 1
    parents = {span["context"]["span_id"]: span["name"] for span in spans}
    prefix = settings.namespace
    assert {(parents.get(span["parent_id"]), span["name"]) for span in spans} == {
        (None, f"publish {prefix}.events.ORDER_PLACED"),
        (
            f"publish {prefix}.events.ORDER_PLACED",
            f"process {prefix}.events.ORDER_PLACED:{prefix}.payment",
        ),
        (
            f"process {prefix}.events.ORDER_PLACED:{prefix}.payment",
            f"publish {prefix}.events.PAYMENT_COMPLETED",
        ),
        (
            f"publish {prefix}.events.PAYMENT_COMPLETED",
            f"process {prefix}.events.PAYMENT_COMPLETED:{prefix}.email",
        ),
    }
