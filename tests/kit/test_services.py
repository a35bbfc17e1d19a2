"""The example services, tested as their authors would: on the test kit, without a RabbitMQ."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from rabbitflow.testing import Flow
from workers.analytics import analytics
from workers.driver import driver
from workers.email import email
from workers.inventory import inventory
from workers.notification import notification
from workers.payment import LIMIT, payment
from workers.rating import rating
from workers.surge import surge

SERVICES = (analytics, driver, email, inventory, notification, payment, rating, surge)
EXAMPLES = Path(__file__).parents[2] / "examples"


def example(name: str) -> Any:
    given = json.loads((EXAMPLES / name).read_text())
    return given.get("data", given)


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the services keep their effects."""
    path = tmp_path / "effects.db"
    monkeypatch.setenv("RABBITFLOW_DEMO_DB", str(path))
    monkeypatch.delenv("SMTP_URL", raising=False)
    return path


@pytest.fixture
async def flow(shop: Path) -> AsyncIterator[Flow]:
    async with Flow(*SERVICES) as flow:
        yield flow


def total(shop: Path, name: str, key: str) -> str | None:
    with closing(sqlite3.connect(shop)) as connection:
        query = "SELECT value FROM totals WHERE name = ? AND key = ?"
        row = connection.execute(query, (name, key)).fetchone()
    return None if row is None else str(row[0])


async def test_an_order_and_a_ride_reach_those_who_care(flow: Flow) -> None:
    await flow.publish("ORDER_PLACED", example("order.json"))
    await flow.publish("RIDE_COMPLETED", example("ride.json"))
    await flow.settled()
    handled = {service.name: len(flow.handled(service.name)) for service in SERVICES}
    assert handled == {
        "analytics": 2,
        "driver": 1,
        "email": 1,
        "inventory": 1,
        "notification": 1,
        "payment": 2,
        "rating": 1,
        "surge": 1,
    }


async def test_every_payment_is_announced_once_with_its_cause(flow: Flow) -> None:
    order = await flow.publish("ORDER_PLACED", example("order.json"))
    await flow.settled()
    (paid,) = flow.published("PAYMENT_COMPLETED")
    assert paid.causation_id == order.id
    assert paid.data["reference"] == "ORD-12345"


@pytest.mark.parametrize("service", ["payment", "driver", "surge", "analytics"])
async def test_a_duplicate_has_no_second_effect(flow: Flow, shop: Path, service: str) -> None:
    flow.duplicate_next(service)
    await flow.publish("RIDE_COMPLETED", example("ride.json"))
    await flow.settled()
    assert len(flow.handled(service)) == 2
    day = flow.handled("analytics")[0].timestamp.date().isoformat()
    assert total(shop, "paid", "USR-789") == "412.5"
    assert total(shop, "earnings", "DRV-302") == "330.00"
    assert total(shop, "rides", "koramangala 2026-04-03T18") == "1"
    assert total(shop, "rides", day) == "412.5"


async def test_an_order_above_the_limit_is_declined_without_a_retry(flow: Flow) -> None:
    await flow.publish("ORDER_PLACED", {**example("order.json"), "amount": int(LIMIT) + 1})
    await flow.settled()
    (letter,) = flow.dead_letters("payment")
    assert (letter.reason, letter.exception_type, letter.attempt) == ("rejected", "CardDeclined", 1)
    assert len(flow.handled("inventory")) == 1


async def test_demand_raises_the_fares_of_a_zone(flow: Flow, shop: Path) -> None:
    for number in range(10):
        await flow.publish("RIDE_COMPLETED", {**example("ride.json"), "rideId": f"RIDE-{number}"})
    await flow.settled()
    assert total(shop, "surge", "koramangala") == "1.1"


async def test_a_ledger_that_is_locked_is_waited_for_by_retry(
    flow: Flow, shop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts = 0

    def locked_once(*arguments: Any, **options: Any) -> sqlite3.Connection:
        nonlocal attempts
        attempts += 1
        if attempts == 1:
            raise sqlite3.OperationalError("database is locked")
        return connect(*arguments, **options)

    connect = sqlite3.connect
    monkeypatch.setattr("workers.ledger.sqlite3.connect", locked_once)
    await flow.publish("RIDE_COMPLETED", example("ride.json"))
    await flow.settled()
    assert sum(len(flow.handled(service.name)) for service in SERVICES) == 6
    assert all(flow.dead_letters(service.name) == [] for service in SERVICES)
