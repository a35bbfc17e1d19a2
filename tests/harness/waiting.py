"""Waiting for a condition, with a deadline, instead of sleeping."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")

_POLL_S = 0.02


async def eventually(
    condition: Callable[[], T | Awaitable[T]],
    *,
    within_s: float = 10.0,
    what: str | Callable[[], str] = "",
) -> T:
    """Return the first true value of ``condition``; fail when there is none in time, and say
    ``what`` was waited for."""
    deadline = time.monotonic() + within_s
    while True:
        value = condition()
        if inspect.isawaitable(value):
            value = await value
        if value:
            return value  # type: ignore[return-value]
        if time.monotonic() > deadline:
            wanted = what() if callable(what) else what
            raise AssertionError(
                f"not within {within_s:g} s: {wanted or inspect.getsource(condition)}"
            )
        await asyncio.sleep(_POLL_S)
