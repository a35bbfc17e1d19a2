"""Rating: asks the rider how the ride was."""

from __future__ import annotations

from rabbitflow import Consumer, Context, Event
from workers import ledger
from workers.payloads import Ride

rating = Consumer("rating", timeout=30)


@rating.on("RIDE_COMPLETED")
def prompt(event: Event[Ride], context: Context) -> None:
    ride = event.data
    with ledger.transaction() as connection:
        what = f"asked {ride.rider_id} to rate {ride.driver_id}"
        if ledger.record(connection, event, context, what):
            ledger.set_total(connection, "open ratings", ride.ride_id, ride.rider_id)
