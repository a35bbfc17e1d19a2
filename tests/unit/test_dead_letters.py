"""One dead letter: read from anybody's headers, written as a line and back, shown harmlessly."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pamqp.commands import Basic

from rabbitflow.cli.letters import editable, text_of
from rabbitflow.deadletters.letter import Letter, Selection
from rabbitflow.deadletters.moves import check_mended
from rabbitflow.deadletters.ndjson import letters_of, line_of
from rabbitflow.errors import EventError
from rabbitflow.event import Event
from rabbitflow.topology import (
    ATTEMPT,
    CAUSE_HEADERS,
    DEATH,
    EVENT_TYPE,
    EXCEPTION_TYPE,
    EXCHANGE,
    FAILED_AT,
    FIRST_FAILED_AT,
    HEADERS_LIMIT_BYTES,
    REASON,
    REPLAYS,
    Names,
)

NAMES = Names("shop")
AT = datetime(2026, 4, 3, 10, 30, tzinfo=UTC)
BODY = Event(id="e-1", type="ORDER_PLACED", data={"number": 1}).encode()


def letter(body: bytes = BODY, headers: dict[str, Any] | None = None, **given: Any) -> Letter:
    return Letter.read(body, Basic.Properties(headers=headers, **given), NAMES)


scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.text(max_size=20)
    | st.floats(width=32, allow_nan=False)
    | st.binary(max_size=20).map(bytearray)
    | st.datetimes(datetime(1971, 1, 1), datetime(2100, 1, 1)).map(  # noqa: DTZ001
        lambda moment: moment.replace(microsecond=0, fold=0, tzinfo=UTC)
    )
    | st.decimals(-(2**31) + 1, 2**31 - 1, places=0).map(Decimal)
)
names = st.text(max_size=9) | st.sampled_from(["$time", "$decimal", "$base64", "$table"])
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=2),
    max_leaves=8,
)
headers_of_anybody = st.dictionaries(
    names | st.sampled_from([*CAUSE_HEADERS, ATTEMPT, REPLAYS, DEATH]),
    values,
    max_size=6,
)


@given(headers=headers_of_anybody, body=st.binary(max_size=200))
def test_anybodys_message_is_read_and_comes_back_from_its_line(
    headers: dict[str, Any], body: bytes
) -> None:
    read = letter(body, headers, message_id="m-1", priority=4)
    [again] = letters_of([line_of(read, "payment")], "payment", NAMES, "a file")
    assert again.body == body
    assert again.properties.headers == headers
    assert again.properties.priority == 4
    assert again == read
    text_of(read)
    for properties in (read.kept(), read.replayed()):
        assert properties.message_id == "m-1"
        properties.marshal()


def test_a_line_whose_body_was_made_an_object_is_that_object() -> None:
    written = json.loads(line_of(letter(), "payment"))
    written["body"] = {"type": "ORDER_PLACED", "price": "15 €"}
    [again] = letters_of([json.dumps(written)], "payment", NAMES, "a file")
    assert again.body == '{"type":"ORDER_PLACED","price":"15 €"}'.encode()


def test_what_the_broker_wrote_is_read_where_we_wrote_nothing() -> None:
    death = {"reason": "delivery_limit", "time": AT, "queue": "shop.payment", "count": 1}
    exchange = NAMES.exchange("ORDER_PLACED")
    read = letter(headers={DEATH: [death], "x-first-death-exchange": exchange})
    assert (read.reason, read.failed_at, read.first_failed_at) == ("delivery-limit", AT, AT)
    assert (read.event_type, read.exchange) == ("ORDER_PLACED", exchange)
    kept = read.kept().headers or {}
    assert (kept[REASON], kept[FAILED_AT]) == ("delivery-limit", AT.isoformat())
    assert DEATH not in kept


def test_a_replay_drops_the_cause_and_counts_itself() -> None:
    cause = {REASON: "timeout", ATTEMPT: 5, FIRST_FAILED_AT: AT.isoformat(), EXCEPTION_TYPE: "E"}
    read = letter(headers={**cause, REPLAYS: 2, EXCHANGE: "events.X", "trace": "1", "BCC": ["q"]})
    assert read.replayed().headers == {REPLAYS: 3, EXCHANGE: "events.X", "trace": "1"}


def test_headers_that_grew_too_large_lose_the_foreign_ones() -> None:
    read = letter(headers={"huge": "x" * HEADERS_LIMIT_BYTES, REASON: "invalid", "small": "y"})
    kept = {REASON: "invalid", EVENT_TYPE: "ORDER_PLACED", "small": "y"}
    assert read.kept().headers == kept


@pytest.mark.parametrize(
    ("selection", "matches"),
    [
        (Selection(), True),
        (Selection(ids=frozenset({"e-1", "e-2"})), True),
        (Selection(ids=frozenset({"e-2"})), False),
        (Selection(exceptions=frozenset({"KeyError"}), reasons=frozenset({"timeout"})), True),
        (Selection(exceptions=frozenset({"KeyError"}), reasons=frozenset({"invalid"})), False),
        (Selection(event_types=frozenset({"RIDE_COMPLETED"})), False),
    ],
)
def test_everything_said_of_a_selection_must_hold(selection: Selection, matches: bool) -> None:
    headers = {REASON: "timeout", EXCEPTION_TYPE: "KeyError"}
    read = letter(headers=headers, message_id="e-1", message_type="ORDER_PLACED")
    assert selection.matches(read) is matches


def test_times_without_a_zone_are_utc_and_nonsense_is_none() -> None:
    naive = letter(headers={FAILED_AT: "2026-04-03T10:30:00"})
    assert naive.failed_at == AT
    moved = letter(headers={FAILED_AT: (AT + timedelta(hours=2)).isoformat()})
    assert moved.failed_at == AT + timedelta(hours=2)
    assert letter(headers={FAILED_AT: "soon"}).failed_at is None


def test_what_an_editor_shows_is_the_same_json() -> None:
    shown = editable(letter())
    assert shown.count("\n") > 3
    assert json.loads(shown) == json.loads(BODY)
    for exact in (b'{"a": 1.10}', b'{"a":1,"a":2}', b"{'a'", b'{"a":12345678901234567890.123}'):
        assert editable(letter(exact)).encode() == exact, "reading it would change it"
    with pytest.raises(EventError, match="is no text"):
        editable(letter(b"\xff"))


def test_a_mended_event_keeps_its_id() -> None:
    given = letter(message_id="e-1")
    assert check_mended(given, BODY.replace(b"1}", b"2}")).data == {"number": 2}
    without = json.dumps({"type": "A", "timestamp": AT.isoformat(), "data": 1}).encode()
    assert check_mended(given, without).id == "e-1"
    with pytest.raises(EventError, match="from e-1 to e-2"):
        check_mended(given, BODY.replace(b"e-1", b"e-2"))
