"""The test kit as a user's own tests see it: no RabbitMQ, no sleep, and five minutes in no time."""

from __future__ import annotations

import asyncio
import time
from datetime import timedelta
from typing import Any

import pytest
from pydantic import BaseModel

from rabbitflow import Breaker, ConfigurationError, Consumer, Context, DeadLetter, Event, Retry
from rabbitflow.testing import Flow, NotSettled


class Order(BaseModel):
    number: int


class Handled:
    """A consumer that fails as often as told, and notes each attempt."""

    def __init__(self, name: str = "payment", *, fails: int = 0, **options: Any) -> None:
        self.consumer = Consumer(name, **options)
        self.attempts: list[int] = []
        self.fails = fails

        @self.consumer.on("ORDER_PLACED")
        async def charge(event: Event[Order], context: Context) -> None:
            self.attempts.append(context.attempt)
            if len(self.attempts) <= self.fails:
                raise ConnectionError("the bank is away")
            await context.publish("PAYMENT_COMPLETED", {"number": event.data.number})


async def test_an_event_reaches_every_consumer_and_what_they_announce_is_seen() -> None:
    payment, rating = Handled("payment"), Handled("rating")
    async with Flow(payment.consumer, rating.consumer) as flow:
        event = await flow.publish("ORDER_PLACED", {"number": 1})
        await flow.settled()
        assert [handled.id for handled in flow.handled("payment")] == [event.id]
        assert [handled.id for handled in flow.handled("rating")] == [event.id]
        assert [paid.causation_id for paid in flow.published("PAYMENT_COMPLETED")] == [event.id] * 2


async def test_a_retry_in_five_minutes_comes_when_five_minutes_have_passed() -> None:
    payment = Handled(fails=1, retry=Retry.fixed(attempts=3, wait="5m"))
    async with Flow(payment.consumer) as flow:
        await flow.publish("ORDER_PLACED", {"number": 1})
        await flow.advance("4m59s")
        assert payment.attempts == [1]
        assert flow.waiting_for_retry("payment") == 1
        await flow.advance("1s")
        assert payment.attempts == [1, 2]
        assert len(flow.handled("payment")) == 1


async def test_minutes_of_retries_a_dead_letter_and_its_replay_take_less_than_a_second() -> None:
    began = time.perf_counter()
    payment = Handled(fails=4, retry=Retry.schedule("1m", "10m", "1h"))
    async with Flow(payment.consumer) as flow:
        event = await flow.publish("ORDER_PLACED", {"number": 1})
        await flow.settled()
        (letter,) = flow.dead_letters("payment")
        assert (letter.id, letter.reason, letter.attempt) == (event.id, "retries-exhausted", 4)
        assert letter.exception_message == "the bank is away"
        assert letter.failed_at is not None
        assert letter.first_failed_at is not None
        assert letter.failed_at - letter.first_failed_at == timedelta(hours=1, minutes=11)
        assert await flow.replay("payment") == 1
        await flow.settled()
        assert payment.attempts == [1, 2, 3, 4, 1]
        assert [handled.id for handled in flow.handled("payment")] == [event.id]
        assert flow.dead_letters("payment") == []
    took_s = time.perf_counter() - began
    assert took_s < 10, f"it moves no real time: {took_s:.2f} s"


async def test_a_maximum_age_goes_by_the_time_of_the_test() -> None:
    payment = Handled(fails=99, retry=Retry.fixed(attempts=50, wait="10m", max_age="25m"))
    async with Flow(payment.consumer) as flow:
        await flow.publish("ORDER_PLACED", {"number": 1})
        await flow.settled()
        assert payment.attempts == [1, 2, 3, 4]
        assert flow.dead_letters("payment")[0].reason == "retries-exhausted"


async def test_a_breaker_probes_when_its_time_has_come() -> None:
    breaker = Breaker(failure_rate=1.0, window=2, probe_after="10m", cap="1h")
    payment = Handled(
        fails=2, breaker=breaker, retry=Retry.fixed(attempts=2, wait="1h"), concurrency=1
    )
    async with Flow(payment.consumer) as flow:
        for number in range(4):
            await flow.publish("ORDER_PLACED", {"number": number})
        await flow.advance("9m")
        assert payment.attempts == [1, 1], "open: the others keep their attempts"
        await flow.advance("1m1s")
        assert payment.attempts == [1, 1, 1, 1], "the probe succeeded, and closed it"
        await flow.settled()
        assert len(flow.handled("payment")) == 4


async def test_a_rate_limit_goes_by_the_time_of_the_test() -> None:
    payment = Handled(rate_limit="1/m")
    async with Flow(payment.consumer) as flow:
        for number in range(3):
            await flow.publish("ORDER_PLACED", {"number": number})
        await flow.idle()
        assert len(flow.handled("payment")) == 1
        await flow.advance("1m")
        assert len(flow.handled("payment")) == 2
        await flow.settled()
        assert len(flow.handled("payment")) == 3


