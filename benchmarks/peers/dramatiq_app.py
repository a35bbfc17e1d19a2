"""Dramatiq: an event is four messages, sent one by one. Worker: dramatiq, all defaults."""

from __future__ import annotations

import dramatiq
from dramatiq.brokers.rabbitmq import RabbitmqBroker

from benchmarks.peers.rating import MODE, PREFIX, URL, note, rate_sync, scenario

WORKER = ["-m", "dramatiq", "benchmarks.peers.dramatiq_app"]
QUEUE = f"{PREFIX}-dramatiq"
QUEUES = {
    "shared queue": [QUEUE],
    "waiting for retry": [f"{QUEUE}.DQ"],
    "dead letters": [f"{QUEUE}.XQ"],
}

dramatiq.set_broker(RabbitmqBroker(url=URL))


@dramatiq.actor(queue_name=QUEUE)
def payment(number: int, at: float) -> None:
    note("payment", number, at)


@dramatiq.actor(queue_name=QUEUE)
def inventory(number: int, at: float) -> None:
    note("inventory", number, at)


@dramatiq.actor(queue_name=QUEUE)
def email(number: int, at: float) -> None:
    note("email", number, at)


@dramatiq.actor(queue_name=QUEUE, max_retries=0 if MODE == "dead-lettering" else None)
def rating(number: int, at: float) -> None:
    if scenario(number) == "dead-lettering":
        raise ValueError("not ours")
    rate_sync(number, at)


class Producer:
    async def __aenter__(self) -> Producer:
        return self

    async def __aexit__(self, *_: object) -> None:
        dramatiq.get_broker().close()

    async def send(self, number: int, at: float) -> None:
        for actor in (payment, inventory, email, rating):
            actor.send(number, at)
