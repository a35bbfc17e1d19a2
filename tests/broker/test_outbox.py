"""An event written with a state is announced if, and only if, that state is kept."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import Session

from rabbitflow import Event, EventError
from rabbitflow.settings import Settings
from rabbitflow.store import EventStore, outbox
from rabbitflow.store.database import Database
from tests.harness.broker import Probe
from tests.harness.command import Command
from tests.harness.waiting import eventually

LONG_S = 60.0

pytestmark = pytest.mark.only_on(
    "rabbitmq", reason="the relay asks the broker for nothing but confirms, tested on both"
)


@pytest.fixture
def relay(settings: Settings, store_url: str, tmp_path: Path) -> Command:
    return Command(settings, tmp_path, RABBITFLOW_DATABASE_URL=store_url)


@pytest.fixture
async def engine(store_url: str) -> AsyncIterator[AsyncEngine]:
    """The user's own database, in which the outbox stands beside the orders."""
    async with EventStore(store_url) as store:
        async with store.engine.begin() as connection:
            await connection.execute(text("CREATE TABLE orders (number integer PRIMARY KEY)"))
        yield store.engine


@contextmanager
def relaying(
    relay: Command, *arguments: str, metrics_port: int = 0, **env: str
) -> Iterator[subprocess.Popen[bytes]]:
    """A relay that runs, and is gone when the block ends."""
    process = relay.start("relay", "--metrics-port", str(metrics_port), *arguments, **env)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def running(relay: Command) -> Iterator[subprocess.Popen[bytes]]:
    with relaying(relay) as process:
        yield process


@pytest.fixture
def tap(probe: Probe) -> str:
    probe.declare_exchange("ORDER_PLACED")
    return probe.tap("ORDER_PLACED")


async def place(session: AsyncSession, number: int, **fields: Any) -> Event[Any]:
    await session.execute(text("INSERT INTO orders VALUES (:number)"), {"number": number})
    return await outbox.add(session, "ORDER_PLACED", {"number": number}, **fields)


async def waiting(engine: AsyncEngine) -> int:
    async with engine.connect() as connection:
        return int(
            (await connection.execute(text("SELECT count(*) FROM rabbitflow_outbox"))).scalar_one()
        )


def numbers(probe: Probe, tap: str) -> list[int]:
    messages = iter(lambda: probe.take(tap), None)
    return [json.loads(body)["data"]["number"] for _, _, body in messages]


async def test_what_is_committed_is_announced_in_order_and_what_is_rolled_back_is_not(
    engine: AsyncEngine, running: subprocess.Popen[bytes], probe: Probe, tap: str
) -> None:
    for number in range(30):
        async with AsyncSession(engine) as session:
            await place(session, number, key=f"order-{number % 3}")
            if number % 5 == 4:
                await session.rollback()
            else:
                await session.commit()
    kept = [number for number in range(30) if number % 5 != 4]
    await eventually(lambda: probe.depth(tap) == len(kept), within_s=LONG_S)
    assert numbers(probe, tap) == kept


async def test_code_without_an_event_loop_writes_into_its_own_transaction_too(
    engine: AsyncEngine, store_url: str, running: subprocess.Popen[bytes], probe: Probe, tap: str
) -> None:
    own = Database.parse(store_url).sync_engine()
    with Session(own) as session, session.begin():
        event = outbox.add_sync(session, "ORDER_PLACED", {"number": 1}, source="shop")
    with own.begin() as connection:
        outbox.add_sync(connection, Event(type="ORDER_PLACED", data={"number": 2}))
    own.dispose()
    await eventually(lambda: probe.depth(tap) == 2, within_s=LONG_S)
    message = probe.take(tap)
    assert message is not None
    assert Event[Any].model_validate_json(message[2]) == event


async def test_what_is_no_event_fails_in_the_transaction_not_in_the_relay(
    engine: AsyncEngine,
) -> None:
    async with AsyncSession(engine) as session:
        with pytest.raises(EventError, match="type"):
            await outbox.add(session, "no type", {})
        with pytest.raises(EventError, match="JSON"):
            await outbox.add(session, "ORDER_PLACED", {"amount": float("nan")})


async def test_a_killed_relay_is_followed_by_the_one_that_stands_by(
    engine: AsyncEngine, relay: Command, probe: Probe, tap: str
) -> None:
    seen: set[int] = set()
    with relaying(relay) as first, relaying(relay):
        for number in range(400):
            async with AsyncSession(engine) as session:
                await place(session, number)
                await session.commit()
            if number == 200:
                await eventually(lambda: probe.depth(tap) > 0, within_s=LONG_S)
                first.kill()

        def all_seen() -> bool:
            seen.update(numbers(probe, tap))
            return len(seen) == 400

        await eventually(all_seen, within_s=LONG_S)


async def test_an_event_that_can_not_be_announced_stays_and_holds_nobody_up(
    engine: AsyncEngine, relay: Command, probe: Probe, tap: str
) -> None:
    for number, padding in enumerate(["", "x" * 2000, ""]):
        async with AsyncSession(engine) as session:
            await outbox.add(session, "ORDER_PLACED", {"number": number, "padding": padding})
            await session.commit()
    with relaying(relay, RABBITFLOW_MAX_BODY_BYTES="1000") as process:
        await eventually(lambda: probe.depth(tap) == 2, within_s=LONG_S)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    assert numbers(probe, tap) == [0, 2]
    async with engine.connect() as connection:
        refused = await connection.execute(text("SELECT refused FROM rabbitflow_outbox"))
        assert "the limit is 1000" in refused.scalar_one()


async def test_the_lag_is_seen_while_the_broker_is_away(
    engine: AsyncEngine, relay: Command
) -> None:
    async with AsyncSession(engine) as session:
        await place(session, 1)
        await session.commit()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with relaying(relay, metrics_port=port, RABBITFLOW_URL="amqp://127.0.0.1:1/") as process:

        def metrics() -> str:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
                    return str(answer.read().decode())
            except OSError:
                return ""

        await eventually(
            lambda: "rabbitflow_outbox_waiting 1.0" in metrics(), within_s=LONG_S, what=metrics
        )
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    assert await waiting(engine) == 1


async def test_several_relays_share_the_work_and_keep_the_order_of_each_key(
    postgres_url: str, settings: Settings, tmp_path: Path, probe: Probe, tap: str
) -> None:
    relay = Command(settings, tmp_path, RABBITFLOW_DATABASE_URL=postgres_url)
    arguments = ("--order", "key", "--batch", "10")
    async with EventStore(postgres_url) as store:
        async with AsyncSession(store.engine) as session:
            for number in range(400):
                data = {"number": number}
                await outbox.add(session, "ORDER_PLACED", data, key=f"key-{number % 7}")
            await session.commit()
        with relaying(relay, *arguments), relaying(relay, *arguments):
            await eventually(lambda: probe.depth(tap) == 400, within_s=LONG_S)
    found = numbers(probe, tap)
    for key in range(7):
        of_key = [number for number in found if number % 7 == key]
        assert of_key == sorted(of_key)
