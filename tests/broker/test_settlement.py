"""Each outcome of a delivery, and that it is acked only after its copy is safe."""

from __future__ import annotations

import asyncio
import json
import logging
import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import pairwise
from typing import Any
from urllib.parse import urlsplit

import pika
import pytest
from pydantic import BaseModel
from tenacity import stop_after_delay, wait_fixed

from rabbitflow import Consumer, Context, DeadLetter, Event, Publisher, Retry, RetryLater
from rabbitflow.settings import Settings, load_settings
from rabbitflow.topology import (
    ATTEMPT,
    CONSUMER,
    DEATH,
    EVENT_TYPE,
    EXCEPTION_MESSAGE,
    EXCEPTION_TYPE,
    EXCHANGE,
    FAILED_AT,
    FIRST_FAILED_AT,
    HOST,
    REASON,
    TRACEBACK,
    VERSION,
)
from rabbitflow.worker.runtime import ConsumerRuntime
from tests.harness.broker import Message, Probe
from tests.harness.proxy import Proxy
from tests.harness.waiting import eventually


class Order(BaseModel):
    number: int


@asynccontextmanager
async def running(consumer: Consumer, settings: Settings) -> AsyncIterator[ConsumerRuntime]:
    """Run a consumer in this process."""
    runtime = ConsumerRuntime(consumer, settings)
    task = asyncio.create_task(runtime.run())
    try:
        await eventually(lambda: runtime.is_ready or task.done())
        if task.done():
            task.result()
        yield runtime
    finally:
        runtime.stop_now()
        await task


def payment(
    behave: Callable[[Event[Any], Context], Any], **settings: Any
) -> tuple[Consumer, list[tuple[str, int, float]]]:
    """A consumer whose handler notes each attempt, then behaves as told."""
    attempts: list[tuple[str, int, float]] = []
    consumer = Consumer("payment", **settings)

    @consumer.on("ORDER_PLACED")
    async def charge(event: Event[Order], context: Context) -> None:
        attempts.append((event.id, context.attempt, time.monotonic()))
        result = behave(event, context)
        if asyncio.iscoroutine(result):
            await result

    return consumer, attempts


def fail(event: Event[Any], context: Context) -> None:
    raise ValueError(f"no good at attempt {context.attempt}")


async def dead_letter(probe: Probe) -> Message:
    queue = probe.names.dead("payment")
    await eventually(lambda: probe.depth(queue) > 0)
    message = probe.take(queue)
    assert message is not None
    return message


async def test_a_failing_event_is_retried_and_then_dead_lettered_with_its_cause(
    settings: Settings, publisher: Publisher, probe: Probe
) -> None:
    consumer, attempts = payment(fail, retry=Retry.fixed(attempts=3, wait="0.2s"))
    async with running(consumer, settings):
        event = await publisher.publish("ORDER_PLACED", {"number": 1}, correlation_id="c-1")
        headers, properties, body = await dead_letter(probe)
    assert [attempt for _, attempt, _ in attempts] == [1, 2, 3]
    assert body == event.encode()
    assert properties.message_id == event.id
    assert properties.correlation_id == "c-1"
    assert properties.type == "ORDER_PLACED"
    assert headers[REASON] == "retries-exhausted"
    assert headers[EXCEPTION_TYPE] == "ValueError"
    assert headers[EXCEPTION_MESSAGE] == "no good at attempt 3"
    assert "in fail" in headers[TRACEBACK]
    assert headers[ATTEMPT] == 3
    assert headers[CONSUMER] == "payment"
    assert headers[EVENT_TYPE] == "ORDER_PLACED"
    assert headers[EXCHANGE] == probe.names.exchange("ORDER_PLACED")
    assert headers[FIRST_FAILED_AT] < headers[FAILED_AT]
    assert headers[HOST]
    assert headers[VERSION]
    assert DEATH not in headers


@pytest.mark.parametrize(
    ("raised", "reason", "message"),
    [
        (DeadLetter("no such user"), "rejected", "no such user"),
        (KeyError("declined"), "rejected", "'declined'"),
        (SystemExit(3), "retries-exhausted", "the handler called sys.exit(3)"),
        (asyncio.CancelledError(), "retries-exhausted", "the handler ended itself"),
    ],
)
async def test_what_no_retry_mends_is_dead_lettered_with_its_reason(
    settings: Settings,
    publisher: Publisher,
    probe: Probe,
    raised: BaseException,
    reason: str,
    message: str,
) -> None:
    def refuse(event: Event[Any], context: Context) -> None:
        raise raised

    consumer, attempts = payment(refuse, retry=Retry.fixed(attempts=1, never=(KeyError,)))
    async with running(consumer, settings):
        await publisher.publish("ORDER_PLACED", {"number": 1})
        headers, _, _ = await dead_letter(probe)
    assert len(attempts) == 1
    assert headers[REASON] == reason
    assert headers[EXCEPTION_MESSAGE].startswith(message)


