"""The few AMQP frames of the hot path, as bytes: written and read without building frame objects.

Frames are those of AMQP 0-9-1, sections 2.3.5 and 4.2. Everything else on a connection is left to
pamqp, and so are properties that the hot path does not look at. The tests hold each function here
against pamqp.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from struct import Struct
from typing import Any, Final, NamedTuple

from pamqp import decode, encode
from pamqp.commands import Basic
from pamqp.header import ContentHeader

METHOD, HEADER, BODY, HEARTBEAT = 1, 2, 3, 8
FRAME_END: Final = 0xCE
FRAME_HEADER: Final = Struct(">BHI")
FRAME_HEADER_BYTES: Final = FRAME_HEADER.size
FRAME_BYTES: Final = FRAME_HEADER_BYTES + 1
"""What a frame has beside its payload."""

HEARTBEAT_FRAME: Final = b"\x08\x00\x00\x00\x00\x00\x00\xce"

_BASIC: Final = 60
PUBLISH: Final = _BASIC << 16 | 40
RETURN: Final = _BASIC << 16 | 50
DELIVER: Final = _BASIC << 16 | 60
ACK: Final = _BASIC << 16 | 80
NACK: Final = _BASIC << 16 | 120

_ACK_FRAME: Final = Struct(">BHIIQBB")
_CONFIRM: Final = Struct(">QB")
_DELIVER: Final = Struct(">QBB")
_CONTENT: Final = Struct(">HHQH")
_FRAME_AND_CONTENT: Final = Struct(">BHIHHQ")
_LONG: Final = Struct(">Q")
_SHORT: Final = Struct(">H")
_METHOD_ID: Final = Struct(">I")
_MANDATORY: Final = 1

# Flags of the properties, in the order in which they follow each other (section 4.2.6.1).
_CONTENT_TYPE, _CONTENT_ENCODING, _HEADERS, _DELIVERY_MODE = 1 << 15, 1 << 14, 1 << 13, 1 << 12
_PRIORITY, _CORRELATION_ID, _REPLY_TO, _EXPIRATION = 1 << 11, 1 << 10, 1 << 9, 1 << 8
_MESSAGE_ID, _TIMESTAMP, _TYPE = 1 << 7, 1 << 6, 1 << 5
_MORE_FLAGS: Final = 1


class Content(NamedTuple):
    """What a content header says, as far as handling looks at it. Text that is no UTF-8 is kept as
    far as it is."""

    body_bytes: int
    content_type: str | None
    content_encoding: str | None
    headers: Mapping[str, Any] | None
    message_id: str | None
    message_type: str | None


def method_id(payload: memoryview | bytes, at: int = 0) -> int:
    """Return which method a method frame's payload is: class << 16 | method."""
    found: int = _METHOD_ID.unpack_from(payload, at)[0]
    return found


def ack(channel: int, tag: int, *, multiple: bool) -> bytes:
    """Return a ``basic.ack`` frame."""
    return _ACK_FRAME.pack(METHOD, channel, 13, ACK, tag, multiple, FRAME_END)


def publish_method(channel: int, exchange: str, routing_key: str) -> bytes:
    """Return the method frame of a mandatory ``basic.publish``."""
    payload = b"".join(
        (
            _METHOD_ID.pack(PUBLISH),
            b"\0\0",
            _short_text(exchange),
            _short_text(routing_key),
            bytes((_MANDATORY,)),
        )
    )
    return b"%b%b\xce" % (FRAME_HEADER.pack(METHOD, channel, len(payload)), payload)


def content(channel: int, properties: bytes, body: bytes, frame_max: int) -> bytes:
    """Return the header frame and the body frames of a message.

    Args:
        channel: its number.
        properties: as :func:`properties_of` wrote them.
        body: split over as many frames as it needs.
        frame_max: the largest frame agreed on with the broker, in bytes.
    """
    size = len(body)
    header = _FRAME_AND_CONTENT.pack(HEADER, channel, 12 + len(properties), _BASIC, 0, size)
    most = frame_max - FRAME_BYTES
    if size <= most:
        if not size:
            return b"%b%b\xce" % (header, properties)
        return b"%b%b\xce%b%b\xce" % (
            header,
            properties,
            FRAME_HEADER.pack(BODY, channel, size),
            body,
        )
    parts = [header, properties, b"\xce"]
    for start in range(0, size, most):
        piece = body[start : start + most]
        parts += (FRAME_HEADER.pack(BODY, channel, len(piece)), piece, b"\xce")
    return b"".join(parts)


