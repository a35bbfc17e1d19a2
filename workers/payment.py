"""Payment: charges the customer of an order and the rider of a ride, then says so."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from rabbitflow import Consumer, Context, Event, Retry
from workers import ledger
from workers.payloads import Order, Payment, Ride


class CardDeclined(Exception):
    """The bank says no; asking again does not change its mind."""


LIMIT = Decimal(100_000)

payment = Consumer(
    "payment",
    concurrency=4,
    retry=Retry.exponential(attempts=5, first=2, cap=300, never=(CardDeclined,)),
    timeout=30,
    publishes=["PAYMENT_COMPLETED"],
)


@payment.on("ORDER_PLACED")
def charge_customer(event: Event[Order], context: Context) -> None:
    order = event.data
    _charge(event, context, order.order_id, order.user_id, order.amount, "INR")


@payment.on("RIDE_COMPLETED")
def charge_rider(event: Event[Ride], context: Context) -> None:
    ride = event.data
    _charge(event, context, ride.ride_id, ride.rider_id, ride.fare, ride.currency)


def _charge(
    event: Event[Any],
    context: Context,
    reference: str,
    payer: str,
    amount: Decimal,
    currency: str,
) -> None:
    if amount > LIMIT:
        raise CardDeclined(f"{amount} {currency} is above the limit of {payer}")
    with ledger.transaction() as connection:
        if ledger.record(connection, event, context, f"charged {payer} {amount} {currency}"):
            paid = Decimal(ledger.total(connection, "paid", payer)) + amount
            ledger.set_total(connection, "paid", payer, paid)
    # Also when the charge is an old one: the worker may have died before this was announced.
    done = Payment(reference=reference, payer=payer, amount=amount, currency=currency)
    context.publish_sync("PAYMENT_COMPLETED", done, key=reference)
