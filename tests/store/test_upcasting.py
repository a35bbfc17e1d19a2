"""Old versions of events are read as new ones, from the store as from the wire, by one registry."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel

from rabbitflow import ConfigurationError, Consumer, Event, EventError, EventStore, Upcasters
from rabbitflow.event import EventDecoder
from rabbitflow.upcast import UpcastingDecoder


class Money(BaseModel):
    amount: int
    currency: str


@pytest.fixture
def upcasters() -> Upcasters:
    registry = Upcasters()

    @registry.on("MONEY_DEPOSITED", version=1)
    def rename(data: dict[str, Any]) -> dict[str, Any]:
        return {"amount": data["rupees"]}

    @registry.on("MONEY_DEPOSITED", version=2)
    def add_currency(data: dict[str, Any]) -> dict[str, Any]:
        return {**data, "currency": "INR"}

    return registry


def every_version() -> list[Event[Any]]:
    return [
        Event(type="MONEY_DEPOSITED", data={"rupees": 5}),
        Event(type="MONEY_DEPOSITED", data={"amount": 5}, version=2),
        Event(type="MONEY_DEPOSITED", data={"amount": 5, "currency": "INR"}, version=3),
    ]


async def test_the_store_reads_old_events_as_new_ones(
    store: EventStore, store_url: str, upcasters: Upcasters
) -> None:
    await store.append("a", every_version())
    async with EventStore(store_url, upcasters=upcasters) as upcasting:
        read = [recorded.event async for recorded in upcasting.read("a")]
    assert [(event.version, event.data) for event in read] == [
        (3, {"amount": 5, "currency": "INR"})
    ] * 3
    # What is kept is what was appended.
    assert [recorded.event async for recorded in store.read("a")] == every_version_like(read)


def every_version_like(read: list[Event[Any]]) -> list[Event[Any]]:
    return [
        old.model_copy(update={"id": new.id, "timestamp": new.timestamp})
        for old, new in zip(every_version(), read, strict=True)
    ]


def test_a_handler_receives_old_events_as_new_ones(upcasters: Upcasters) -> None:
    bank = Consumer("bank", upcasters=upcasters)

    @bank.on("MONEY_DEPOSITED")
    async def deposited(event: Event[Money]) -> None: ...

    decode = bank.resolve()["MONEY_DEPOSITED"].decode
    for event in every_version():
        decoded = decode(event.encode())
        assert decoded.data == Money(amount=5, currency="INR")
        assert (decoded.version, decoded.id) == (3, event.id)


def test_a_handler_of_other_events_is_not_slowed_down(upcasters: Upcasters) -> None:
    bank = Consumer("bank", upcasters=upcasters)

    @bank.on("ORDER_PLACED")
    async def placed(event: Event) -> None: ...

    assert type(bank.resolve()["ORDER_PLACED"].decode) is EventDecoder


def test_an_old_event_without_an_id_has_the_same_one_on_every_redelivery(
    upcasters: Upcasters,
) -> None:
    body = (
        b'{"type": "MONEY_DEPOSITED", "timestamp": "2026-04-03T10:30:00Z", "data": {"rupees": 5}}'
    )
    assert UpcastingDecoder(upcasters)(body).id == EventDecoder()(body).id
    assert UpcastingDecoder(upcasters)(body, "given").id == "given"


def test_an_upcaster_that_fails_names_the_event_and_version(upcasters: Upcasters) -> None:
    with pytest.raises(EventError, match="MONEY_DEPOSITED of version 1 can't be upcast: KeyError"):
        upcasters.apply(Event(type="MONEY_DEPOSITED", data={}))
    upcasters.on("FORGETFUL", version=1)(lambda data: None)
    with pytest.raises(EventError, match="FORGETFUL version 1 returned nothing"):
        upcasters.apply(Event(type="FORGETFUL", data={}))


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"type": 1}', b'{"type": []}', b"\xff"])
def test_what_is_no_event_is_still_refused_as_none(upcasters: Upcasters, body: bytes) -> None:
    with pytest.raises(EventError):
        UpcastingDecoder(upcasters)(body)


def test_one_version_has_one_upcaster(upcasters: Upcasters) -> None:
    with pytest.raises(ConfigurationError, match="has an upcaster already"):
        upcasters.on("MONEY_DEPOSITED", version=1)(lambda data: data)
