"""Announced events are kept in the store, and an audit says what each consumer did with them."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from rabbitflow import Event, Publisher
from rabbitflow.settings import Settings
from rabbitflow.store import EventStore
from tests.harness.broker import Probe
from tests.harness.command import Command
from tests.harness.waiting import eventually
from tests.harness.workers import Worker

LONG_S = 60.0

SERVICES = """
    from sqlalchemy.orm import Session

    payment = Consumer("payment")
    @payment.on("ORDER_PLACED", once=True)
    def charge(event: Event, session: Session) -> None: ...

    email = Consumer("email", retry=Retry.fixed(attempts=2, wait=1))
    @email.on("ORDER_PLACED")
    async def thank(event: Event) -> None:
        raise ConnectionError("no mail today")

    inventory = Consumer("inventory")
    @inventory.on("ORDER_PLACED")
    async def reserve(event: Event) -> None: ...
"""

FOLD = """
def count(state: int, event: object) -> int:
    return state + event.data["amount"]
"""


@pytest.fixture
def rabbitflow(settings: Settings, store_url: str, tmp_path: Path) -> Command:
    (tmp_path / "pyproject.toml").write_text('[tool.rabbitflow]\nmodules = ["services"]\n')
    (tmp_path / "folds.py").write_text(FOLD)
    return Command(
        settings,
        tmp_path,
        RABBITFLOW_DATABASE_URL=store_url,
        TEST_LEDGER=str(tmp_path / "ledger.db"),
    )


async def test_an_audit_joins_the_events_their_state_and_what_each_consumer_did(
    worker: Worker,
    publisher: Publisher,
    probe: Probe,
    store: EventStore,
    store_url: str,
    rabbitflow: Command,
) -> None:
    worker.module("all", SERVICES).start(RABBITFLOW_DATABASE_URL=store_url)
    await worker.ready("payment", "email", "inventory")
    event = await publisher.publish("ORDER_PLACED", {"amount": 5}, key="ORD-1")
    await eventually(lambda: probe.depth(probe.names.dead("email")) == 1, within_s=LONG_S)
    await store.append("order-1", [event, Event(type="ORDER_CHANGED", data={"amount": 2})])

    done = rabbitflow("audit", "order-1", "--fold", "folds:count", "--json")
    placed, changed = json.loads(done.stdout)
    assert (placed["state"], changed["state"]) == (5, 7)
    deeds = {deed["consumer"]: deed for deed in placed["consumers"]}
    assert deeds["payment"]["outcome"] == "handled"
    assert deeds["email"]["outcome"] == "dead-lettered"
    assert deeds["email"]["attempts"] == 2
    assert deeds["email"]["why"] == "retries-exhausted: ConnectionError: no mail today"
    assert deeds["inventory"]["outcome"] == "no trace"
    assert changed["consumers"] == []

    by_id = rabbitflow("audit", event.id, "--consumer", "email", "--json")
    (found,) = json.loads(by_id.stdout)
    assert found["stream"] == "order-1"
    shown = rabbitflow("audit", "order-1", COLUMNS="250")
    assert "retries-exhausted: ConnectionError: no mail today" in shown.stdout
    unknown = rabbitflow("audit", "nothing-7")
    assert (unknown.returncode, unknown.stderr.count("\n")) == (2, 1)


async def test_record_keeps_each_announced_event_once_the_past_included(
    publisher: Publisher,
    probe: Probe,
    store: EventStore,
    rabbitflow: Command,
) -> None:
    past = await publisher.publish("ORDER_PLACED", {"amount": 1}, key="ORD-1")
    stored = Event(type="ORDER_PLACED", data={"amount": 9}, key="ORD-1")
    await store.append("order-1", stored)
    process = rabbitflow.start(
        *("record", "ORDER_PLACED", "--consumer", "rating", "--from-beginning"),
        RABBITFLOW_METRICS_PORT="0",
    )
    try:
        await eventually(lambda: probe.depth(probe.names.queue("rating")) >= 0, within_s=LONG_S)
        await publisher.publish(past)  # again
        await publisher.publish(stored)
        present = await publisher.publish("ORDER_PLACED", {"amount": 2})

        async def recorded() -> list[tuple[str, str]]:
            return [(each.stream, each.event.id) async for each in store.read_all()]

        async def is_recorded() -> bool:
            return present.id in {event_id for _, event_id in await recorded()}

        await eventually(is_recorded, within_s=LONG_S)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
    assert sorted(await recorded()) == sorted(
        [
            ("order-1", stored.id),
            ("recorded-ORD-1", past.id),
            ("recorded-ORDER_PLACED", present.id),
        ]
    )
