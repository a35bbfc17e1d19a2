"""aio-pika as its users write it: a queue, a callback, an ack."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from typing import Any

import aio_pika

from benchmarks.race.meter import PREFETCH, QUEUE, URL, Envelope, handled
from benchmarks.race.payload import EVENT_TYPE, envelope, event_id

MODES = ("awaited", "pipelined")


def workers(processes: int) -> list[list[str]]:
    return [["-m", "benchmarks.race.peers.aio_pika_app"]] * processes


class Producer:
    async def __aenter__(self) -> Producer:
        self._connection = await aio_pika.connect(URL)
        channel = await self._connection.channel()
        namespace = QUEUE.rpartition(".")[0]
        self._exchange = await channel.get_exchange(f"{namespace}.events.ORDER_PLACED")
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._connection.close()

    async def send(self, number: int, data: dict[str, Any]) -> None:
        body = json.dumps(envelope(number, data)).encode()
        message = aio_pika.Message(
            body,
            content_type="application/json",
            delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
            message_id=event_id(number),
            type=EVENT_TYPE,
        )
        await self._exchange.publish(message, "")

    async def send_many(self, numbers: Iterable[int], data: dict[str, Any], window: int) -> None:
        room = asyncio.Semaphore(window)

        async def send(number: int) -> None:
            async with room:
                await self.send(number, data)

        await asyncio.gather(*map(send, numbers))


async def consume() -> None:
    connection = await aio_pika.connect(URL)
    channel = await connection.channel()
    await channel.set_qos(PREFETCH)
    queue = await channel.get_queue(QUEUE)

    async def on_message(message: aio_pika.abc.AbstractIncomingMessage) -> None:
        event = Envelope.model_validate_json(message.body)
        handled(event.data.sentAt)
        await message.ack()

    await queue.consume(on_message)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(consume())
