"""A projection's rows and its checkpoint are one: every event has its effect exactly once."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from rabbitflow import Event
from rabbitflow.errors import ProjectionFailed
from rabbitflow.store import EventStore, Projection, Recorded
from tests.harness.waiting import eventually


async def make_balances(connection: AsyncConnection) -> None:
    await connection.execute(text("DROP TABLE IF EXISTS balances"))
    await connection.execute(
        text("CREATE TABLE balances (stream varchar(99) PRIMARY KEY, amount bigint)")
    )


async def add_amount(connection: AsyncConnection, recorded: Recorded) -> None:
    await connection.execute(
        text(
            "INSERT INTO balances VALUES (:stream, :amount) ON CONFLICT (stream)"
            " DO UPDATE SET amount = balances.amount + excluded.amount"
        ),
        {"stream": recorded.stream, "amount": recorded.event.data["amount"]},
    )


balances = Projection("balances", add_amount, make_balances, types=("MONEY_DEPOSITED",))


def deposits(*amounts: int) -> list[Event[Any]]:
    return [Event(type="MONEY_DEPOSITED", data={"amount": amount}) for amount in amounts]


async def shown(store: EventStore) -> dict[str, int]:
    async with store.engine.connect() as connection:
        rows = await connection.execute(text("SELECT stream, amount FROM balances"))
        return {row.stream: row.amount for row in rows}


async def test_it_holds_what_the_events_say(store: EventStore) -> None:
    await store.append("a", deposits(*range(700)))
    await store.append("b", [*deposits(5), Event(type="OF_NO_INTEREST", data=None)])
    assert await balances.catch_up(store) == 701
    assert await shown(store) == {"a": sum(range(700)), "b": 5}
    assert await balances.position(store) == 702
    await store.append("b", deposits(6))
    assert await balances.catch_up(store) == 1
    assert await balances.catch_up(store) == 0
    assert (await shown(store))["b"] == 11


async def test_two_processes_apply_each_event_once(store: EventStore, store_url: str) -> None:
    for _ in range(20):
        await store.append("a", deposits(*[1] * 60))
    async with EventStore(store_url) as other:
        applied = await asyncio.gather(balances.catch_up(store), balances.catch_up(other))
    assert sum(applied) == 1200
    assert await shown(store) == {"a": 1200}


async def test_an_event_that_fails_leaves_neither_rows_nor_checkpoint(store: EventStore) -> None:
    fails_at = 3

    async def fragile(connection: AsyncConnection, recorded: Recorded) -> None:
        await add_amount(connection, recorded)
        if recorded.event.data["amount"] == fails_at:
            raise ValueError("no threes")

    projection = Projection("balances", fragile, make_balances)
    await store.append("a", deposits(1))
    await projection.catch_up(store)
    await store.append("a", deposits(2, 3, 4))
    with pytest.raises(ProjectionFailed, match=r"position 3 .*no threes"):
        await projection.catch_up(store)
    assert await projection.position(store) == 1
    assert await shown(store) == {"a": 1}
    fails_at = 0
    assert await projection.catch_up(store) == 3
    assert await shown(store) == {"a": 10}


async def test_a_rebuild_begins_anew(store: EventStore) -> None:
    await store.append("a", deposits(1, 2))
    await balances.catch_up(store)
    async with store.engine.begin() as connection:
        await connection.execute(text("UPDATE balances SET amount = 99"))
    assert await balances.rebuild(store) == 2
    assert await shown(store) == {"a": 3}


async def test_it_follows_new_events(store: EventStore) -> None:
    following = asyncio.create_task(balances.follow(store))
    try:
        for number in range(1, 4):
            await store.append("a", deposits(number))

        async def is_there() -> bool:
            return await balances.position(store) == 3

        await eventually(is_there, within_s=30)
        assert await shown(store) == {"a": 6}
    finally:
        following.cancel()
        await asyncio.wait([following])
