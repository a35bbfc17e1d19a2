"""The eight example services, run by the command: who reacts to what, once, also to a duplicate."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.handlers import Mailbox

from rabbitflow import Event, Publisher
from tests.harness.broker import Probe
from tests.harness.node import free_port
from tests.harness.shop import SERVICES
from tests.harness.waiting import eventually
from tests.harness.workers import Worker

EXAMPLES = Path(__file__).parents[2] / "examples"
REACTIONS = {
    "ORDER_PLACED": {"payment", "inventory", "email", "analytics"},
    "RIDE_COMPLETED": {"payment", "driver", "rating", "analytics", "surge", "notification"},
}


class Shop:
    """What the services wrote into their database."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def rows(self, query: str, *values: str) -> list[Any]:
        """The rows of a query; none before the first service made the tables."""
        if not self.path.exists():
            return []
        with closing(sqlite3.connect(self.path, timeout=30)) as connection:
            try:
                return connection.execute(query, values).fetchall()
            except sqlite3.OperationalError:
                return []

    def reacted(self, event_type: str) -> list[str]:
        """Who reacted, again where one did so again."""
        found = self.rows("SELECT consumer FROM effects WHERE event_type = ?", event_type)
        return sorted(row[0] for row in found)

    def totals(self) -> dict[tuple[str, str], str]:
        """Every running total."""
        return {(name, key): value for name, key, value in self.rows("SELECT * FROM totals")}


@pytest.fixture
def shop(probe: Probe, tmp_path: Path) -> Shop:
    probe.leaves(SERVICES, REACTIONS)
    return Shop(tmp_path / "effects.db")


@pytest.fixture
async def services(worker: Worker, shop: Shop) -> AsyncIterator[Worker]:
    worker.start(modules=("workers",), RABBITFLOW_DEMO_DB=str(shop.path))
    await worker.ready(*SERVICES)
    yield worker


def announce(worker: Worker, event_type: str, path: Path) -> str:
    """Publish with the command, and return the event's id."""
    command = [sys.executable, "-m", "rabbitflow", "publish", event_type, "--data", str(path)]
    done = subprocess.run(
        command, env=worker.environment(), capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


async def all_reacted(shop: Shop, event_type: str) -> None:
    wanted = sorted(REACTIONS[event_type])
    await eventually(
        lambda: shop.reacted(event_type) == wanted,
        within_s=30,
        what=f"{event_type}: {shop.reacted(event_type)}, not {wanted}",
    )


async def test_the_order_and_the_ride_reach_every_service_once(
    services: Worker, shop: Shop, probe: Probe
) -> None:
    probe.declare_exchange("PAYMENT_COMPLETED")
    tap = probe.tap("PAYMENT_COMPLETED")
    order_id = announce(services, "ORDER_PLACED", EXAMPLES / "order.json")
    ride_id = announce(services, "RIDE_COMPLETED", EXAMPLES / "ride.json")
    await all_reacted(shop, "ORDER_PLACED")
    await all_reacted(shop, "RIDE_COMPLETED")
    await eventually(lambda: probe.depth(tap) == 2)
    paid = [json.loads(message[2]) for message in (probe.take(tap), probe.take(tap)) if message]
    assert {event["causation_id"] for event in paid} == {order_id, ride_id}
    assert {event["correlation_id"] for event in paid} == {order_id, ride_id}
    ride_rows = "SELECT announced_at FROM effects WHERE event_type = 'RIDE_COMPLETED'"
    announced_on = shop.rows(ride_rows)[0][0][:10]
    assert shop.totals() == {
        ("orders", "2026-04-03"): "1500",
        ("rides", announced_on): "412.5",
        ("stock", "item_1"): "99",
        ("stock", "item_2"): "99",
        ("paid", "USR-789"): "1912.5",
        ("earnings", "DRV-302"): "330.00",
        ("open ratings", "RIDE-4471"): "USR-789",
        ("rides", "koramangala 2026-04-03T18"): "1",
        ("surge", "koramangala"): "1.0",
    }
    services.signal()
    assert services.exit_code() == 0


async def test_an_event_that_is_delivered_twice_has_its_effects_once(
    services: Worker, shop: Shop, publisher: Publisher, probe: Probe
) -> None:
    event = Event[Any].model_validate_json((EXAMPLES / "order.json").read_bytes())
    await publisher.publish(event)
    await all_reacted(shop, "ORDER_PLACED")
    before = shop.totals()
    await publisher.publish(event)
    for name in REACTIONS["ORDER_PLACED"]:
        await eventually(lambda name=name: probe.depth(probe.names.queue(name)) == 0)
    # Every copy is in a process now, and a worker that stops finishes what it has.
    services.signal()
    assert services.exit_code() == 0
    assert shop.reacted("ORDER_PLACED") == sorted(REACTIONS["ORDER_PLACED"])
    assert shop.totals() == before


async def test_a_declined_card_is_a_dead_letter_of_payment_alone(
    services: Worker, shop: Shop, publisher: Publisher, probe: Probe
) -> None:
    order = {"orderId": "ORD-1", "userId": "USR-1", "amount": 100_001, "items": ["item_9"]}
    await publisher.publish("ORDER_PLACED", order)
    await eventually(lambda: shop.reacted("ORDER_PLACED") == ["analytics", "email", "inventory"])
    await eventually(lambda: probe.depth(probe.names.dead("payment")) == 1)
    assert shop.rows("SELECT * FROM totals WHERE name = 'paid'") == []


async def test_confirmations_and_receipts_go_out_by_smtp(
    worker: Worker, shop: Shop, publisher: Publisher, tmp_path: Path
) -> None:
    mailbox = Mailbox(tmp_path / "mailbox")
    server = Controller(mailbox, hostname="127.0.0.1", port=free_port())
    server.start()
    try:
        worker.start(
            modules=("workers.email", "workers.notification"),
            RABBITFLOW_DEMO_DB=str(shop.path),
            SMTP_URL=f"smtp://127.0.0.1:{server.port}",
        )
        await worker.ready("email", "notification")
        announce(worker, "ORDER_PLACED", EXAMPLES / "order.json")
        announce(worker, "RIDE_COMPLETED", EXAMPLES / "ride.json")
        await eventually(lambda: len(mailbox.mailbox) == 2)
        subjects = sorted(str(mail["Subject"]) for mail in mailbox.mailbox)
        assert subjects == ["Your order ORD-12345", "Your receipt for RIDE-4471"]
        await eventually(lambda: len(shop.rows("SELECT * FROM effects")) == 2)
        assert shop.rows("SELECT * FROM outbox") == []
    finally:
        server.stop()
