"""Analytics: records orders and rides, and what they brought in."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from rabbitflow import Consumer, Context, Event
from workers import ledger
from workers.payloads import Order, Ride

analytics = Consumer("analytics", concurrency=4, timeout=30)


@analytics.on("ORDER_PLACED")
def record_order(event: Event[Order], context: Context) -> None:
    _count(event, context, "orders", event.data.amount)


@analytics.on("RIDE_COMPLETED")
def record_ride(event: Event[Ride], context: Context) -> None:
    _count(event, context, "rides", event.data.fare)


def _count(event: Event[Any], context: Context, what: str, revenue: Decimal) -> None:
    day = event.timestamp.date().isoformat()
    with ledger.transaction() as connection:
        if ledger.record(connection, event, context, f"counted {revenue} INR of {what} on {day}"):
            brought = Decimal(ledger.total(connection, what, day)) + revenue
            ledger.set_total(connection, what, day, brought)