GOOD = {"type": "ORDER_PLACED", "timestamp": "2026-04-03T10:30:00Z", "data": {"number": 1}}


@pytest.mark.parametrize(
    ("body", "properties", "reason", "message"),
    [
        (b"{", {}, "invalid", "Invalid JSON"),
        (b"", {}, "invalid", "Invalid JSON"),
        (b"\xff\xfe\x00", {}, "invalid", "Invalid JSON"),
        (b"[" * 100_000, {}, "invalid", "nested deeper than 200 levels"),
        (json.dumps({**GOOD, "data": {"number": "many"}}).encode(), {}, "invalid", "data.number"),
        (json.dumps(GOOD).encode().replace(b"1}", b"NaN}"), {}, "invalid", "NaN"),
        (json.dumps(GOOD).encode().replace(b"00Z", b"00"), {}, "invalid", "timezone"),
        (json.dumps({**GOOD, "type": "OTHER"}).encode(), {}, "no-handler", "no handler for OTHER"),
        (json.dumps(GOOD).encode(), {"content_type": "text/xml"}, "invalid", "content type"),
        (json.dumps(GOOD).encode(), {"content_encoding": "gzip"}, "invalid", "content encoding"),
        (json.dumps({**GOOD, "x": "x" * 1_048_576}).encode(), {}, "invalid", "the limit is"),
    ],
)
async def test_what_is_no_event_is_dead_lettered_at_once_byte_for_byte(
    settings: Settings,
    probe: Probe,
    body: bytes,
    properties: dict[str, str],
    reason: str,
    message: str,
) -> None:
    consumer, attempts = payment(lambda event, context: None)
    async with running(consumer, settings) as runtime:
        exchange = probe.names.exchange("ORDER_PLACED")
        probe.publish(exchange, "", body, pika.BasicProperties(**properties))
        headers, _, kept = await dead_letter(probe)
        assert kept == body
        assert headers[REASON] == reason
        assert message in headers[EXCEPTION_MESSAGE]
        probe.publish(exchange, "", json.dumps(GOOD).encode())
        await eventually(lambda: len(attempts) == 1, what="the worker lives on")
        assert runtime.is_ready


async def test_a_type_that_is_none_is_no_harm(settings: Settings, probe: Probe) -> None:
    consumer, _ = payment(lambda event, context: None)
    async with running(consumer, settings) as runtime:
        body = json.dumps({**GOOD, "type": "T" * 300}).encode()
        headers = {EVENT_TYPE: {"anybody": "may write this"}}
        properties = pika.BasicProperties(headers=headers)
        probe.publish("", probe.names.queue("payment"), body, properties)
        _, _, kept = await dead_letter(probe)
        assert kept == body
        assert runtime.is_ready


async def test_causes_and_foreign_headers_are_bounded(settings: Settings, probe: Probe) -> None:
    def shout(event: Event[Any], context: Context) -> None:
        raise ValueError("é" * 1_000_000)

    consumer, _ = payment(shout, retry=Retry.fixed(attempts=2, wait="10ms"))
    async with running(consumer, settings):
        headers = {"small": "kept", "huge": "x" * 120_000, "CC": ["nowhere"]}
        probe.publish(
            probe.names.exchange("ORDER_PLACED"),
            "",
            json.dumps(GOOD).encode(),
            pika.BasicProperties(headers=headers, user_id="guest"),
        )
        kept, properties, _ = await dead_letter(probe)
    assert kept["small"] == "kept"
    assert "huge" not in kept
    assert "CC" not in kept
    assert properties.user_id is None
    assert len(kept[EXCEPTION_MESSAGE].encode()) <= 1024
    assert len(kept[TRACEBACK].encode()) <= 16_384
    assert "in shout" in kept[TRACEBACK]


class NoText(str):
    """What other clients may send as text: bytes that are no UTF-8."""

    def encode(self, *_: Any) -> bytes:
        return b"\xff\xfe"


