"""Many consumers in one process, as many as the environment says."""

from __future__ import annotations

import os

from benchmarks.race.meter import PREFETCH, Order, handled
from rabbitflow import Consumer, Event, Retry

CONSUMERS = int(os.environ.get("CROWD_CONSUMERS", "1"))
TYPES = int(os.environ.get("CROWD_TYPES", "1"))
EACH_HEARS_ALL = "CROWD_ALL" in os.environ


def event_types(number: int) -> list[str]:
    """Return what consumer ``number`` reacts to."""
    if EACH_HEARS_ALL:
        return [f"EVENT_{kind}" for kind in range(TYPES)]
    return [f"EVENT_{number % TYPES}"]


def react(number: int) -> Consumer:
    consumer = Consumer(f"crowd-{number}", prefetch=PREFETCH, retry=Retry.none())

    @consumer.on(*event_types(number))
    async def on_event(event: Event[Order]) -> None:
        handled(event.data.sentAt)

    return consumer


for place in range(CONSUMERS):
    globals()[f"consumer_{place}"] = react(place)
