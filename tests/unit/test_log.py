"""Which part of an event log is meant, in which order several are read, and what is seen twice."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pamqp.commands import Basic

from rabbitflow import Event, EventError
from rabbitflow.log.copying import RecentIds
from rabbitflow.log.entry import Entry
from rabbitflow.log.reading import in_order
from rabbitflow.log.span import Span, parse_moment, parse_start
from rabbitflow.topology import REPLAYED_FROM_LOG, STREAM_OFFSET, Names

NOW = datetime(2026, 4, 3, 10, 30, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "start"),
    [
        ("first", "first"),
        ("42", 42),
        ("2026-03-15", datetime(2026, 3, 15, tzinfo=UTC)),
        ("2026-03-15T10:30:00+05:30", datetime(2026, 3, 15, 5, tzinfo=UTC)),
        ("2h", NOW - timedelta(hours=2)),
    ],
)
def test_where_to_begin_is_a_word_an_offset_or_a_moment(text: str, start: object) -> None:
    assert parse_start(text, NOW) == start


@pytest.mark.parametrize("text", ["", "yesterday", "-1", "2026-13-01", "1e400d"])
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(EventError, match="is no moment"):
        parse_moment(text, NOW)


def test_a_span_holds_its_first_moment_and_not_its_last() -> None:
    span = Span(NOW, NOW + timedelta(hours=1))
    held = [
        span.holds(Event(type="A", timestamp=NOW + timedelta(hours=hours), data=None))
        for hours in (-1, 0, 1)
    ]
    assert held == [False, True, False]


def entry(event_type: str, offset: int, second: int | None) -> Entry:
    moment = None if second is None else NOW + timedelta(seconds=second)
    body = b"?" if moment is None else Event(type=event_type, timestamp=moment, data=None).encode()
    return Entry(event_type, offset, body, Basic.Properties(headers={STREAM_OFFSET: offset}))


async def each(entries: Sequence[Entry]) -> AsyncIterator[Entry]:
    for one in entries:
        yield one


@given(st.lists(st.lists(st.one_of(st.none(), st.integers(0, 50)), max_size=20), max_size=4))
async def test_several_logs_are_read_as_they_happened_and_each_in_its_order(
    logs: list[list[int | None]],
) -> None:
    pasts = [
        [entry(f"T{number}", offset, second) for offset, second in enumerate(log)]
        for number, log in enumerate(logs)
    ]
    read = [one async for one in in_order([each(past) for past in pasts])]
    for number, past in enumerate(pasts):
        assert [one for one in read if one.event_type == f"T{number}"] == past
    if all(sorted(log) == log for log in logs if None not in log) and not any(
        None in log for log in logs
    ):
        moments = [one.event().timestamp for one in read]
        assert moments == sorted(moments)


@given(st.lists(st.integers(0, 30)), st.integers(1, 10))
def test_an_id_seen_among_the_last_few_is_known(ids: list[int], size: int) -> None:
    recent = RecentIds(size)
    for number, one in enumerate(ids):
        known = one in list(dict.fromkeys(reversed(_added(ids[:number], size))))
        assert recent.add(str(one)) is not known


def _added(ids: list[int], size: int) -> list[int]:
    kept: list[int] = []
    for one in ids:
        if one not in kept:
            kept = [*kept, one][-size:]
    return kept


def test_a_copy_says_where_it_comes_from_and_leaves_out_what_the_broker_wrote() -> None:
    properties = Basic.Properties(
        headers={STREAM_OFFSET: 7, "x-death": [], "CC": ["other"], "tenant": "a"}, message_id="1"
    )
    copied = Entry("ORDER_PLACED", 7, b"{}", properties).copied(Names("shop"))
    assert copied.headers == {
        "tenant": "a",
        "x-rabbitflow-exchange": "shop.events.ORDER_PLACED",
        REPLAYED_FROM_LOG: 7,
    }
    assert (copied.message_id, copied.message_type) == ("1", "ORDER_PLACED")
