"""The data of the events that the services react to."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal

from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel


class Payload(BaseModel):
    """On the wire the names are camelCase; here they are Python's."""

    model_config = ConfigDict(frozen=True, alias_generator=to_camel, populate_by_name=True)


class Order(Payload):
    """ORDER_PLACED: a customer ordered items."""

    order_id: str
    user_id: str
    amount: Decimal
    items: tuple[str, ...]


class Ride(Payload):
    """RIDE_COMPLETED: a rider was brought where they wanted to go."""

    ride_id: str
    rider_id: str
    driver_id: str
    fare: Decimal
    currency: str
    distance_km: float
    duration_min: int
    pickup_zone: str
    drop_zone: str
    completed_at: datetime


class Payment(Payload):
    """PAYMENT_COMPLETED: somebody paid."""

    reference: str
    payer: str
    amount: Decimal
    currency: str
