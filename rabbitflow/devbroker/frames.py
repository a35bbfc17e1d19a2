"""Bytes of the wire into frames, and back: nothing here knows what a frame means."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from decimal import DecimalException
from typing import NamedTuple

from pamqp import base, commands, constants
from pamqp import frame as codec

from rabbitflow.devbroker.replies import ConnectionRefusal

Method = base.Frame

PROTOCOL_HEADER = b"AMQP\x00\x00\x09\x01"
# RabbitMQ answers the header that clients of AMQP 0-9 send, too.
ACCEPTED_HEADERS = (PROTOCOL_HEADER, b"AMQP\x01\x01\x00\x09")
FRAME_MAX = 131_072
OVERHEAD_BYTES = 8
HEARTBEAT = bytes([constants.FRAME_HEARTBEAT, 0, 0, 0, 0, 0, 0, constants.FRAME_END])

METHOD, HEADER, BODY = constants.FRAME_METHOD, constants.FRAME_HEADER, constants.FRAME_BODY

_PREFIX = struct.Struct(">BHI")
_INDEX = struct.Struct(">I")
_END = bytes([constants.FRAME_END])

# What the codec raises on bytes that are no AMQP: a length that lies, a date in year 90000, tables
# nested deeper than the stack.
MALFORMED = (
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    OverflowError,
    OSError,
    RecursionError,
    DecimalException,
    struct.error,
)


class Frame(NamedTuple):
    """One frame: its type, its channel and the bytes in it."""

    type: int
    channel: int
    payload: bytes


class FrameReader:
    """Cuts a stream of bytes into frames. It holds one unfinished frame at most.

    Attributes:
        frame_max: the largest frame that was agreed on.
    """

    def __init__(self, frame_max: int = FRAME_MAX) -> None:
        self.frame_max = frame_max
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Yield every frame that is whole now.

        Raises:
            ConnectionRefusal: 501, the bytes are no frame; nothing can be read after that.
        """
        buffer = self._buffer
        buffer += data
        start = 0
        try:
            while len(buffer) - start >= _PREFIX.size:
                kind, channel, size = _PREFIX.unpack_from(buffer, start)
                self._check(kind, size)
                end = start + _PREFIX.size + size
                if len(buffer) <= end:
                    return
                if buffer[end] != constants.FRAME_END:
                    raise _frame_error(kind, f"{{invalid_frame_end_marker,{buffer[end]}}}")
                payload = bytes(buffer[start + _PREFIX.size : end])
                start = end + 1
                yield Frame(kind, channel, payload)
        finally:
            del buffer[:start]

    def _check(self, kind: int, size: int) -> None:
        if kind not in (METHOD, HEADER, BODY, constants.FRAME_HEARTBEAT):
            raise _frame_error(kind, "unknown_frame")
        # RabbitMQ lets the 8 bytes of overhead pass on top: clients disagree on what is counted.
        if size > self.frame_max:
            limit = self.frame_max - OVERHEAD_BYTES
            raise _frame_error(kind, f"{{frame_too_large,{size},{limit}}}")


def _frame_error(kind: int, what: str) -> ConnectionRefusal:
    return ConnectionRefusal(501, f"type {kind}, all octets = <<>>: {what}")


def read_method(payload: bytes) -> Method:
    """Return the method of a method frame.

    Raises:
        ConnectionRefusal: 502 for bytes that are no method, 503 for a method nobody knows.
    """
    try:
        (index,) = _INDEX.unpack_from(payload)
        kind = commands.INDEX_MAPPING.get(index)
        if kind is None:
            raise ConnectionRefusal(503, f"unknown method {index >> 16}.{index & 0xFFFF}")
        method: Method = kind()
        method.unmarshal(payload[_INDEX.size :])
    except MALFORMED as error:
        raise ConnectionRefusal(502, "a method frame can't be decoded") from error
    return method


def write_method(channel: int, method: Method) -> bytes:
    """Return the frame of a method."""
    return codec.marshal(method, channel)


def write_content(channel: int, properties: bytes, body: bytes, frame_max: int) -> bytes:
    """Return the header frame and as many body frames as the body takes."""
    header = struct.pack(">HHQ", commands.Basic.frame_id, 0, len(body)) + properties
    parts = [_PREFIX.pack(HEADER, channel, len(header)), header, _END]
    most = frame_max - OVERHEAD_BYTES
    for start in range(0, len(body), most):
        piece = body[start : start + most] if len(body) > most else body
        parts += (_PREFIX.pack(BODY, channel, len(piece)), piece, _END)
    return b"".join(parts)


def short(text: str) -> bytes:
    """Return a short string, 255 bytes at most."""
    data = text.encode()[:255]
    return bytes((len(data),)) + data


def write_raw(channel: int, index: int, arguments: bytes) -> bytes:
    """Return the frame of a method whose arguments are bytes already.

    For methods that carry names: the codec refuses some that RabbitMQ, and clients in other
    languages, use.
    """
    size = _INDEX.size + len(arguments)
    return _PREFIX.pack(METHOD, channel, size) + _INDEX.pack(index) + arguments + _END
