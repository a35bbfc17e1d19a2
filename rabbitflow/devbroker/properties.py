"""A message's properties as bytes, and edits of its headers that leave all others as they came.

Decoding and encoding again would write a foreign client's numbers in other types, round its
doubles and fail on its binary strings. It also costs ten times as much, for every delivery that
gets a header.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterator, Mapping

from pamqp import encode

_FLAGS = struct.Struct(">H")
_SIZE = struct.Struct(">I")
_LONG = struct.Struct(">cq")

_TOP = 15
_HEADERS, _EXPIRATION = 2, 7
# The kinds of the 14 properties in their order: short strings, the table of headers, octets and the
# timestamp (AMQP 0-9-1, class basic).
_KINDS = "sstoossss8ssss"
_HEADERS_FLAG = 1 << (_TOP - _HEADERS)
_BEFORE_HEADERS = [1 << (_TOP - place) for place in range(_HEADERS)]
_UNKNOWN_FLAGS = 0b11

# Of the values in a table, by type (rabbitmq.com/amqp-0-9-1-errata, section 3).
_FIXED_SIZES = {
    **dict.fromkeys((b"V", b"\x00"), 0),
    **dict.fromkeys((b"t", b"b", b"B"), 1),
    **dict.fromkeys((b"s", b"u"), 2),
    **dict.fromkeys((b"I", b"i", b"f"), 4),
    b"D": 5,
    **dict.fromkeys((b"l", b"L", b"d", b"T"), 8),
}


def long(number: int) -> bytes:
    """Return a number as a value in a table."""
    return _LONG.pack(b"l", number)


def text(value: str) -> bytes:
    """Return a string as a value in a table."""
    return b"S" + sized(value.encode())


def sized(data: bytes) -> bytes:
    """Return bytes after their own length, as tables and long strings are written."""
    return _SIZE.pack(len(data)) + data


def check(raw: bytes) -> None:
    """Raise ValueError where properties or headers are not exactly as long as they say."""
    parts = _split(raw)
    if _FLAGS.unpack_from(raw)[0] & _UNKNOWN_FLAGS or sum(map(len, parts)) + 2 != len(raw):
        raise ValueError("the properties are cut off, or followed by something else")
    table = parts[_HEADERS]
    if table and sum(len(entry) for _, entry in _entries(table)) + _SIZE.size != len(table):
        raise ValueError("the headers are cut off")


def with_number(raw: bytes, name: str, number: int) -> bytes:
    """Return properties with one header more, which they must not have yet."""
    (flags,) = _FLAGS.unpack_from(raw)
    start = _FLAGS.size
    for flag in _BEFORE_HEADERS:
        if flags & flag:
            start += 1 + raw[start]
    key = name.encode()
    entry = bytes((len(key),)) + key + long(number)
    entries_start = entries_end = start
    if flags & _HEADERS_FLAG:
        entries_start += _SIZE.size
        entries_end = entries_start + _SIZE.unpack_from(raw, start)[0]
    return b"".join(
        (
            _FLAGS.pack(flags | _HEADERS_FLAG),
            raw[_FLAGS.size : start],
            _SIZE.pack(entries_end - entries_start + len(entry)),
            raw[entries_start:entries_end],
            entry,
            raw[entries_end:],
        )
    )


def edited(
    raw: bytes,
    *,
    add: Mapping[str, bytes] | None = None,
    drop: Collection[str] = (),
    expires: bool = True,
) -> bytes:
    """Return properties with headers added or replaced, others dropped.

    Args:
        raw: the properties.
        add: headers, their values as AMQP writes them in a table: type and bytes.
        drop: names of headers.
        expires: False drops the expiration.
    """
    add = add or {}
    parts = _split(raw)
    kept = [
        entry for name, entry in _entries(parts[_HEADERS]) if name not in add and name not in drop
    ]
    kept += [encode.short_string(name) + value for name, value in add.items()]
    parts[_HEADERS] = sized(b"".join(kept)) if kept else b""
    if not expires:
        parts[_EXPIRATION] = b""
    flags = sum(1 << (_TOP - place) for place, part in enumerate(parts) if part)
    return _FLAGS.pack(flags) + b"".join(parts)


def _split(raw: bytes) -> list[bytes]:
    """Return the bytes of each property; empty where it has none."""
    (flags,) = _FLAGS.unpack_from(raw)
    parts = []
    at = _FLAGS.size
    for place, kind in enumerate(_KINDS):
        size = 0
        if flags & 1 << (_TOP - place):
            if kind == "s":
                size = 1 + raw[at]
            elif kind == "t":
                size = _SIZE.size + _SIZE.unpack_from(raw, at)[0]
            else:
                size = 8 if kind == "8" else 1
        parts.append(raw[at : at + size])
        at += size
    return parts


def _entries(table: bytes) -> Iterator[tuple[str, bytes]]:
    at = _SIZE.size
    while at < len(table):
        end_of_name = at + 1 + table[at]
        end = _end_of_value(table, end_of_name, len(table))
        yield table[at + 1 : end_of_name].decode(), table[at:end]
        at = end


def _end_of_value(data: bytes, at: int, limit: int) -> int:
    """Return where the value ends whose type stands at ``at``; all of it is within ``limit``.

    Raises:
        ValueError: it is not. The codec takes what there is of a string that is cut off, and what
            follows it in a table would be read as part of it.
    """
    if at >= limit:
        raise ValueError("a value is missing")
    kind = data[at : at + 1]
    at += 1
    fixed = _FIXED_SIZES.get(kind)
    if fixed is not None:
        end = at + fixed
    else:
        start = at + _SIZE.size
        end = start + _SIZE.unpack_from(data, at)[0]
        if kind in (b"A", b"F"):
            _check_nested(data, start, min(end, limit), is_table=kind == b"F")
        elif kind not in (b"S", b"x"):
            raise ValueError(f"there is no type {kind!r}")
    if end > limit:
        raise ValueError("a value is cut off")
    return end


def _check_nested(data: bytes, at: int, end: int, *, is_table: bool) -> None:
    while at < end:
        at = _end_of_value(data, at + 1 + data[at] if is_table else at, end)
