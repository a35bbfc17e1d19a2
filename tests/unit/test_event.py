"""An event survives the wire, and what is no event is refused with a reason."""

from __future__ import annotations

import json
import math
import time
from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from rabbitflow import Event, EventError
from rabbitflow.event import EventDecoder, derived_id, new_event_id, type_of

texts = st.text(st.characters(exclude_categories=["Cs"]))
json_data = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(min_value=-(10**30), max_value=10**30)
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=20,
)
short_texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=60)
events = st.builds(
    Event[Any],
    type=st.from_regex(r"[A-Za-z][A-Za-z0-9_.-]{0,127}", fullmatch=True),
    timestamp=st.datetimes(timezones=st.just(UTC)),
    data=json_data,
    source=st.none() | short_texts,
    correlation_id=st.none() | short_texts,
    causation_id=st.none() | short_texts,
    version=st.integers(1, 1000),
    key=st.none() | short_texts,
)

BRIEF = b"""{
  "type": "ORDER_PLACED",
  "timestamp": "2026-04-03T10:30:00Z",
  "data": {"orderId": "ORD-12345", "userId": "USR-789", "amount": 1500, "items": ["item_1"]}
}"""


class Order(BaseModel):
    orderId: str  # noqa: N815
    amount: int
    note: str | None = None


@given(events)
def test_an_event_comes_back_from_the_wire_as_it_was(event: Event[Any]) -> None:
    assert EventDecoder()(event.encode()) == event


@given(st.integers(150, 260), st.sampled_from(["list", "dict"]))
def test_what_can_be_written_can_be_read_however_deep_it_is(depth: int, kind: str) -> None:
    data: Any = 1
    for _ in range(depth):
        data = [data] if kind == "list" else {"a": data}
    event = Event(type="A", data=data)
    try:
        body = event.encode()
    except EventError as refused:
        assert depth > 190, refused
    else:
        assert EventDecoder()(body) == event


@pytest.mark.parametrize("digits", [18, 40, 4000, 4300])
def test_numbers_keep_every_digit(digits: int) -> None:
    event = Event(type="A", data=-(10**digits) + 1)
    assert EventDecoder()(event.encode()).data == event.data


def test_a_number_that_no_consumer_could_read_is_not_written() -> None:
    with pytest.raises(EventError, match="number out of range"):
        Event(type="A", data=10**4400).encode()


@given(events)
def test_the_body_is_json_that_any_language_reads(event: Event[Any]) -> None:
    body = json.loads(event.encode(), parse_constant=pytest.fail)
    assert body["type"] == event.type
    assert datetime.fromisoformat(body["timestamp"]) == event.timestamp
    assert body["data"] == event.data


def test_the_briefs_event_with_three_fields_is_accepted() -> None:
    event = EventDecoder(Order)(BRIEF)
    assert event.type == "ORDER_PLACED"
    assert event.timestamp == datetime(2026, 4, 3, 10, 30, tzinfo=UTC)
    assert event.data.amount == 1500


def test_a_body_without_an_id_takes_the_message_id() -> None:
    assert EventDecoder()(BRIEF, "m-1").id == "m-1"


def test_without_any_id_every_redelivery_has_the_same() -> None:
    assert EventDecoder()(BRIEF).id == EventDecoder()(BRIEF).id
    assert EventDecoder()(BRIEF).id != EventDecoder()(BRIEF.replace(b"1500", b"1501")).id


def test_nulls_inside_the_data_are_kept() -> None:
    body = json.loads(Event(type="A", data=Order(orderId="1", amount=1)).encode())
    assert body["data"] == {"orderId": "1", "amount": 1, "note": None}
    assert "source" not in body


def test_an_event_is_immutable() -> None:
    event = Event(type="A", data=1)
    with pytest.raises(ValidationError, match="frozen"):
        event.type = "B"  # type: ignore[misc]