async def test_a_rejected_and_an_invalid_event_are_dead_letters_at_once() -> None:
    consumer = Consumer("rating")

    @consumer.on("ORDER_PLACED")
    def prompt(order: Order) -> None:
        raise DeadLetter("not this one")

    async with Flow(consumer) as flow:
        await flow.publish("ORDER_PLACED", {"number": 1})
        await flow.publish("ORDER_PLACED", {"number": "many"})
        await flow.settled()
        assert [letter.reason for letter in flow.dead_letters("rating")] == ["rejected", "invalid"]
        assert flow.handled("rating") == []


async def test_a_duplicate_is_delivered_twice_with_one_id() -> None:
    payment = Handled()
    async with Flow(payment.consumer) as flow:
        flow.duplicate_next("payment")
        event = await flow.publish("ORDER_PLACED", {"number": 1})
        await flow.settled()
        assert [handled.id for handled in flow.handled("payment")] == [event.id] * 2
        follow_ups = flow.published("PAYMENT_COMPLETED")
        assert len({follow_up.id for follow_up in follow_ups}) == 1


async def test_a_broker_that_restarts_and_connections_that_are_dropped_lose_nothing() -> None:
    payment = Handled(fails=1, retry=Retry.fixed(attempts=3, wait="5m"))
    async with Flow(payment.consumer) as flow:
        await flow.publish("ORDER_PLACED", {"number": 1})
        await flow.idle()
        await flow.restart_broker()
        await flow.drop_connections()
        await flow.settled()
        assert payment.attempts == [1, 2]


async def test_an_event_is_not_done_before_its_follow_up_is_confirmed() -> None:
    payment = Handled()
    async with Flow(payment.consumer, within_s=0.3) as flow:
        flow.hold_confirms()
        announcing = asyncio.create_task(flow.publish("ORDER_PLACED", {"number": 2}))
        with pytest.raises(NotSettled, match="1 in hand"):
            await flow.broker.until(lambda: flow.broker.counters.delivered > 0)
            await flow.settled()
        assert flow.handled("payment") == []
        flow.release_confirms()
        await announcing
        await flow.settled()
        assert len(flow.handled("payment")) == 1


async def test_what_would_wait_for_ever_is_said() -> None:
    consumer = Consumer("payment")

    @consumer.on("ORDER_PLACED")
    async def hang(order: Order) -> None:
        await asyncio.Event().wait()

    async with Flow(consumer, within_s=0.2) as flow:
        await flow.publish("ORDER_PLACED", {"number": 1})
        with pytest.raises(NotSettled, match="payment has 0 events before it and 1 in hand"):
            await flow.settled()


async def test_two_consumers_of_one_name_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="two consumers have one name"):
        Flow(Handled().consumer, Handled().consumer)


async def test_a_handler_that_cannot_be_called_is_the_tests_error() -> None:
    consumer = Consumer("payment")

    @consumer.on("ORDER_PLACED")
    def charge(order) -> None:  # type: ignore[no-untyped-def]
        ...

    with pytest.raises(ConfigurationError, match="has no annotation"):
        async with Flow(consumer):
            pass


async def test_the_environment_of_whoever_runs_the_test_does_not_matter(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RABBITFLOW_NAMESPACE", "shop")
    monkeypatch.setenv("RABBITFLOW_EVENT_LOG", "false")
    payment = Handled()
    async with Flow(payment.consumer) as flow:
        await flow.publish("ORDER_PLACED", {"number": 1})
        await flow.settled()
        assert flow.settings.namespace is None
        assert len(flow.published("ORDER_PLACED")) == 1


async def test_an_ordered_consumer_retries_while_later_events_of_its_key_wait() -> None:
    ledger = Consumer(
        "ledger", partitions=4, ordered_by="orderId", retry=Retry.fixed(attempts=2, wait="5m")
    )

    @ledger.on("ORDER_PLACED")
    async def note(event: Event[dict[str, Any]], context: Context) -> None:
        if event.data == {"orderId": "a", "number": 1} and context.attempt == 1:
            raise ValueError("not yet")

    async with Flow(ledger) as flow:
        for number in (1, 2):
            for key in ("a", "b"):
                await flow.publish("ORDER_PLACED", {"orderId": key, "number": number})
        await flow.publish("ORDER_PLACED", {"number": 3})
        await flow.idle()
        handled = [tuple(event.data.values()) for event in flow.handled("ledger")]
        assert handled == [("b", 1), ("b", 2)]
        assert flow.waiting_for_retry("ledger") == 1
        assert [letter.reason for letter in flow.dead_letters("ledger")] == ["invalid"]
        await flow.advance("5m")
        handled = [tuple(event.data.values()) for event in flow.handled("ledger")]
        assert handled == [("b", 1), ("b", 2), ("a", 1), ("a", 2)]
        await flow.settled()


async def test_an_ordered_consumer_goes_on_after_its_broker_restarted() -> None:
    ledger = Consumer("ledger", partitions=2)

    @ledger.on("ORDER_PLACED")
    async def note(event: Event[dict[str, Any]]) -> None: ...

    async with Flow(ledger) as flow:
        await flow.publish("ORDER_PLACED", {"number": 1}, key="a")
        await flow.restart_broker()
        await flow.publish("ORDER_PLACED", {"number": 2}, key="a")
        await flow.settled()
        assert [event.data["number"] for event in flow.handled("ledger")][-1] == 2
