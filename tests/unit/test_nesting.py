"""No parser meets JSON that is nested too deep, and finding out takes bounded time and memory."""

from __future__ import annotations

import json
import time
import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import rabbitflow.event
from rabbitflow import EventError
from rabbitflow.event import EventDecoder, id_of, type_of
from rabbitflow.nesting import DEEPEST, depth, refuse_deep
from rabbitflow.upcast import Upcasters, UpcastingDecoder

MIB = 1 << 20

values = st.recursive(
    st.integers() | st.text('[]{}"\\ab', max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text('[{"\\'), inner, max_size=3)
    ),
    max_leaves=30,
)


def levels(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + max(map(levels, value.values()), default=0)
    if isinstance(value, list):
        return 1 + max(map(levels, value), default=0)
    return 0


def event(data: bytes) -> bytes:
    return b'{"type": "A", "timestamp": "2026-04-03T10:30:00Z", "data": ' + data + b"}"


@given(values)
def test_the_depth_is_that_of_the_parsed_value(value: Any) -> None:
    assert depth(json.dumps(value).encode()) == levels(value)


@given(st.lists(st.sampled_from([b"[", b"{", b"]", b"}", b'"', b"\\", b"1", b","])))
def test_what_is_no_json_is_never_judged_shallower_than_a_parser_gets(parts: list[bytes]) -> None:
    deepest = level = 0
    in_string = is_escaped = False
    for character in b"".join(parts).decode():
        if in_string:
            in_string = is_escaped or character != '"'
            is_escaped = character == "\\" and not is_escaped
        elif character == "\\":
            break  # here at the latest, as outside a string it is a fault
        elif character == '"':
            in_string = True
        elif character in "[{":
            level += 1
            deepest = max(deepest, level)
        elif character in "]}":
            level -= 1
    assert depth(b"".join(parts)) >= deepest


def test_the_deepest_body_is_read_and_one_level_more_is_not() -> None:
    within = DEEPEST - 1  # the event's own braces are a level
    assert EventDecoder()(event(b"[" * within + b"]" * within)).type == "A"
    with pytest.raises(EventError, match="nested deeper than 200 levels"):
        EventDecoder()(event(b"[" * DEEPEST + b"]" * DEEPEST))


def test_what_is_nested_too_deep_meets_no_parser(monkeypatch: pytest.MonkeyPatch) -> None:
    upcasters = Upcasters()
    upcasters.on("A", version=1)(lambda data: data)
    decoders = EventDecoder(), UpcastingDecoder(upcasters)

    def parser(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("a parser was asked")

    for module in ("event", "upcast"):
        monkeypatch.setattr(f"rabbitflow.{module}.from_json", parser)
    monkeypatch.setattr(rabbitflow.event.json, "loads", parser)
    body = event(b'{"NaN": ' + b"[" * 1000 + b"]" * 1000 + b"}")
    assert type_of(body) is None
    assert id_of(body) is None
    for decoder in decoders:
        monkeypatch.setattr(decoder, "_validate", parser)
        with pytest.raises(EventError, match="nested deeper"):
            decoder(body)


@pytest.mark.parametrize(
    ("body", "is_refused"),
    [
        pytest.param(b"[" * MIB, True, id="brackets alone"),
        pytest.param(b"[" + b"[]," * (MIB // 3) + b"[]]", False, id="many beside each other"),
        pytest.param(b'{"a":"' + b"[" * MIB + b'"}', False, id="brackets in a string"),
        pytest.param(b"[" * 300 + b'"' + b'\\"' * (MIB // 2), True, id="a string without end"),
        pytest.param(b"[" * 300 + b'""' * (MIB // 2) + b"\\", True, id="many strings"),
    ],
)
def test_a_hostile_body_is_judged_in_bounded_time_and_memory(body: bytes, is_refused: bool) -> None:
    began = time.process_time()
    if is_refused:
        with pytest.raises(ValueError, match="nested deeper"):
            refuse_deep(body)
    else:
        refuse_deep(body)
    took_s = time.process_time() - began
    assert took_s < 5, "one megabyte takes a tenth of a second, quadratic work takes hours"
    tracemalloc.start()
    try:
        depth(body)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 64 * MIB, "each string of the body is an entry of a list"
