"""The laws of event sourcing, tried on many histories; on SQLite and PostgreSQL."""

from __future__ import annotations

import itertools
import zlib
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from rabbitflow import Event
from rabbitflow.store import EventStore, verify

START = datetime(2026, 3, 1, tzinfo=UTC)
COUNTER = itertools.count()
LAW = settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


class Tally(BaseModel):
    """Depends on the order of the events, not only on their number."""

    count: int = 0
    order: str = ""
    total: int = 0


def tally(state: Tally, event: Event[Any]) -> Tally:
    return Tally(
        count=state.count + 1,
        order=f"{zlib.crc32(f'{state.order} {event.data}'.encode()):x}",
        total=state.total + event.data["amount"],
    )


def event_at(minute: int, amount: int) -> Event[Any]:
    return Event(
        type="MONEY_MOVED", data={"amount": amount}, timestamp=START + timedelta(minutes=minute)
    )


# Also histories that were recorded out of order: a minute is any minute.
events = st.builds(event_at, st.integers(0, 30), st.integers(-(10**6), 10**6))
histories = st.lists(events, max_size=25, unique_by=lambda event: event.id)
batches = st.lists(st.lists(events, min_size=1, max_size=6), max_size=8)
moments = st.integers(-1, 31).map(lambda minute: START + timedelta(minutes=minute))


def folded(history: list[Event[Any]], until: datetime | None = None) -> Tally:
    state = Tally()
    for event in history:
        if until is None or event.timestamp <= until:
            state = tally(state, event)
    return state


@pytest.fixture
async def always(store_url: str) -> Any:
    """A store that keeps a snapshot of nearly everything."""
    async with EventStore(store_url, snapshot_every=3) as store:
        yield store


@LAW
@given(batches=batches)
async def test_the_fold_of_the_store_is_the_fold_in_memory(
    store: EventStore, batches: list[list[Event[Any]]]
) -> None:
    stream = f"stream-{next(COUNTER)}"
    for batch in batches:
        await store.append(stream, batch)
    history = [event for batch in batches for event in batch]
    assert [recorded.event async for recorded in store.read(stream)] == history
    assert await store.rebuild(stream, tally) == folded(history)


@LAW
@given(history=histories, until=moments)
async def test_as_of_a_time_is_the_fold_of_what_happened_up_to_then(
    always: EventStore, history: list[Event[Any]], until: datetime
) -> None:
    stream = f"stream-{next(COUNTER)}"
    for event in history:
        await always.append(stream, event)
        await always.rebuild(stream, tally)  # leaves snapshots on the way
    assert await always.rebuild(stream, tally, until=until) == folded(history, until)
    # Again: from what the first time may have kept.
    assert await always.rebuild(stream, tally, until=until) == folded(history, until)
    assert await always.rebuild(stream, tally) == folded(history)


@LAW
@given(history=histories, cuts=st.lists(st.integers(0, 25), max_size=4))
async def test_a_snapshot_and_its_tail_are_the_whole_history(
    always: EventStore, history: list[Event[Any]], cuts: list[int]
) -> None:
    stream = f"stream-{next(COUNTER)}"
    done = 0
    for cut in [*sorted(cuts), len(history)]:
        if history[done:cut]:
            await always.append(stream, history[done:cut], expected_version=done)
            done = min(cut, len(history))
        assert await always.rebuild(stream, tally) == folded(history[:done])
    for version in range(len(history) + 1):
        state = await always.rebuild(stream, tally, to_version=version)
        assert state == folded(history[:version])


@LAW
@given(history=histories, first=st.integers(1, 26), last=st.integers(0, 26), until=moments)
async def test_backward_is_forward_the_other_way_round(
    store: EventStore, history: list[Event[Any]], first: int, last: int, until: datetime
) -> None:
    stream = f"stream-{next(COUNTER)}"
    if history:
        await store.append(stream, history)
    span: Any = {"from_version": first, "to_version": last, "until": until}
    forward = [recorded async for recorded in store.read(stream, **span)]
    backward = [recorded async for recorded in store.read(stream, **span, backward=True)]
    assert backward == forward[::-1]
    wanted = [e for e in history[first - 1 : last] if e.timestamp <= until]
    assert [recorded.event for recorded in forward] == wanted


@LAW
@given(batches=batches)
async def test_what_was_only_appended_is_whole(
    store: EventStore, batches: list[list[Event[Any]]]
) -> None:
    before = (await verify(store)).seal
    for batch in batches:
        await store.append(f"stream-{next(COUNTER)}", batch)
    assert (await verify(store, before)).faults == []
