"""Surge: recalculates the demand of the zone where a ride began."""

from __future__ import annotations

from rabbitflow import Consumer, Context, Event
from workers import ledger
from workers.payloads import Ride

RIDES_PER_STEP = 10

surge = Consumer("surge", concurrency=1, timeout=30)


@surge.on("RIDE_COMPLETED")
def recalculate(event: Event[Ride], context: Context) -> None:
    zone, hour = event.data.pickup_zone, event.data.completed_at.strftime("%Y-%m-%dT%H")
    with ledger.transaction() as connection:
        rides = int(ledger.total(connection, "rides", f"{zone} {hour}")) + 1
        factor = 1 + rides // RIDES_PER_STEP * 0.1
        what = f"{zone} had {rides} rides this hour: fares x {factor:.1f}"
        if ledger.record(connection, event, context, what):
            ledger.set_total(connection, "rides", f"{zone} {hour}", rides)
            ledger.set_total(connection, "surge", zone, f"{factor:.1f}")
