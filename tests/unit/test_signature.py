"""A handler receives what its annotations ask for; one that can't is an error at start."""

from __future__ import annotations

import asyncio
import functools
from dataclasses import dataclass
from typing import Any

import pytest
from pydantic import BaseModel
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session
from typing_extensions import TypedDict

from rabbitflow import ConfigurationError, Consumer, Context, Event
from rabbitflow.signature import resolve


class Order(BaseModel):
    amount: int


@dataclass
class PlainOrder:
    amount: int


class OrderDict(TypedDict):
    amount: int


BODY = b'{"id": "1", "type": "A", "timestamp": "2026-04-03T10:30:00Z", "data": {"amount": 5}}'


class Nobody:
    async def publish(self, event: Any, data: Any = None, **fields: Any) -> Event[Any]:
        raise AssertionError("nothing is announced here")


def received(function: Any) -> Any:
    signature = resolve(function)
    event = signature.decode(BODY)
    return signature.call(event, Context(event, "payment", Nobody()))


def test_the_envelope_its_data_and_the_context_are_told_apart() -> None:
    def envelope(event: Event[Order]) -> Any:
        return event.data

    def any_envelope(event: Event) -> Any:
        return event.data

    def model(order: Order, context: Context) -> Any:
        return order, context.consumer

    def reordered(context: Context, event: Event[Order]) -> Any:
        return event.id, context.attempt

    def keywords(*, order: Order, context: Context, event: Event) -> Any:
        return order, context.consumer, event.id

    assert received(envelope) == Order(amount=5)
    assert received(any_envelope) == {"amount": 5}
    assert received(model) == (Order(amount=5), "payment")
    assert received(reordered) == ("1", 1)
    assert received(keywords) == (Order(amount=5), "payment", "1")


def test_data_may_be_a_dataclass_a_typed_dict_or_a_dict() -> None:
    def plain(order: PlainOrder) -> Any:
        return order

    def typed(order: OrderDict) -> Any:
        return order

    def anything(order: dict[str, Any]) -> Any:
        return order

    assert received(plain) == PlainOrder(amount=5)
    assert received(typed) == received(anything) == {"amount": 5}


def test_an_argument_with_a_default_stays_the_authors() -> None:
    def handler(order: Order, client: str = "mine") -> Any:
        return client

    assert received(handler) == "mine"


async def test_every_kind_of_async_callable_is_awaited() -> None:
    async def plain(event: Event) -> str:
        return event.id

    class Service:
        async def __call__(self, event: Event) -> str:
            return event.id

    @functools.wraps(plain)
    def wrapped(event: Event) -> Any:
        return plain(event)

    assert resolve(plain).is_async
    assert resolve(functools.partial(plain)).is_async
    assert resolve(Service()).is_async
    assert not resolve(wrapped).is_async  # its coroutine is noticed, and awaited, when it runs
    assert await received(Service()) == "1"


def bare(event):  # type: ignore[no-untyped-def]
    """Takes what nobody said."""


def unknown(order: Missing) -> None:  # type: ignore[name-defined]  # noqa: F821
    """Asks for a type that does not exist."""


def two(order: Order, other: PlainOrder) -> None:
    """Asks for the data twice."""


def yields(event: Event) -> Any:
    """Is a generator, so that calling it runs nothing."""
    yield event


class Unvalidatable:
    """pydantic can't say how to validate this."""


def strange(order: Unvalidatable) -> None:
    """Asks for something that no JSON becomes."""


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (bare, "argument 'event' has no annotation"),
        (unknown, "annotations can't be resolved: name 'Missing'"),
        (two, "two different types"),
        (yields, "it yields"),
        (strange, "data type can't be validated"),
    ],
)
def test_what_cannot_be_resolved_is_an_error_that_names_file_and_line(
    function: Any, reason: str
) -> None:
    with pytest.raises(ConfigurationError, match=reason) as refused:
        resolve(function)
    assert f"test_signature.py:{function.__code__.co_firstlineno}" in str(refused.value)


def test_a_batch_handler_takes_lists() -> None:
    def handler(events: list[Event[Order]], contexts: list[Context]) -> Any:
        return [event.data.amount for event in events], [context.consumer for context in contexts]

    signature = resolve(handler, is_batch=True)
    event = signature.decode(BODY)
    context = Context(event, "payment", Nobody())
    assert signature.call([event, event], [context]) == ([5, 5], ["payment"])


def test_a_batch_handler_that_takes_one_event_is_refused() -> None:
    def handler(event: Event[Order]) -> None: ...

    with pytest.raises(ConfigurationError, match="is a list"):
        resolve(handler, is_batch=True)


def test_a_consumer_without_handlers_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"consumer payment .* handles nothing"):
        Consumer("payment").resolve()


def test_one_event_type_has_one_handler() -> None:
    payment = Consumer("payment")
    payment.on("A")(lambda event: None)
    with pytest.raises(ConfigurationError, match=r"handles A twice: .*test_signature\.py:\d+"):
        payment.on("A")(lambda event: None)


@pytest.mark.parametrize("name", ["", "Payment", "pay.ment", "1st", "a" * 64, "päy"])
def test_a_name_that_could_collide_on_the_broker_is_refused(name: str) -> None:
    with pytest.raises(ConfigurationError, match="a consumer's name"):
        Consumer(name)


def test_a_malformed_event_type_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="'ORDER PLACED' is no event type"):
        Consumer("payment").on("ORDER PLACED")(lambda event: None)


def test_prefetch_leaves_room_for_every_slot() -> None:
    assert Consumer("payment", concurrency=8).prefetch == 12
    payment = Consumer("payment", concurrency=2)
    payment.on_batch("A", size=50)(lambda events: None)
    assert payment.prefetch >= payment.slots == 100
    with pytest.raises(ConfigurationError, match="prefetch"):
        Consumer("payment", concurrency=8, prefetch=4)


def test_a_handler_that_runs_once_gets_the_session_of_its_context() -> None:
    async def charge(event: Event[Order], session: AsyncSession) -> Any:
        return event.data.amount, session

    def charge_in_thread(order: Order, context: Context, *, session: Session) -> Any:
        return order.amount, session

    for function in (charge, charge_in_thread):
        signature = resolve(function)
        event = signature.decode(BODY)
        context = Context(event, "payment", Nobody())
        context.commit_with("the session", Nobody())
        result = signature.call(event, context)
        if signature.is_async:
            result = asyncio.run(result)
        assert signature.takes_session
        assert result == (5, "the session")


def test_a_session_of_the_wrong_kind_is_an_error_at_start() -> None:
    async def charge(event: Event, session: Session) -> None: ...
    def charge_in_thread(event: Event, session: AsyncSession) -> None: ...
    def charge_many(events: list[Event], sessions: list[Session]) -> None: ...

    for function in (charge, charge_in_thread):
        with pytest.raises(ConfigurationError, match="an async def takes an AsyncSession"):
            resolve(function)
    with pytest.raises(ConfigurationError, match="a batch handler gets no session"):
        resolve(charge_many, is_batch=True)


def test_a_session_without_once_is_an_error_at_start() -> None:
    payment = Consumer("payment")

    @payment.on("ORDER_PLACED")
    def charge(event: Event, session: Session) -> None: ...

    with pytest.raises(ConfigurationError, match="once=True"):
        payment.resolve()
