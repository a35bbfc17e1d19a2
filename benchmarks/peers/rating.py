"""What the benchmark's handlers do: note each event, and let rating fail as the scenario says."""

from __future__ import annotations

import asyncio
import os
import signal
import time

MODE = os.environ.get("BENCH_MODE", "healthy")
PREFIX = os.environ.get("BENCH_PREFIX", "bench")
URL = os.environ.get("BENCH_URL", "amqp://guest:guest@localhost:5672/")
KILLERS = frozenset(range(500, 1_000_000, 1000))
"""Which events kill their process in the scenario "killing": one in a thousand."""

_log = os.open(os.environ.get("BENCH_LOG", os.devnull), os.O_WRONLY | os.O_APPEND | os.O_CREAT)


class RatingDown(Exception):
    """The rating service does not work today."""


def note(consumer: str, number: int, sent_at: float) -> None:
    """Note that a consumer handled an event: one line, kept also when the process is killed."""
    os.write(_log, f"{consumer} {number} {sent_at} {time.time()}\n".encode())


def scenario(number: int) -> str:
    """What rating does with this event; those of the warm-up, below zero, are handled."""
    return MODE if number >= 0 else "healthy"


def _fail(number: int) -> None:
    if scenario(number) == "raising":
        raise RatingDown("always")
    if scenario(number) == "killing" and number in KILLERS:
        os.kill(os.getpid(), signal.SIGKILL)


async def rate(number: int, sent_at: float) -> None:
    """Rating, async."""
    _fail(number)
    if scenario(number) == "hanging":
        await asyncio.sleep(3600)
    note("rating", number, sent_at)


def rate_sync(number: int, sent_at: float) -> None:
    """Rating, in a thread or a process."""
    _fail(number)
    if scenario(number) == "hanging":
        time.sleep(3600)
    note("rating", number, sent_at)
