"""Taskiq on aio-pika: ``taskiq worker``, one process, a hundred tasks at once."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

from taskiq_aio_pika import AioPikaBroker, Exchange, Queue

from benchmarks.race.meter import PREFETCH, QUEUE, URL, Order, handled

MODES = ("awaited", "pipelined")

broker = AioPikaBroker(
    URL,
    exchange=Exchange(name=f"{QUEUE}.taskiq"),
    task_queues=[Queue(name=QUEUE)],
    dead_letter_queue=Queue(name=f"{QUEUE}.dead"),
    delay_queue=Queue(name=f"{QUEUE}.delay"),
    qos=PREFETCH,
)


def workers(processes: int) -> list[list[str]]:
    app = ["-m", "taskiq", "worker", "benchmarks.race.peers.taskiq_app:broker"]
    return [[*app, "--workers", str(processes), "--max-async-tasks", str(PREFETCH)]]


@broker.task
async def on_order(order: Order) -> None:
    handled(order.sentAt)


class Producer:
    async def __aenter__(self) -> Producer:
        await broker.startup()
        return self

    async def __aexit__(self, *_: object) -> None:
        await broker.shutdown()

    async def send(self, number: int, data: dict[str, Any]) -> None:
        await on_order.kiq(data)

    async def send_many(self, numbers: Iterable[int], data: dict[str, Any], window: int) -> None:
        room = asyncio.Semaphore(window)

        async def send(number: int) -> None:
            async with room:
                await self.send(number, data)

        await asyncio.gather(*map(send, numbers))