async def test_headers_of_any_kind_go_on_with_the_copies(settings: Settings, probe: Probe) -> None:
    consumer, attempts = payment(fail, retry=Retry.fixed(attempts=2, wait="10ms"))
    async with running(consumer, settings):
        nested = {"list": [1, -1, 2**40, True, None, {"deep": "é"}]}
        headers = {"text": NoText(), "inner": [NoText()], "bytes": b"\xff", "nested": nested}
        properties = pika.BasicProperties(headers={**headers, ATTEMPT: "one", FIRST_FAILED_AT: 7})
        queue = probe.names.queue("payment")
        probe.publish("", queue, json.dumps(GOOD).encode(), properties)
        kept, _, _ = await dead_letter(probe)
    assert kept["nested"] == nested
    assert (kept["text"], kept["inner"], kept["bytes"]) == (b"\xff\xfe", [b"\xff\xfe"], b"\xff")
    assert kept[ATTEMPT] == len(attempts) == 2


async def test_a_handler_that_runs_too_long_is_cancelled_and_retried(
    settings: Settings, publisher: Publisher, probe: Probe
) -> None:
    consumer, attempts = payment(
        lambda event, context: asyncio.sleep(60),
        timeout="100ms",
        retry=Retry.fixed(attempts=2, wait="10ms"),
    )
    async with running(consumer, settings):
        await publisher.publish("ORDER_PLACED", {"number": 1})
        headers, _, _ = await dead_letter(probe)
    assert len(attempts) == 2
    assert headers[REASON] == "timeout"
    assert headers[EXCEPTION_MESSAGE] == "the handler ran longer than its time-out of 0.1 s"


async def test_a_hung_thread_has_its_process_replaced_after_its_siblings_finished(
    settings: Settings, publisher: Publisher, probe: Probe
) -> None:
    released, finished = asyncio.Event(), []
    consumer = Consumer("payment", concurrency=2, retry=Retry.fixed(attempts=5, wait="1s"))

    @consumer.on("ORDER_PLACED", timeout="100ms")
    def hang(event: Event[Order]) -> None:
        time.sleep(1.5)

    @consumer.on("RIDE_COMPLETED")
    async def sibling(event: Event[Order]) -> None:
        await released.wait()
        finished.append(event.id)

    runtime = ConsumerRuntime(consumer, settings)
    task = asyncio.create_task(runtime.run())
    await eventually(lambda: runtime.is_ready)
    ride = await publisher.publish("RIDE_COMPLETED", {"number": 1})
    await publisher.publish("ORDER_PLACED", {"number": 1})
    await eventually(lambda: runtime.needs_replacement)
    assert not task.done()
    released.set()
    await task
    assert finished == [ride.id]
    assert probe.depth(probe.names.retry("payment", 1)) == 1
    assert probe.depth(probe.names.queue("payment")) == 0


async def test_follow_ups_are_confirmed_before_the_event_is_acked(
    settings: Settings, publisher: Publisher, probe: Probe
) -> None:
    probe.declare_exchange("PAYMENT_COMPLETED")
    tap = probe.tap("PAYMENT_COMPLETED")
    released = asyncio.Event()

    async def announce(event: Event[Any], context: Context) -> None:
        await context.publish("PAYMENT_COMPLETED", {"paid": True})
        await released.wait()

    consumer, attempts = payment(announce)
    async with running(consumer, settings):
        event = await publisher.publish("ORDER_PLACED", {"number": 1})
        await eventually(lambda: probe.depth(tap) == 1)
    # Stopped at once: the event was not acked, and is handled again.
    assert probe.depth(probe.names.queue("payment")) == 1
    released.set()
    async with running(consumer, settings):
        await eventually(lambda: probe.depth(tap) == 2)
    first, second = probe.take(tap), probe.take(tap)
    assert first is not None
    assert second is not None
    assert json.loads(first[2])["causation_id"] == event.id
    assert first[1].message_id == second[1].message_id, "one follow-up, announced twice"
    assert len(attempts) == 2


@pytest.fixture
async def cut_off(settings: Settings) -> AsyncIterator[tuple[Settings, Proxy]]:
    """Settings whose broker can be made to fall silent."""
    broker = urlsplit(settings.broker_url)
    async with Proxy(broker.hostname or "localhost", broker.port or 5672) as proxy:
        url = load_settings(url=proxy.url).url
        yield settings.model_copy(update={"url": url, "publish_timeout_s": 0.3}), proxy


