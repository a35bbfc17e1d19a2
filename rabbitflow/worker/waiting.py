"""Waiting for whichever comes first, with a deadline."""

from __future__ import annotations

import asyncio
from typing import Any


async def first_of(*signals: asyncio.Event | asyncio.Future[Any], within_s: float | None) -> None:
    """Return when one of ``signals`` is set or done, at the latest after ``within_s`` seconds."""
    waiting: list[asyncio.Future[Any]] = []
    for signal in signals:
        if isinstance(signal, asyncio.Event):
            waiting.append(asyncio.ensure_future(signal.wait()))
        else:
            # Shielded: the caller's future outlives this wait.
            waiting.append(asyncio.shield(signal))
    try:
        await asyncio.wait(waiting, timeout=within_s, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for future in waiting:
            future.cancel()
