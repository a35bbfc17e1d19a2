"""pika's blocking connection: the usual choice of scripts and threads."""

from __future__ import annotations

import json
from typing import Any

import pika

from benchmarks.race.meter import PREFETCH, QUEUE, URL, Envelope, handled
from benchmarks.race.payload import EVENT_TYPE, envelope, event_id

MODES = ("awaited",)


def workers(processes: int) -> list[list[str]]:
    return [["-m", "benchmarks.race.peers.pika_app"]] * processes


class Producer:
    async def __aenter__(self) -> Producer:
        self._connection = pika.BlockingConnection(pika.URLParameters(URL))
        self._channel = self._connection.channel()
        self._channel.confirm_delivery()
        self._exchange = QUEUE.rpartition(".")[0] + ".events.ORDER_PLACED"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._connection.close()

    async def send(self, number: int, data: dict[str, Any]) -> None:
        body = json.dumps(envelope(number, data)).encode()
        properties = pika.BasicProperties(
            content_type="application/json",
            delivery_mode=2,
            message_id=event_id(number),
            type=EVENT_TYPE,
        )
        self._channel.basic_publish(self._exchange, "", body, properties, mandatory=True)


def consume() -> None:
    connection = pika.BlockingConnection(pika.URLParameters(URL))
    channel = connection.channel()
    channel.basic_qos(prefetch_count=PREFETCH)

    def on_message(channel: Any, method: Any, properties: Any, body: bytes) -> None:
        event = Envelope.model_validate_json(body)
        handled(event.data.sentAt)
        channel.basic_ack(method.delivery_tag)

    channel.basic_consume(QUEUE, on_message)
    channel.start_consuming()


if __name__ == "__main__":
    consume()
