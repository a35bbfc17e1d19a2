"""Taskiq on aio-pika: an event is four tasks, sent one by one. Worker: taskiq worker."""

from __future__ import annotations

from taskiq.exceptions import NoResultError
from taskiq_aio_pika import AioPikaBroker, Exchange, Queue

from benchmarks.peers.rating import PREFIX, URL, note, rate, scenario

WORKER = ["-m", "taskiq", "worker", "benchmarks.peers.taskiq_app:broker"]
QUEUES = {
    "shared queue": [f"{PREFIX}.taskiq"],
    "dead letters": [f"{PREFIX}.taskiq.dead_letter"],
}

broker = AioPikaBroker(
    URL,
    exchange=Exchange(name=f"{PREFIX}.taskiq"),
    task_queues=[Queue(name=f"{PREFIX}.taskiq")],
    dead_letter_queue=Queue(name=f"{PREFIX}.taskiq.dead_letter"),
    delay_queue=Queue(name=f"{PREFIX}.taskiq.delay"),
)


@broker.task
async def payment(number: int, at: float) -> None:
    note("payment", number, at)


@broker.task
async def inventory(number: int, at: float) -> None:
    note("inventory", number, at)


@broker.task
async def email(number: int, at: float) -> None:
    note("email", number, at)


@broker.task
async def rating(number: int, at: float) -> None:
    if scenario(number) == "dead-lettering":
        raise NoResultError
    await rate(number, at)


class Producer:
    async def __aenter__(self) -> Producer:
        await broker.startup()
        return self

    async def __aexit__(self, *_: object) -> None:
        await broker.shutdown()

    async def send(self, number: int, at: float) -> None:
        for task in (payment, inventory, email, rating):
            await task.kiq(number, at)
