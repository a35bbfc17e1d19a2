"""Notification: sends the rider a receipt."""

from __future__ import annotations

from rabbitflow import Consumer, Context, Event
from workers import mail
from workers.payloads import Ride

notification = Consumer("notification", timeout=30)


@notification.on("RIDE_COMPLETED")
async def send_receipt(event: Event[Ride], context: Context) -> None:
    ride = event.data
    await mail.send(
        event,
        context,
        recipient=f"{ride.rider_id.lower()}@example.com",
        subject=f"Your receipt for {ride.ride_id}",
        body=(
            f"{ride.distance_km:g} km in {ride.duration_min} minutes,"
            f" from {ride.pickup_zone} to {ride.drop_zone}: {ride.fare} {ride.currency}."
        ),
    )
