from __future__ import annotations

import os

from benchmarks.race.meter import Order, handled
from rabbitflow import Consumer, Event

payment = Consumer(
    "payment",
    concurrency=int(os.environ.get("RACE_CONCURRENCY", "8")),
    prefetch=int(os.environ.get("RACE_PREFETCH", "100")),
)


@payment.on("ORDER_PLACED")
async def on_order(event: Event[Order]) -> None:
    handled()
