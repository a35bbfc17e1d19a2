"""Snapshots are used where they fit, and never where they could be wrong."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pydantic import BaseModel
from sqlalchemy import text

from rabbitflow import ConcurrencyError, ConfigurationError, Event, EventError
from rabbitflow.store import EventStore, applies
from rabbitflow.store.snapshots import kind_of
from rabbitflow.upcast import Upcasters
from workers.bank import Account as BankAccount
from workers.bank import Overdraft, balance, deposit, open_account, withdraw

START = datetime(2026, 3, 1, tzinfo=UTC)


class Money(BaseModel):
    amount: int


class Sum(BaseModel):
    total: int = 0

    @applies("MONEY_DEPOSITED")
    def deposited(self, money: Money) -> Sum:
        return Sum(total=self.total + money.amount)

    @applies("MONEY_WITHDRAWN")
    def withdrawn(self, event: Event[Money]) -> None:
        self.total -= event.data.amount


@dataclass
class Count:
    number: int = 0


def add(state: Sum, event: Event[Any]) -> Sum:
    return Sum(total=state.total + event.data["amount"])


def add_twice(state: Sum, event: Event[Any]) -> Sum:
    return Sum(total=state.total + 2 * event.data["amount"])


def count(state: Count, event: Event[Any]) -> Count:
    return Count(state.number + 1)


def deposits(count: int) -> list[Event[Any]]:
    return [
        Event(type="MONEY_DEPOSITED", data={"amount": 1}, timestamp=START + timedelta(days=day))
        for day in range(count)
    ]


@pytest.fixture
async def store(store_url: str) -> AsyncIterator[EventStore]:
    async with EventStore(store_url, snapshot_every=10) as store:
        yield store


async def snapshots(store: EventStore) -> int:
    async with store.engine.connect() as connection:
        return int(await connection.scalar(text("SELECT count(*) FROM rabbitflow_snapshots")) or 0)


async def forge(store: EventStore, total: int) -> None:
    """Mark the snapshots, so that a state that came from one is told apart."""
    async with store.engine.begin() as connection:
        await connection.execute(
            text("UPDATE rabbitflow_snapshots SET state = :state"),
            {"state": f'{{"total": {total}}}'},
        )


async def test_a_pydantic_state_is_snapshotted_by_itself(store: EventStore) -> None:
    await store.append("a", deposits(12))
    await store.rebuild("a", add)
    await forge(store, 1000)
    await store.append("a", deposits(3))
    assert (await store.rebuild("a", add)).total == 1003


async def test_a_short_tail_makes_no_snapshot(store: EventStore) -> None:
    await store.append("a", deposits(9))
    await store.rebuild("a", add)
    assert await snapshots(store) == 0


async def test_a_class_and_a_dataclass_are_snapshotted_too(store: EventStore) -> None:
    await store.append("a", deposits(10))
    assert (await store.rebuild("a", Sum)).total == 10
    assert (await store.rebuild("a", count)).number == 10
    assert await snapshots(store) == 2


async def test_a_state_before_the_snapshot_does_not_use_it(store: EventStore) -> None:
    await store.append("a", deposits(20))
    await store.rebuild("a", add)
    await forge(store, 1000)
    assert (await store.rebuild("a", add, until=START + timedelta(days=4))).total == 5
    assert (await store.rebuild("a", add, to_version=19)).total == 19


async def test_another_fold_or_another_beginning_has_other_snapshots(store: EventStore) -> None:
    await store.append("a", deposits(10))
    assert (await store.rebuild("a", add)).total == 10
    assert (await store.rebuild("a", add, Sum(total=5))).total == 15
    assert (await store.rebuild("a", add_twice)).total == 20


def test_a_fold_whose_code_has_changed_has_other_snapshots() -> None:
    before = kind_of(add, Sum(), None)
    changed: dict[str, Any] = {**globals()}
    source = "def add(state: Sum, event: Event) -> Sum:\n    return Sum(total=state.total + 1)\n"
    exec(source, changed)
    after = kind_of(changed["add"], Sum(), None)
    assert before is not None
    assert after is not None
    assert before.fold == after.fold
    assert before.schema != after.schema


def test_a_fold_that_depends_on_its_surroundings_has_no_snapshots() -> None:
    factor = 2

    def closed_over(state: Sum, event: Event[Any]) -> Sum:
        return Sum(total=state.total + factor)

    assert kind_of(closed_over, Sum(), None) is None
    assert kind_of(lambda state, event: state, Sum(), None) is None
    assert kind_of(add, {"total": 0}, None) is None


def test_upcasters_are_part_of_what_a_snapshot_depends_on() -> None:
    upcasters = Upcasters()
    upcasters.on("MONEY_DEPOSITED", version=1)(in_paise)
    plain, upcast = kind_of(add, Sum(), None), kind_of(add, Sum(), upcasters)
    assert plain is not None
    assert upcast is not None
    assert plain.schema != upcast.schema


def in_paise(data: dict[str, Any]) -> dict[str, Any]:
    return {"amount": data["amount"] * 100}


async def test_snapshots_are_disposable(store: EventStore) -> None:
    await store.append("a", deposits(10))
    await store.append("b", deposits(10))
    for stream in ("a", "b"):
        await store.rebuild(stream, add)
    await forge(store, 1000)
    assert await store.drop_snapshots("a") == 1
    assert (await store.rebuild("a", add)).total == 10
    assert (await store.rebuild("b", add)).total == 1000
    assert await store.drop_snapshots() == 2


async def test_a_state_that_is_changed_in_place_does_not_spoil_the_next_rebuild(
    store: EventStore,
) -> None:
    def collect(state: list[int], event: Event[Any]) -> list[int]:
        state.append(event.data["amount"])
        return state

    await store.append("a", deposits(3))
    initial: list[int] = []
    assert await store.rebuild("a", collect, initial) == [1, 1, 1]
    assert await store.rebuild("a", collect, initial) == [1, 1, 1]
    assert initial == []


async def test_a_class_says_what_it_does_with_each_event(store: EventStore) -> None:
    await store.append("a", deposits(3))
    await store.append("a", Event(type="MONEY_WITHDRAWN", data=Money(amount=2)))
    await store.append("a", Event(type="OF_NO_INTEREST", data=None))
    assert (await store.rebuild("a", Sum)).total == 1
    await store.append("a", Event(type="MONEY_DEPOSITED", data={"amount": "much"}))
    with pytest.raises(EventError, match=r"does not fit Sum.deposited .*amount"):
        await store.rebuild("a", Sum)


async def test_a_fold_that_can_not_be_used_is_said_to_be_so(store: EventStore) -> None:
    with pytest.raises(ConfigurationError, match="applies nothing"):
        await store.rebuild("a", Money, Money(amount=1))
    with pytest.raises(ConfigurationError, match="no initial state"):
        await store.rebuild("a", Money)
    with pytest.raises(EventError, match="time zone"):
        await store.rebuild("a", add, until=datetime(2026, 3, 1))  # noqa: DTZ001


async def test_the_bank_pays_out_no_more_than_there_is_however_many_tellers(
    store: EventStore,
) -> None:
    await open_account(store, "account-1", "Asha")
    with pytest.raises(ConcurrencyError):
        await open_account(store, "account-1", "Ben")
    await deposit(store, "account-1", 10_000)

    async def pay_out() -> bool:
        try:
            await withdraw(store, "account-1", 3_000)
        except Overdraft:
            return False
        return True

    paid = await asyncio.gather(*(pay_out() for _ in range(8)))
    assert sum(paid) == 3
    account = await store.rebuild("account-1", balance)
    assert account == BankAccount(owner="Asha", balance=1_000)
