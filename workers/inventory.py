"""Inventory: reserves the items of an order."""

from __future__ import annotations

from rabbitflow import Consumer, Context, Event
from workers import ledger
from workers.payloads import Order

FULL_SHELF = "100"

inventory = Consumer("inventory", concurrency=4, timeout=30)


@inventory.on("ORDER_PLACED")
def reserve(event: Event[Order], context: Context) -> None:
    items = event.data.items
    with ledger.transaction() as connection:
        if ledger.record(connection, event, context, f"reserved {', '.join(items)}"):
            for item in items:
                left = int(ledger.total(connection, "stock", item, FULL_SHELF)) - 1
                ledger.set_total(connection, "stock", item, left)
