"""Celery: prefork, acks late so that a task is acknowledged after it ran, as the others do."""

from __future__ import annotations

from typing import Any

from celery import Celery

from benchmarks.race.meter import PREFETCH, QUEUE, URL, Order, handled

MODES = ("awaited",)

app = Celery("race", broker=URL)
app.conf.task_default_queue = QUEUE
app.conf.task_acks_late = True
app.conf.worker_prefetch_multiplier = PREFETCH
app.conf.task_ignore_result = True


def workers(processes: int) -> list[list[str]]:
    app = ["-m", "celery", "-A", "benchmarks.race.peers.celery_app", "worker"]
    return [[*app, "-c", str(processes), "--without-gossip", "--without-mingle"]]


@app.task
def on_order(data: dict[str, Any]) -> None:
    handled(Order.model_validate(data).sentAt)


class Producer:
    async def __aenter__(self) -> Producer:
        return self

    async def __aexit__(self, *_: object) -> None:
        app.close()

    async def send(self, number: int, data: dict[str, Any]) -> None:
        on_order.delay(data)
