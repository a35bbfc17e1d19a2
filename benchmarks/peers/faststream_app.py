"""FastStream: a fanout exchange and four subscribers in one app. Worker: faststream run."""

from __future__ import annotations

from faststream import FastStream
from faststream.exceptions import RejectMessage
from faststream.rabbit import ExchangeType, RabbitBroker, RabbitExchange, RabbitQueue

from benchmarks.peers.rating import PREFIX, URL, note, rate, scenario

WORKER = ["-m", "faststream", "run", "benchmarks.peers.faststream_app:app"]
QUEUES = {"queue": [f"{PREFIX}.rating"]}

broker = RabbitBroker(URL)
app = FastStream(broker)
orders = RabbitExchange(f"{PREFIX}.orders", type=ExchangeType.FANOUT, durable=True)


def queue(name: str) -> RabbitQueue:
    return RabbitQueue(f"{PREFIX}.{name}", durable=True)


@broker.subscriber(queue("payment"), orders)
async def on_payment(order: dict) -> None:
    note("payment", order["number"], order["at"])


@broker.subscriber(queue("inventory"), orders)
async def on_inventory(order: dict) -> None:
    note("inventory", order["number"], order["at"])


@broker.subscriber(queue("email"), orders)
async def on_email(order: dict) -> None:
    note("email", order["number"], order["at"])


@broker.subscriber(queue("rating"), orders)
async def on_rating(order: dict) -> None:
    if scenario(order["number"]) == "dead-lettering":
        raise RejectMessage
    await rate(order["number"], order["at"])


class Producer:
    async def __aenter__(self) -> Producer:
        await broker.connect()
        await broker.declare_exchange(orders)
        return self

    async def __aexit__(self, *_: object) -> None:
        await broker.stop()

    async def send(self, number: int, at: float) -> None:
        await broker.publish({"number": number, "at": at}, exchange=orders, persist=True)
