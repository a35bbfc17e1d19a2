"""Celery: an event is four tasks, sent one by one. Worker: celery worker, all defaults."""

from __future__ import annotations

from celery import Celery
from celery.exceptions import Reject

from benchmarks.peers.rating import PREFIX, URL, note, rate_sync, scenario

WORKER = ["-m", "celery", "-A", "benchmarks.peers.celery_app", "worker"]
QUEUES = {"shared queue": [f"{PREFIX}.celery"]}

app = Celery("bench", broker=URL)
app.conf.task_default_queue = f"{PREFIX}.celery"


@app.task
def payment(number: int, at: float) -> None:
    note("payment", number, at)


@app.task
def inventory(number: int, at: float) -> None:
    note("inventory", number, at)


@app.task
def email(number: int, at: float) -> None:
    note("email", number, at)


@app.task
def rating(number: int, at: float) -> None:
    if scenario(number) == "dead-lettering":
        raise Reject("not ours", requeue=False)
    rate_sync(number, at)


class Producer:
    async def __aenter__(self) -> Producer:
        return self

    async def __aexit__(self, *_: object) -> None:
        app.close()

    async def send(self, number: int, at: float) -> None:
        for task in (payment, inventory, email, rating):
            task.delay(number, at)
