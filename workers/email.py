"""Email: confirms an order to its customer."""

from __future__ import annotations

from rabbitflow import Consumer, Context, Event
from workers import mail
from workers.payloads import Order

email = Consumer("email", timeout=30)


@email.on("ORDER_PLACED")
async def confirm(event: Event[Order], context: Context) -> None:
    order = event.data
    await mail.send(
        event,
        context,
        recipient=f"{order.user_id.lower()}@example.com",
        subject=f"Your order {order.order_id}",
        body=f"Thank you. We are packing {', '.join(order.items)} for {order.amount} INR.",
    )
