"""``once=True``: a handler's work and the event's id are committed together."""

from __future__ import annotations

import asyncio

import pytest
from sqlalchemy import text

from rabbitflow import Event, Publisher
from rabbitflow.store import EventStore
from tests.harness.broker import Probe
from tests.harness.waiting import eventually
from tests.harness.workers import Worker

LONG_S = 60.0

PAYMENT = """
    from sqlalchemy import text
    from sqlalchemy.ext.asyncio import AsyncSession
    from sqlalchemy.orm import Session

    payment = Consumer("payment", retry=Retry.fixed(attempts=3, wait=1))
    CHARGE = text("INSERT INTO charges VALUES (:id, :number)")

    @payment.on("ORDER_PLACED", once=True)
    async def charge(event: Event, session: AsyncSession, context: Context) -> None:
        await context.publish("PAYMENT_COMPLETED", {{"number": event.data["number"]}})
        row = {{"id": event.id, "number": event.data["number"]}}
        await session.execute(CHARGE, row)
        {after}

    @payment.on("RIDE_COMPLETED", once=True)
    def charge_rider(event: Event, context: Context, session: Session) -> None:
        session.execute(CHARGE, {{"id": event.id, "number": event.data["number"]}})
        context.publish_sync("PAYMENT_COMPLETED", {{"number": event.data["number"]}})
        {after}
"""


async def charges(store: EventStore) -> list[int]:
    async with store.engine.connect() as connection:
        rows = await connection.execute(text("SELECT number FROM charges ORDER BY number"))
        return [number for (number,) in rows]


async def with_table(store: EventStore) -> None:
    async with store.engine.begin() as connection:
        await connection.execute(text("CREATE TABLE charges (id text, number integer)"))


def start(worker: Worker, store_url: str, after: str = "pass") -> None:
    worker.module("payment", PAYMENT.format(after=after))
    worker.start(RABBITFLOW_DATABASE_URL=store_url)


@pytest.mark.parametrize("event_type", ["ORDER_PLACED", "RIDE_COMPLETED"])
async def test_a_duplicate_has_no_second_effect_and_is_acknowledged(
    worker: Worker,
    publisher: Publisher,
    probe: Probe,
    store: EventStore,
    store_url: str,
    event_type: str,
) -> None:
    await with_table(store)
    tap = _tapped(probe)
    start(worker, store_url)
    await worker.ready("payment")
    events = [Event(type=event_type, data={"number": number}) for number in range(20)]
    await asyncio.gather(*(publisher.publish(event) for event in events * 3))
    await eventually(lambda: probe.depth(probe.names.queue("payment")) == 0, within_s=LONG_S)
    worker.signal()
    assert worker.exit_code() == 0
    assert await charges(store) == list(range(20))
    assert probe.depth(probe.names.queue("payment")) == 0
    follow_ups = [properties.message_id for _, properties, _ in iter(lambda: probe.take(tap), None)]
    assert len(set(follow_ups)) == 20


async def test_a_handler_that_fails_leaves_neither_work_nor_id_nor_follow_up(
    worker: Worker,
    publisher: Publisher,
    probe: Probe,
    store: EventStore,
    store_url: str,
) -> None:
    await with_table(store)
    tap = _tapped(probe)
    start(worker, store_url, "if context.attempt < 3: raise ValueError('not yet')")
    await worker.ready("payment")
    await publisher.publish("RIDE_COMPLETED", {"number": 7})
    await eventually(lambda: probe.depth(tap) == 1, within_s=LONG_S)
    assert await charges(store) == [7]
    worker.signal()
    assert worker.exit_code() == 0
    assert probe.depth(tap) == 1, "a failed attempt announced something"


async def test_a_kill_between_the_commit_and_the_announcement_loses_no_follow_up(
    worker: Worker, publisher: Publisher, probe: Probe, store: EventStore, store_url: str
) -> None:
    await with_table(store)
    tap = _tapped(probe)
    worker.module(
        "payment",
        PAYMENT.format(after="pass")
        + """
    from rabbitflow.store.inbox import DatabaseInbox
    finish = DatabaseInbox._finish
    async def die_once(self, event, follow_ups, *, is_duplicate):
        mark = Path(os.environ["TEST_LEDGER"]).with_name("died")
        if not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        await finish(self, event, follow_ups, is_duplicate=is_duplicate)
    DatabaseInbox._finish = die_once
""",
    )
    worker.start(RABBITFLOW_DATABASE_URL=store_url)
    await worker.ready("payment")
    await publisher.publish("ORDER_PLACED", {"number": 7})
    await eventually(lambda: probe.depth(tap) == 1, within_s=LONG_S)
    assert await charges(store) == [7]
    async with store.engine.connect() as connection:
        left = text("SELECT count(*) FROM rabbitflow_inbox WHERE follow_ups IS NOT NULL")

        async def is_struck_out() -> bool:
            return (await connection.execute(left)).scalar_one() == 0

        await eventually(is_struck_out, within_s=LONG_S)


async def test_old_ids_are_forgotten(worker: Worker, store: EventStore, store_url: str) -> None:
    await with_table(store)
    row = "INSERT INTO rabbitflow_inbox VALUES ('payment', :id, 1, :no, :at, NULL)"
    async with store.engine.begin() as connection:
        await connection.execute(text(row), {"id": "old", "no": False, "at": 1.0})
        await connection.execute(text(row), {"id": "new", "no": False, "at": 4e9})
    start(worker, store_url)

    async def kept() -> list[str]:
        async with store.engine.connect() as connection:
            rows = await connection.execute(text("SELECT event_id FROM rabbitflow_inbox"))
            return [event_id for (event_id,) in rows]

    async def only_new() -> bool:
        return await kept() == ["new"]

    await eventually(only_new, within_s=LONG_S)


async def test_a_handler_with_its_own_way_to_know_a_duplicate_says_so(
    worker: Worker, publisher: Publisher, probe: Probe
) -> None:
    worker.module(
        "payment",
        """
        payment = Consumer("payment", retry=Retry.fixed(attempts=3, wait=1))
        @payment.on("ORDER_PLACED")
        async def charge(event: Event) -> None:
            ledger.write("payment", event.id)
            raise AlreadyHandled("seen before")
        """,
    )
    worker.start()
    await worker.ready("payment")
    event = await publisher.publish("ORDER_PLACED", {})
    await eventually(lambda: worker.ledger.ids("payment") == [event.id], within_s=LONG_S)
    worker.signal()
    assert worker.exit_code() == 0
    assert probe.depth(probe.names.queue("payment")) == 0
    assert probe.depth(probe.names.dead("payment")) == 0
    assert worker.ledger.ids("payment") == [event.id]


def _tapped(probe: Probe) -> str:
    probe.declare_exchange("PAYMENT_COMPLETED")
    return probe.tap("PAYMENT_COMPLETED")
