"""How deep JSON is nested, found without a parser, so that none meets what could exhaust it."""

from __future__ import annotations

from itertools import accumulate

DEEPEST = 200
"""Levels of arrays and objects that a body may have, its own braces included."""

_OPENS, _CLOSES = b"[{", b"]}"
_OTHERS = bytes(set(range(256)) - set(_OPENS + _CLOSES + b'"'))
_STEPS = [1 if byte in _OPENS else -1 for byte in range(256)]


def refuse_deep(body: bytes) -> None:
    """Refuse JSON that is nested deeper than :data:`DEEPEST` levels.

    Most bodies are too short for it, as a level takes two bytes, or have too few brackets; only
    others are looked through. What is no JSON is judged up to where a parser stops, at least.

    Raises:
        ValueError: it is nested deeper.
    """
    if len(body) <= 2 * DEEPEST or body.count(b"{") + body.count(b"[") <= DEEPEST:
        return
    if depth(body) > DEEPEST:
        raise ValueError(f"it is nested deeper than {DEEPEST} levels")


def depth(body: bytes) -> int:
    """Return how many levels of arrays and objects ``body`` has; brackets in strings are none."""
    # Without escapes every quote begins or ends a string. All of it is done in C, in linear time.
    unescaped = body.replace(b"\\\\", b"").replace(b'\\"', b"")
    outside_strings = unescaped.translate(None, _OTHERS).split(b'"')[::2]
    return max(accumulate(map(_STEPS.__getitem__, b"".join(outside_strings)), initial=0))
