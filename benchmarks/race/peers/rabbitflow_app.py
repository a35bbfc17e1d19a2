"""rabbitflow: ``rabbitflow worker``, a handler whose payload it validates by the annotation."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

from benchmarks.race.meter import CONSUMERS, PREFETCH, Order, handled
from benchmarks.race.payload import EVENT_TYPE, event_id
from rabbitflow import Consumer, Event, Publisher

MODES = ("awaited", "pipelined")


def workers(processes: int) -> list[list[str]]:
    module = "benchmarks.race.peers.rabbitflow_app"
    command = ["-m", "rabbitflow", "worker", module, "--log-level", "WARNING"]
    return [[*command, "--processes", str(processes)]]


def react(name: str) -> Consumer:
    consumer = Consumer(name, prefetch=PREFETCH)

    if "RACE_SYNC" in os.environ:

        @consumer.on("ORDER_PLACED")
        def on_order_in_a_thread(event: Event[Order]) -> None:
            handled(event.data.sentAt)

    else:

        @consumer.on("ORDER_PLACED")
        async def on_order(event: Event[Order]) -> None:
            handled(event.data.sentAt)

    return consumer


# A worker finds the consumers that a module names.
for consumer in CONSUMERS[: int(os.environ.get("RACE_CONSUMERS", "1"))]:
    globals()[consumer] = react(consumer)


class Producer:
    async def __aenter__(self) -> Producer:
        self._publisher = Publisher()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._publisher.close()

    async def send(self, number: int, data: dict[str, Any]) -> None:
        await self._publisher.publish(EVENT_TYPE, data, id=event_id(number))

    async def send_many(self, numbers: Iterable[int], data: dict[str, Any], window: int) -> None:
        events = (Event(id=event_id(number), type=EVENT_TYPE, data=data) for number in numbers)
        await self._publisher.publish_many(events, window=window)