# A retry that is so late that only the broker can bring the event again while the test lasts.
@pytest.mark.parametrize("retry", [Retry.fixed(attempts=3, wait="60s"), Retry.none()])
async def test_without_a_confirmed_copy_an_event_is_not_acked(
    cut_off: tuple[Settings, Proxy],
    publisher: Publisher,
    probe: Probe,
    retry: Retry,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("rabbitflow.worker.handling._UNSETTLED_PAUSE_S", 0.1)
    settings, proxy = cut_off

    def fall_silent(event: Event[Any], context: Context) -> None:
        proxy.swallows_answers = len(attempts) == 1
        raise ValueError("no good")

    consumer, attempts = payment(fall_silent, retry=retry)
    async with running(consumer, settings) as runtime:
        event = await publisher.publish("ORDER_PLACED", {"number": 1})
        # The first copy was given up with its connection; an ack of its event would have gone out.
        await eventually(lambda: not runtime.beat().connected["publish"])
        assert event.encode() in proxy.asked
        await eventually(lambda: runtime.handling.is_stuck)
        assert not runtime.is_ready
        proxy.swallows_answers = False
        proxy.cut()
        await eventually(lambda: len(attempts) >= 2, what="it is delivered again")


async def test_a_retry_queue_that_was_deleted_is_declared_again(
    settings: Settings, publisher: Publisher, probe: Probe
) -> None:
    def fail_once(event: Event[Any], context: Context) -> None:
        if context.attempt == 1:
            raise ValueError("once")

    consumer, attempts = payment(fail_once, retry=Retry.fixed(attempts=3, wait="1s"))
    async with running(consumer, settings):
        probe.delete_queue(probe.names.retry("payment", 1))
        await publisher.publish("ORDER_PLACED", {"number": 1})
        await eventually(lambda: len(attempts) == 2)


async def test_a_delay_that_was_not_foreseen_gets_its_queue_once_for_all_who_need_it(
    settings: Settings, publisher: Publisher, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "rabbitflow.worker.provision")

    def ask(event: Event[Any], context: Context) -> None:
        if context.attempt == 1:
            raise RetryLater(2.5)

    consumer, attempts = payment(ask, retry=Retry.fixed(attempts=2, wait="1s"))
    async with running(consumer, settings):
        await publisher.publish_many(
            Event(type="ORDER_PLACED", data={"number": number}) for number in range(8)
        )
        await eventually(lambda: len(attempts) == 16, within_s=20)
    assert caplog.messages == ["payment needs a queue for retries of 2 s"]


async def test_a_queue_deleted_under_the_consumer_is_declared_again(
    settings: Settings, publisher: Publisher, probe: Probe
) -> None:
    consumer, attempts = payment(lambda event, context: None)
    async with running(consumer, settings):
        queue = probe.names.queue("payment")
        probe.delete_queue(queue)
        await eventually(lambda: probe.consumers(queue) == 1)
        await publisher.publish("ORDER_PLACED", {"number": 1})
        await eventually(lambda: len(attempts) == 1)


async def test_connections_that_are_cut_lose_nothing(
    cut_off: tuple[Settings, Proxy], publisher: Publisher, probe: Probe
) -> None:
    settings, proxy = cut_off
    consumer, attempts = payment(lambda event, context: asyncio.sleep(0.001))
    async with running(consumer, settings) as runtime:
        for _ in range(3):
            await publisher.publish_many(
                Event(type="ORDER_PLACED", data={"number": number}) for number in range(200)
            )
            proxy.cut()
            await eventually(lambda: runtime.is_ready)
        await eventually(lambda: len({event_id for event_id, _, _ in attempts}) == 600)
        await eventually(lambda: runtime.in_flight == 0)
    assert probe.depth(probe.names.queue("payment")) == 0


async def test_alike_delays_are_exact(
    settings: Settings, publisher: Publisher, probe: Probe
) -> None:
    consumer, attempts = payment(fail, retry=Retry.fixed(attempts=2, wait="1s"))
    async with running(consumer, settings):
        await publisher.publish_many(
            Event(type="ORDER_PLACED", data={"number": number}) for number in range(50)
        )
        await eventually(lambda: len(attempts) == 100)
    began = {event_id: at for event_id, attempt, at in attempts if attempt == 1}
    waits = [at - began[event_id] for event_id, attempt, at in attempts if attempt == 2]
    assert min(waits) >= 0.999
    assert max(waits) <= 1.25


async def test_mixed_delays_are_late_by_less_than_their_own_length(
    settings: Settings, publisher: Publisher, probe: Probe
) -> None:
    dice = random.Random(20260403)
    asked: dict[str, float] = {}

    def ask(event: Event[Any], context: Context) -> None:
        if context.attempt == 1:
            asked[event.id] = dice.uniform(0.3, 3.9)
            raise RetryLater(asked[event.id])

    # Whose queues are there from the start: to declare one takes its time.
    consumer, attempts = payment(ask, retry=Retry.schedule("1s", "2s"))
    async with running(consumer, settings):
        await publisher.publish_many(
            Event(type="ORDER_PLACED", data={"number": number}) for number in range(60)
        )
        await eventually(lambda: len(attempts) == 120, within_s=20)
    began = {event_id: at for event_id, attempt, at in attempts if attempt == 1}
    for event_id, attempt, at in attempts:
        if attempt == 2:
            late = at - began[event_id] - asked[event_id]
            # The first bucket also takes what is shorter than it.
            assert -0.002 <= late <= max(asked[event_id], 2.0) + 0.25


async def test_a_consumer_that_only_fails_slows_down_and_goes_on_once_something_succeeds(
    settings: Settings, publisher: Publisher, probe: Probe
) -> None:
    is_down = True
    charged: set[str] = set()

    def charge(event: Event[Any], context: Context) -> None:
        if is_down:
            raise ConnectionError("the bank is down")
        charged.add(event.id)

    consumer, attempts = payment(charge)
    async with running(consumer, settings) as runtime:
        await publisher.publish_many(
            Event(type="ORDER_PLACED", data={"number": number}) for number in range(400)
        )
        await eventually(lambda: runtime.beat().is_breaker_open)
        before = len(attempts)
        assert 100 <= before <= 100 + consumer.concurrency
        await eventually(lambda: len(attempts) >= before + 10)
        probed = [at for _, _, at in attempts[-5:]]
        assert min(after - at for at, after in pairwise(probed)) >= 0.1
        assert runtime.is_ready
        is_down = False
        await eventually(lambda: len(charged) == 400, within_s=20)
        assert not runtime.beat().is_breaker_open
    assert probe.depth(probe.names.dead("payment")) == 0


async def test_a_delay_counts_from_the_first_failure_across_restarts(
    settings: Settings, publisher: Publisher, probe: Probe
) -> None:
    policy = Retry(stop=stop_after_delay(2.5), wait=wait_fixed(1))
    consumer, attempts = payment(fail, retry=policy)
    async with running(consumer, settings):
        await publisher.publish("ORDER_PLACED", {"number": 1})
        await eventually(lambda: len(attempts) == 1)
        await eventually(lambda: probe.depth(probe.names.retry("payment", 1)) == 1)
    async with running(consumer, settings):
        headers, _, _ = await dead_letter(probe)
    assert headers[ATTEMPT] in (3, 4)
    assert [attempt for _, attempt, _ in attempts] == list(range(1, headers[ATTEMPT] + 1))


async def test_immediate_retries_run_at_once_and_spend_no_attempt(
    settings: Settings, publisher: Publisher, probe: Probe
) -> None:
    runs: list[int] = []

    def fail_twice(event: Event[Any], context: Context) -> None:
        runs.append(context.attempt)
        if len(runs) < 3:
            raise ValueError("soon")

    consumer, _ = payment(fail_twice, retry=Retry.fixed(attempts=1, immediate=2))
    async with running(consumer, settings) as runtime:
        await publisher.publish("ORDER_PLACED", {"number": 1})
        await eventually(lambda: runs == [1, 1, 1])
        await eventually(lambda: runtime.in_flight == 0)
    assert probe.depth(probe.names.dead("payment")) == 0


async def test_a_handlers_policy_wins_over_its_consumers(
    settings: Settings, publisher: Publisher, probe: Probe
) -> None:
    consumer = Consumer("payment", retry=Retry.fixed(attempts=9, wait="60s"))

    @consumer.on("ORDER_PLACED", retry=Retry.none())
    async def charge(event: Event[Order]) -> None:
        raise ValueError("once")

    async with running(consumer, settings):
        await publisher.publish("ORDER_PLACED", {"number": 1})
        headers, _, _ = await dead_letter(probe)
    assert headers[ATTEMPT] == 1
