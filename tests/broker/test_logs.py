"""What a worker writes down: each dead letter once, no success, and whose event a line is about."""

from __future__ import annotations

import json
from typing import Any

from rabbitflow import Event, Publisher
from tests.harness.waiting import eventually
from tests.harness.workers import Worker


def lines(worker: Worker) -> list[dict[str, Any]]:
    return [json.loads(line) for line in worker.log().splitlines()]


async def test_a_json_log_has_a_line_for_each_dead_letter_and_none_for_a_success(
    worker: Worker, publisher: Publisher
) -> None:
    worker.module(
        "payment",
        """
        payment = Consumer("payment", retry=Retry.none())
        @payment.on("ORDER_PLACED")
        async def charge(event: Event) -> None:
            if event.data["number"] < 3:
                raise ValueError(f"number {event.data['number']}")
            ledger.write("payment", event.id)
        """,
    )
    worker.start("--log-format", "json")
    await worker.ready("payment")
    events = [Event(type="ORDER_PLACED", data={"number": number}) for number in range(30)]
    await publisher.publish_many(events)
    await eventually(lambda: len(worker.ledger.ids("payment")) == 27)
    await eventually(lambda: worker.said("dead-lettered") == 3)
    worker.signal()
    assert worker.exit_code() == 0
    told = [line for line in lines(worker) if "event_id" in line]
    assert {line["event_id"] for line in told} == {event.id for event in events[:3]}
    assert len(told) == 3
    for line in told:
        assert line["level"] == "error"
        assert line["consumer"] == "payment"
        assert line["event_type"] == "ORDER_PLACED"
        assert line["attempt"] == 1
        assert line["reason"] == "retries-exhausted"
    assert not any(event.id in worker.log() for event in events[3:])
    assert ":guest@" not in worker.log(), "the broker's URL is written without its password"


async def test_every_logger_names_the_event_in_a_handler_a_thread_and_a_batch(
    worker: Worker, publisher: Publisher
) -> None:
    worker.module(
        "payment",
        """
        import logging
        shop = logging.getLogger("shop")
        payment = Consumer("payment", concurrency=4)
        @payment.on("ORDER_PLACED")
        async def charge(event: Event) -> None:
            await asyncio.sleep(0.01)  # the others log meanwhile
            shop.info("async %s", event.id)
        @payment.on("RIDE_COMPLETED")
        def ride(event: Event) -> None:
            shop.info("thread %s", event.id)
        @payment.on_batch("PAYMENT_COMPLETED", size=2, within=0.2)
        async def paid(events: list[Event]) -> None:
            shop.info("batch %s", events[0].id)
        """,
    )
    worker.start("--log-format", "json")
    await worker.ready("payment")
    kinds = {"ORDER_PLACED": "async", "RIDE_COMPLETED": "thread", "PAYMENT_COMPLETED": "batch"}
    for event_type in ("ORDER_PLACED", "RIDE_COMPLETED"):
        await publisher.publish_many(Event(type=event_type, data={}) for _ in range(8))
    await publisher.publish_many(Event(type="PAYMENT_COMPLETED", data={}) for _ in range(3))
    await eventually(lambda: worker.said('"logger": "shop"') == 18)
    told = [line for line in lines(worker) if line["logger"] == "shop"]
    sizes = []
    for line in told:
        kind, event_id = line["message"].split()
        assert line["consumer"] == "payment"
        if "batch_size" in line:
            sizes.append(line["batch_size"])
            continue
        assert line["event_id"] == line["correlation_id"] == event_id
        assert kinds[line["event_type"]] == kind
        assert line["attempt"] == 1
    assert sizes == [2], "the third was a batch of its own and is named as one event"