def test_timestamps_are_kept_in_utc() -> None:
    india = timezone(timedelta(hours=5, minutes=30))
    event = Event(type="A", data=1, timestamp=datetime(2026, 4, 3, 16, 0, tzinfo=india))
    assert event.timestamp.isoformat() == "2026-04-03T10:30:00+00:00"


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (BRIEF.replace(b"00Z", b"00"), "timestamp: Input should have timezone info"),
        (BRIEF.replace(b"ORDER_PLACED", b"1 ORDER"), "type: String should match pattern"),
        (BRIEF.replace(b'"type": "ORDER_PLACED",', b""), "type: Field required"),
        (b'{"type": "A", "data": {"orderId": "1", "amount": 1}}', "timestamp: Field required"),
        (BRIEF.replace(b"1500", b'"plenty"'), "data.amount: Input should be a valid integer"),
        (BRIEF.replace(b"1500", b"NaN"), "NaN is no"),
        (b"{", "Invalid JSON"),
        (b"", "Invalid JSON"),
        (b"\xff\xfe", "Invalid JSON"),
        (b'{"type": "\xe9"}', "Invalid JSON"),
        (b"[" * 100_000, "nested deeper than 200 levels"),
        (b"[" * 100_000 + b"NaN", "nested deeper"),
        (b'["ORDER_PLACED"]', "body: Input should be an object"),
        (BRIEF.replace(b"2026-04-03T10:30:00Z", b"9999-12-31T23:59:59-05:00"), "timestamp: .*9999"),
        (BRIEF.replace(b"2026-04-03T10:30:00Z", b"0001-01-01T00:00:00+05:00"), "timestamp: .*9999"),
        (BRIEF.replace(b'"type"', b'"key": "", "type"'), "key: String should have at least 1"),
        (BRIEF.replace(b"USR-789", b"\\ud800"), "Invalid JSON"),
        (BRIEF.replace(b'"type"', b'"version": 0, "type"'), "version: Input should be greater"),
    ],
)
def test_what_is_no_event_is_refused_with_a_reason(body: bytes, reason: str) -> None:
    with pytest.raises(EventError, match=reason.replace("NaN is no", "NaN is not part of JSON")):
        EventDecoder(Order)(body)


def test_a_refusal_does_not_repeat_the_values() -> None:
    with pytest.raises(EventError) as refused:
        EventDecoder(Order)(BRIEF.replace(b"1500", b'"4111-1111-1111-1111"'))
    assert "4111" not in str(refused.value)


@pytest.mark.parametrize("field", ["id", "source", "correlation_id", "causation_id", "key"])
def test_texts_that_travel_as_amqp_properties_are_limited_in_bytes(field: str) -> None:
    assert Event.model_validate({"type": "A", "data": 1, field: "\u20ac" * 85})
    with pytest.raises(ValidationError, match="at most 255 bytes"):
        Event.model_validate({"type": "A", "data": 1, field: "\u20ac" * 86})


def test_fields_of_a_later_version_are_passed_over() -> None:
    event = EventDecoder()(BRIEF.replace(b'"type"', b'"priority": 9, "type"'))
    assert event.type == "ORDER_PLACED"


def test_an_empty_message_id_is_none() -> None:
    assert EventDecoder()(BRIEF, "").id == EventDecoder()(BRIEF).id


def test_nan_inside_a_string_is_no_nan() -> None:
    assert EventDecoder()(BRIEF.replace(b"item_1", b"NaN Infinity")).data["items"] == [
        "NaN Infinity"
    ]


@pytest.mark.parametrize("data", [math.nan, {"a": [math.inf]}, object(), "\ud800"])
def test_data_that_json_has_no_form_for_is_refused(data: object) -> None:
    with pytest.raises(EventError, match="the data of A can't be written as JSON"):
        Event(type="A", data=data).encode()


def test_data_that_contains_itself_is_refused() -> None:
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(EventError, match="can't be written as JSON"):
        Event.model_construct(
            id="1",
            type="A",
            timestamp=datetime.now(UTC),
            data=loop,
            source=None,
            correlation_id=None,
            causation_id=None,
            version=1,
            key=None,
        ).encode()


def test_ids_are_uuids_of_version_7_in_the_order_of_time() -> None:
    before_ms = time.time_ns() // 1_000_000
    ids = [UUID(new_event_id()) for _ in range(200)]
    after_ms = time.time_ns() // 1_000_000
    assert all((one.int >> 76) & 0xF == 7 and (one.int >> 62) & 0b11 == 0b10 for one in ids)
    assert all(before_ms <= one.int >> 80 <= after_ms for one in ids)
    assert [one.int >> 80 for one in ids] == sorted(one.int >> 80 for one in ids)
    assert len(set(ids)) == len(ids)


def test_derived_ids_follow_from_their_parts_alone() -> None:
    assert derived_id("a", "b") == derived_id("a", "b") != derived_id("ab", "")


@pytest.mark.parametrize(
    ("body", "named"), [(BRIEF, "ORDER_PLACED"), (b"{}", None), (b"[]", None), (b"{", None)]
)
def test_the_type_is_found_in_a_body_of_any_kind(body: bytes, named: str | None) -> None:
    assert type_of(body) == named
