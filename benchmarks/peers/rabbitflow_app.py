"""rabbitflow: an event, four consumers, all defaults. Worker: rabbitflow worker MODULE."""

from __future__ import annotations

from benchmarks.peers.rating import PREFIX, URL, note, rate, scenario
from rabbitflow import Consumer, DeadLetter, Publisher
from rabbitflow.settings import load_settings
from rabbitflow.topology import RETRY_BUCKETS_S, Names

WORKER = ["-m", "rabbitflow", "worker", "benchmarks.peers.rabbitflow_app"]
NAMES = Names(PREFIX)
QUEUES = {
    "queue": [NAMES.queue("rating")],
    "waiting for retry": [NAMES.retry("rating", bucket_s) for bucket_s in RETRY_BUCKETS_S],
    "dead letters": [NAMES.dead("rating")],
}

payment, inventory, email = Consumer("payment"), Consumer("inventory"), Consumer("email")
rating = Consumer("rating")


@payment.on("ORDER_PLACED")
async def on_payment(order: dict) -> None:
    note("payment", order["number"], order["at"])


@inventory.on("ORDER_PLACED")
async def on_inventory(order: dict) -> None:
    note("inventory", order["number"], order["at"])


@email.on("ORDER_PLACED")
async def on_email(order: dict) -> None:
    note("email", order["number"], order["at"])


@rating.on("ORDER_PLACED")
async def on_rating(order: dict) -> None:
    if scenario(order["number"]) == "dead-lettering":
        raise DeadLetter("not ours")
    await rate(order["number"], order["at"])


class Producer:
    async def __aenter__(self) -> Producer:
        self._publisher = Publisher(settings=load_settings(url=URL, namespace=PREFIX))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._publisher.close()

    async def send(self, number: int, at: float) -> None:
        await self._publisher.publish("ORDER_PLACED", {"number": number, "at": at})
