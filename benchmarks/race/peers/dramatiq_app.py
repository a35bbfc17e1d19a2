"""Dramatiq: one process of eight threads, its default, with the prefetch of the others."""

from __future__ import annotations

import os
from typing import Any

os.environ.setdefault("dramatiq_queue_prefetch", "100")

import dramatiq
from dramatiq.brokers.rabbitmq import RabbitmqBroker

from benchmarks.race.meter import QUEUE, URL, Order, handled

MODES = ("awaited",)

dramatiq.set_broker(RabbitmqBroker(url=URL))


def workers(processes: int) -> list[list[str]]:
    app = ["-m", "dramatiq", "benchmarks.race.peers.dramatiq_app"]
    return [[*app, "--processes", str(processes), "--threads", "8"]]


@dramatiq.actor(queue_name=QUEUE)
def on_order(data: dict[str, Any]) -> None:
    handled(Order.model_validate(data).sentAt)


class Producer:
    async def __aenter__(self) -> Producer:
        return self

    async def __aexit__(self, *_: object) -> None:
        dramatiq.get_broker().close()

    async def send(self, number: int, data: dict[str, Any]) -> None:
        on_order.send(data)
