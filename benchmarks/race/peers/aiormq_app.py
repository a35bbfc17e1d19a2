"""aiormq, the client below aio-pika, used alone."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from typing import Any

import aiormq
from aiormq.abc import DeliveredMessage
from pamqp.commands import Basic

from benchmarks.race.meter import PREFETCH, QUEUE, URL, Envelope, handled
from benchmarks.race.payload import EVENT_TYPE, envelope, event_id

MODES = ("awaited", "pipelined")


def workers(processes: int) -> list[list[str]]:
    return [["-m", "benchmarks.race.peers.aiormq_app"]] * processes


class Producer:
    async def __aenter__(self) -> Producer:
        self._connection = await aiormq.connect(URL)
        self._channel = await self._connection.channel()
        self._exchange = QUEUE.rpartition(".")[0] + ".events.ORDER_PLACED"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._connection.close()

    async def send(self, number: int, data: dict[str, Any]) -> None:
        body = json.dumps(envelope(number, data)).encode()
        properties = Basic.Properties(
            content_type="application/json",
            delivery_mode=2,
            message_id=event_id(number),
            message_type=EVENT_TYPE,
        )
        await self._channel.basic_publish(body, exchange=self._exchange, properties=properties)

    async def send_many(self, numbers: Iterable[int], data: dict[str, Any], window: int) -> None:
        room = asyncio.Semaphore(window)

        async def send(number: int) -> None:
            async with room:
                await self.send(number, data)

        await asyncio.gather(*map(send, numbers))


async def consume() -> None:
    connection = await aiormq.connect(URL)
    channel = await connection.channel()
    await channel.basic_qos(prefetch_count=PREFETCH)

    async def on_message(message: DeliveredMessage) -> None:
        event = Envelope.model_validate_json(message.body)
        handled(event.data.sentAt)
        await channel.basic_ack(message.delivery.delivery_tag)

    await channel.basic_consume(QUEUE, on_message)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(consume())
