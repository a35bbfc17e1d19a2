"""Frames written and read as bytes are those that pamqp writes and reads."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pamqp import frame
from pamqp.body import ContentBody
from pamqp.commands import Basic
from pamqp.header import ContentHeader

from rabbitflow import wire

short_text = st.text(max_size=60).filter(lambda text: len(text.encode()) <= 255)
some_text = short_text.filter(bool)
field_values = st.one_of(
    st.text(max_size=20),
    st.integers(-(2**31), 2**31),
    st.booleans(),
    st.binary(max_size=9).map(bytearray),
)
headers = st.dictionaries(some_text, field_values, max_size=4)
moments = st.integers(0, 2**37).map(lambda second: datetime.fromtimestamp(second, UTC))


@st.composite
def properties(draw: st.DrawFn) -> Basic.Properties:
    def perhaps(strategy: st.SearchStrategy[Any]) -> Any:
        return draw(st.none() | strategy)

    return Basic.Properties(
        content_type=perhaps(some_text),
        content_encoding=perhaps(some_text),
        headers=perhaps(headers),
        delivery_mode=perhaps(st.sampled_from([1, 2])),
        priority=perhaps(st.integers(0, 255)),
        correlation_id=perhaps(some_text),
        reply_to=perhaps(some_text),
        expiration=perhaps(some_text),
        message_id=perhaps(some_text),
        timestamp=perhaps(moments),
        message_type=perhaps(some_text),
        user_id=perhaps(some_text),
        app_id=perhaps(some_text),
    )


@given(properties())
def test_properties_are_written_as_pamqp_writes_them(given_: Basic.Properties) -> None:
    assert wire.properties_of(given_) == given_.marshal()


@given(properties(), st.integers(0, 2**40))
def test_a_content_header_says_what_pamqp_reads_in_it(given_: Basic.Properties, size: int) -> None:
    payload = ContentHeader(body_size=size, properties=given_).marshal()
    read = ContentHeader()
    read.unmarshal(payload)
    theirs = read.properties
    assert wire.read_content(payload) == wire.Content(
        size,
        theirs.content_type,
        theirs.content_encoding,
        theirs.headers,
        theirs.message_id,
        theirs.message_type,
    )
    assert wire.full_properties(payload) == theirs
    assert wire.body_bytes(payload) == size


@given(properties())
def test_a_header_cut_anywhere_is_refused_or_read_and_never_anything_else(
    given_: Basic.Properties,
) -> None:
    payload = ContentHeader(properties=given_).marshal()
    for end in range(len(payload)):
        try:
            wire.read_content(payload[:end])
        except ValueError:
            continue


def test_text_that_is_no_utf8_does_not_make_a_header_unreadable() -> None:
    payload = ContentHeader(properties=Basic.Properties(message_id="xxxx")).marshal()
    payload = payload.replace(b"xxxx", b"\xff\xfexx")
    content = wire.read_content(payload)
    assert content.message_id is not None
    assert content.message_id.endswith("xx")
    with pytest.raises(ValueError, match="decode"):
        wire.full_properties(payload)


@given(st.integers(1, 65535), st.integers(0, 2**63 - 1), st.booleans())
def test_acks_are_those_of_pamqp(channel: int, tag: int, multiple: bool) -> None:
    theirs = frame.marshal(Basic.Ack(delivery_tag=tag, multiple=multiple), channel)
    assert wire.ack(channel, tag, multiple=multiple) == theirs
    assert wire.method_id(theirs, 7) == wire.ACK
    assert wire.read_confirm(theirs, 7) == (tag, multiple)


@given(st.integers(1, 65535), short_text, short_text)
def test_publishes_are_those_of_pamqp(channel: int, exchange: str, routing_key: str) -> None:
    exchange = "".join(letter for letter in exchange if letter.isascii() and letter.isalnum())
    theirs = Basic.Publish(exchange=exchange, routing_key=routing_key, mandatory=True)
    assert wire.publish_method(channel, exchange, routing_key) == frame.marshal(theirs, channel)


@given(properties(), st.binary(max_size=400), st.integers(20, 300))
def test_bodies_are_split_into_frames_that_the_broker_takes(
    given_: Basic.Properties, body: bytes, frame_max: int
) -> None:
    written = wire.content(7, wire.properties_of(given_), body, frame_max)
    used, channel, header = frame.unmarshal(written)
    assert channel == 7
    assert isinstance(header, ContentHeader)
    assert header.body_size == len(body)
    received = b""
    while used < len(written):
        size, channel, piece = frame.unmarshal(written[used:])
        assert size <= frame_max
        assert isinstance(piece, ContentBody)
        received += piece.value
        used += size
    assert received == body


@given(st.integers(1, 2**63 - 1), st.booleans(), some_text, short_text, short_text)
def test_deliveries_are_read_as_pamqp_reads_them(
    tag: int, redelivered: bool, consumer: str, exchange: str, routing_key: str
) -> None:
    exchange = "".join(letter for letter in exchange if letter.isascii() and letter.isalnum())
    theirs = frame.marshal(
        Basic.Deliver(
            consumer_tag=consumer,
            delivery_tag=tag,
            redelivered=redelivered,
            exchange=exchange,
            routing_key=routing_key,
        ),
        1,
    )
    assert wire.read_deliver(theirs, 7) == (tag, redelivered, exchange)
