"""Driver: credits the driver's share of a ride."""

from __future__ import annotations

from decimal import ROUND_HALF_EVEN, Decimal

from rabbitflow import Consumer, Context, Event
from workers import ledger
from workers.payloads import Ride

SHARE = Decimal("0.80")
PAISA = Decimal("0.01")

driver = Consumer("driver", timeout=30)


@driver.on("RIDE_COMPLETED")
def credit(event: Event[Ride], context: Context) -> None:
    ride = event.data
    earned = (ride.fare * SHARE).quantize(PAISA, ROUND_HALF_EVEN)
    with ledger.transaction() as connection:
        what = f"credited {ride.driver_id} {earned} {ride.currency}"
        if ledger.record(connection, event, context, what):
            earnings = Decimal(ledger.total(connection, "earnings", ride.driver_id)) + earned
            ledger.set_total(connection, "earnings", ride.driver_id, earnings)
