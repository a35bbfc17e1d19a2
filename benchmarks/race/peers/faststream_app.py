"""FastStream: ``faststream run``, a subscriber whose payload it validates by the annotation."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable
from typing import Any

from faststream import FastStream
from faststream.rabbit import Channel, ExchangeType, RabbitBroker, RabbitExchange, RabbitQueue

from benchmarks.race.meter import CONSUMERS, PREFETCH, QUEUE, URL, Envelope, handled
from benchmarks.race.payload import EVENT_TYPE, envelope, event_id

MODES = ("awaited", "pipelined")
NAMESPACE = QUEUE.rpartition(".")[0]

broker = RabbitBroker(URL, default_channel=Channel(prefetch_count=PREFETCH))
app = FastStream(broker)
orders = RabbitExchange(
    f"{NAMESPACE}.events.ORDER_PLACED", type=ExchangeType.FANOUT, durable=True, declare=False
)


def workers(processes: int) -> list[list[str]]:
    several = ["--workers", str(processes)] if processes > 1 else []
    app = "benchmarks.race.peers.faststream_app:app"
    return [["-m", "faststream", "run", app, *several]]


def subscribe(name: str) -> None:
    queue = RabbitQueue(f"{NAMESPACE}.{name}", durable=True, declare=False)

    @broker.subscriber(queue)
    async def on_order(event: Envelope) -> None:
        handled(event.data.sentAt)


for consumer in CONSUMERS[: int(os.environ.get("RACE_CONSUMERS", "1"))]:
    subscribe(consumer)


class Producer:
    async def __aenter__(self) -> Producer:
        await broker.connect()
        return self

    async def __aexit__(self, *_: object) -> None:
        await broker.stop()

    async def send(self, number: int, data: dict[str, Any]) -> None:
        await broker.publish(
            envelope(number, data),
            exchange=orders,
            persist=True,
            message_id=event_id(number),
            message_type=EVENT_TYPE,
        )

    async def send_many(self, numbers: Iterable[int], data: dict[str, Any], window: int) -> None:
        room = asyncio.Semaphore(window)

        async def send(number: int) -> None:
            async with room:
                await self.send(number, data)

        await asyncio.gather(*map(send, numbers))