def properties_of(properties: Basic.Properties) -> bytes:
    """Return properties as they follow the body size in a content header: flags, then values."""
    given = properties
    moment = given.timestamp
    if (
        given.user_id
        or given.app_id
        or given.reply_to
        or given.priority is not None
        or (moment is not None and moment.tzinfo is None)
    ):
        return given.marshal()
    flags = 0
    parts = [b""]
    if given.content_type:
        flags |= _CONTENT_TYPE
        parts.append(_short_text(given.content_type))
    if given.content_encoding:
        flags |= _CONTENT_ENCODING
        parts.append(_short_text(given.content_encoding))
    if given.headers is not None:
        flags |= _HEADERS
        parts.append(encode.field_table(given.headers))
    if given.delivery_mode is not None:
        flags |= _DELIVERY_MODE
        parts.append(given.delivery_mode.to_bytes())
    if given.correlation_id:
        flags |= _CORRELATION_ID
        parts.append(_short_text(given.correlation_id))
    if given.expiration:
        flags |= _EXPIRATION
        parts.append(_short_text(given.expiration))
    if given.message_id:
        flags |= _MESSAGE_ID
        parts.append(_short_text(given.message_id))
    if moment is not None:
        flags |= _TIMESTAMP
        parts.append(_LONG.pack(int(moment.timestamp())))
    if given.message_type:
        flags |= _TYPE
        parts.append(_short_text(given.message_type))
    parts[0] = _SHORT.pack(flags)
    return b"".join(parts)


def read_confirm(payload: bytes, at: int) -> tuple[int, bool]:
    """Return tag and ``multiple`` of a ``basic.ack`` or ``basic.nack`` that begins at ``at``."""
    tag, bits = _CONFIRM.unpack_from(payload, at + 4)
    return tag, bool(bits & 1)


def read_deliver(payload: bytes, at: int) -> tuple[int, bool, str]:
    """Return tag, ``redelivered`` and exchange of a ``basic.deliver`` that begins at ``at``."""
    place = at + 5 + payload[at + 4]
    tag, redelivered, length = _DELIVER.unpack_from(payload, place)
    place += 10
    return tag, bool(redelivered & 1), payload[place : place + length].decode()


def body_bytes(payload: bytes, at: int = 0) -> int:
    """Return the body size that a content header's payload announces."""
    size: int = _LONG.unpack_from(payload, at + 4)[0]
    return size


def read_content(payload: bytes) -> Content:
    """Read a content header's payload.

    Raises:
        ValueError: it is malformed.
    """
    try:
        return _read_content(payload)
    except (struct.error, IndexError) as error:
        raise ValueError(f"malformed content header: {error}") from error


def _read_content(payload: bytes) -> Content:
    _, _, size, flags = _CONTENT.unpack_from(payload)
    at = 14
    content_type = content_encoding = headers = message_id = message_type = None
    if flags & _MORE_FLAGS:
        raise ValueError("a second word of property flags, which AMQP 0-9-1 has no use for")
    if flags & _CONTENT_TYPE:
        end = at + 1 + payload[at]
        content_type = payload[at + 1 : end].decode(errors="replace")
        at = end
    if flags & _CONTENT_ENCODING:
        end = at + 1 + payload[at]
        content_encoding = payload[at + 1 : end].decode(errors="replace")
        at = end
    if flags & _HEADERS:
        used, headers = decode.field_table(payload[at:])
        at += used
    if flags & _DELIVERY_MODE:
        at += 1
    if flags & _PRIORITY:
        at += 1
    for unread in (_CORRELATION_ID, _REPLY_TO, _EXPIRATION):
        if flags & unread:
            at += 1 + payload[at]
    if flags & _MESSAGE_ID:
        end = at + 1 + payload[at]
        message_id = payload[at + 1 : end].decode(errors="replace")
        at = end
    if flags & _TIMESTAMP:
        at += 8
    if flags & _TYPE:
        message_type = payload[at + 1 : at + 1 + payload[at]].decode(errors="replace")
    return Content(size, content_type, content_encoding, headers, message_id, message_type)


def full_properties(payload: bytes) -> Basic.Properties:
    """Return every property in a content header's payload, read by pamqp.

    Raises:
        ValueError: it is malformed, or a text is no UTF-8.
    """
    header = ContentHeader()
    header.unmarshal(payload)
    return header.properties


def _short_text(text: str) -> bytes:
    encoded = text.encode()
    return len(encoded).to_bytes() + encoded
