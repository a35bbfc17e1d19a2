"""Appending: all or nothing, once, at the version the writer saw; on SQLite and PostgreSQL."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from rabbitflow import ConcurrencyError, DuplicateEvent, Event, EventError
from rabbitflow.store import EventStore


def deposits(*amounts: int) -> list[Event[Any]]:
    return [Event(type="MONEY_DEPOSITED", data={"amount": amount}) for amount in amounts]


async def amounts(store: EventStore, stream: str) -> list[int]:
    return [recorded.event.data["amount"] async for recorded in store.read(stream)]


async def test_what_was_appended_is_read_as_it_was(store: EventStore) -> None:
    event = Event[Any](
        type="MONEY_DEPOSITED",
        data={"amount": 15_000, "note": "₹ \0 🙂", "exact": 10**30, "none": None, "list": [1.5]},
        source="teller-1",
        correlation_id="c",
        causation_id="d",
        version=3,
        key="account-1",
    )
    await store.append("account-1", event)
    [recorded] = [each async for each in store.read("account-1")]
    assert recorded.event == event
    assert (recorded.stream, recorded.version, recorded.position) == ("account-1", 1, 1)


async def test_versions_count_a_stream_and_positions_the_store(store: EventStore) -> None:
    await store.append("a", deposits(1, 2), expected_version=0)
    await store.append("b", deposits(3), expected_version=0)
    appended = await store.append("a", deposits(4), expected_version=2)
    assert (appended.version, appended.position) == (3, 4)
    assert [(each.stream, each.version) async for each in store.read_all()] == [
        ("a", 1),
        ("a", 2),
        ("b", 1),
        ("a", 3),
    ]


async def test_of_two_writers_that_saw_the_same_version_one_is_refused(store: EventStore) -> None:
    await store.append("account-1", deposits(1), expected_version=0)
    outcomes = await asyncio.gather(
        *(store.append("account-1", deposits(n), expected_version=1) for n in (2, 3)),
        return_exceptions=True,
    )
    [refused] = [each for each in outcomes if isinstance(each, ConcurrencyError)]
    assert (refused.stream, refused.expected, refused.actual) == ("account-1", 1, 2)
    assert await store.version("account-1") == 2


async def test_a_batch_that_is_refused_leaves_nothing(store: EventStore) -> None:
    first = deposits(1)
    await store.append("a", first)
    with pytest.raises(DuplicateEvent):
        await store.append("b", [*deposits(2, 3), *first])
    assert await store.version("b") == 0
    assert await amounts(store, "b") == []
    assert (await store.append("b", deposits(4))).position == 2


async def test_one_refused_append_does_not_take_along_those_that_share_its_commit(
    store: EventStore,
) -> None:
    known = deposits(0)
    await store.append("known", known)
    outcomes = await asyncio.gather(
        *(store.append(f"stream-{n}", deposits(n)) for n in range(20)),
        store.append("other", known),
        *(store.append(f"stream-{n}", deposits(n)) for n in range(20, 40)),
        return_exceptions=True,
    )
    assert [type(each) for each in outcomes if isinstance(each, Exception)] == [DuplicateEvent]
    assert sorted([each.position async for each in store.read_all()]) == list(range(1, 42))


@pytest.mark.parametrize("expected", [None, 1])
async def test_appending_the_same_events_again_changes_nothing(
    store: EventStore, expected: int | None
) -> None:
    await store.append("a", deposits(1))
    events = deposits(2, 3)
    first = await store.append("a", events, expected_version=expected)
    await store.append("a", deposits(4))
    assert await store.append("a", events, expected_version=expected) == first
    assert await amounts(store, "a") == [1, 2, 3, 4]


async def test_an_event_is_kept_in_one_place_only(store: EventStore) -> None:
    events = deposits(1)
    await store.append("a", events)
    with pytest.raises(DuplicateEvent, match="already stored"):
        await store.append("b", events)


@pytest.mark.parametrize("stream", ["", "a\nb", "a\0b", "x" * 256, "\ud800"])
async def test_a_stream_has_a_name_that_can_be_written_down(store: EventStore, stream: str) -> None:
    with pytest.raises(EventError, match="not a stream's name"):
        await store.append(stream, deposits(1))


async def test_an_event_that_no_database_can_hold_is_refused(store: EventStore) -> None:
    for event in (
        Event[Any](type="E", data=float("nan")),
        Event[Any](type="E", data=1, source="a\0b"),
    ):
        with pytest.raises(EventError):
            await store.append("a", [*deposits(1), event])
    with pytest.raises(EventError, match="nothing to append"):
        await store.append("a", [])
    assert await store.version("a") == 0
