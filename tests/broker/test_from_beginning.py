"""A consumer that starts with the past gets every event once, while publishers go on."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from rabbitflow import Event, Publisher
from rabbitflow.settings import Settings
from tests.harness.broker import Probe
from tests.harness.waiting import eventually
from tests.harness.workers import Worker

LONG_S = 240.0
"""Ten thousand events take their time on a machine that does other things too."""

HAS_ITS_PAST = "rating has its past"

RATING = """
    rating = Consumer("rating", from_beginning=True, concurrency=8)
    @rating.on("ORDER_PLACED", "RIDE_COMPLETED")
    async def react(event: Event, context: Context) -> None:
        {before}
        ledger.write("replayed" if context.is_replay else "rating", event.id, event.data["number"])
"""


def orders(numbers: range, event_type: str = "ORDER_PLACED") -> list[Event]:  # type: ignore[type-arg]
    return [Event(type=event_type, data={"number": number}) for number in numbers]


def handled(worker: Worker) -> Counter[str]:
    return Counter(worker.ledger.ids("rating") + worker.ledger.ids("replayed"))


@asynccontextmanager
async def publishing(publisher: Publisher) -> AsyncIterator[list[str]]:
    """Two publishers that go on until the block ends; yields the ids of what is confirmed."""
    confirmed: list[str] = []
    is_over = asyncio.Event()

    async def publish(event_type: str) -> None:
        number = 1_000_000
        while not is_over.is_set():
            event = await publisher.publish(event_type, {"number": number})
            confirmed.append(event.id)
            number += 1
            await asyncio.sleep(0.005)  # they go on beside the past, and leave the machine to it

    async with asyncio.TaskGroup() as group:
        group.create_task(publish("ORDER_PLACED"))
        group.create_task(publish("RIDE_COMPLETED"))
        try:
            yield confirmed
        finally:
            is_over.set()


@pytest.fixture
def second(settings: Settings, tmp_path: Path) -> Iterator[Worker]:
    """Another host's worker, with the same ledger."""
    with Worker(settings, tmp_path) as worker:
        worker.output = tmp_path / "second.log"
        yield worker


async def test_a_consumer_born_after_10000_events_gets_every_event_once_while_publishers_go_on(
    worker: Worker, second: Worker, publisher: Publisher
) -> None:
    past = orders(range(10_000))
    await publisher.publish_many(past)
    worker.module("rating", RATING.format(before="pass"))
    async with publishing(publisher) as confirmed:
        # Two hosts with two processes each start at the same time.
        worker.start("--processes", "2")
        second.start("--processes", "2")
        both = (worker, second)
        await eventually(lambda: sum(one.said(HAS_ITS_PAST) for one in both) == 1, within_s=LONG_S)
        seen = len(confirmed)
        await eventually(lambda: len(confirmed) > seen + 100, within_s=LONG_S)
    expected = Counter([event.id for event in past] + confirmed)
    await eventually(lambda: handled(worker).total() >= expected.total(), within_s=LONG_S)
    assert handled(worker) == expected
    assert {event.id for event in past} <= set(worker.ledger.ids("replayed"))
    assert worker.ledger.ids("rating"), "no event came by itself"


async def test_the_past_comes_in_the_order_in_which_it_happened(
    worker: Worker, publisher: Publisher
) -> None:
    for number in range(0, 40, 2):
        await publisher.publish_many(orders(range(number, number + 1)))
        await publisher.publish_many(orders(range(number + 1, number + 2), "RIDE_COMPLETED"))
    worker.module("rating", RATING.format(before="pass")).start("--concurrency", "1")
    await eventually(lambda: handled(worker).total() == 40, within_s=LONG_S)
    assert [effect.number for effect in worker.ledger.of("replayed")] == list(range(40))


async def test_a_consumer_that_has_its_past_does_not_get_it_again(
    worker: Worker, publisher: Publisher, probe: Probe
) -> None:
    past = orders(range(10))
    await publisher.publish_many(past)
    worker.module("rating", RATING.format(before="pass"))
    worker.start()
    await eventually(lambda: worker.said(HAS_ITS_PAST) == 1, within_s=LONG_S)
    worker.signal()
    assert worker.exit_code() == 0
    missed = await publisher.publish("ORDER_PLACED", {"number": 11})
    worker.start()
    await eventually(lambda: missed.id in handled(worker), within_s=LONG_S)
    assert handled(worker) == Counter([event.id for event in past] + [missed.id])
    await eventually(
        lambda: probe.depth(probe.names.backfill("rating")) == -1,
        within_s=LONG_S,
        what="the journal is deleted",
    )


async def test_a_queue_from_before_keeps_what_it_has_and_gets_no_past(
    worker: Worker, publisher: Publisher
) -> None:
    await publisher.publish_many(orders(range(10)))
    module = RATING.format(before="pass")
    worker.module("rating", module.replace("from_beginning=True, ", "")).start()
    await worker.ready("rating")
    worker.signal()
    worker.exit_code()
    worker.module("rating", module).start()
    await worker.ready("rating", times=2)
    event = await publisher.publish("ORDER_PLACED", {"number": 11})
    await eventually(lambda: worker.ledger.ids("rating") == [event.id], within_s=LONG_S)
    assert not worker.ledger.ids("replayed")


async def test_without_the_event_log_it_says_what_to_do(worker: Worker) -> None:
    worker.module("rating", RATING.format(before="pass"))
    worker.start(RABBITFLOW_EVENT_LOG="false")
    assert worker.exit_code() == 78
    assert "rating starts from the beginning, and the event log" in worker.log()
    assert "RABBITFLOW_EVENT_LOG=true" in worker.log()
