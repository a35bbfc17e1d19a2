"""Writer, relay and consumer are killed at random under load: nothing lost, no effect twice."""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from sqlalchemy import text

from rabbitflow.settings import Settings
from rabbitflow.store import EventStore
from tests.harness.broker import Probe
from tests.harness.command import Command
from tests.harness.waiting import eventually
from tests.harness.workers import Worker

FOR_S = float(os.environ.get("RABBITFLOW_FAULTS_FOR_S", "60"))

WRITER = """
import asyncio, sys
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession
from rabbitflow.store import EventStore, outbox

async def main() -> None:
    async with EventStore(sys.argv[1]) as store:
        async def write() -> None:
            while True:
                async with AsyncSession(store.engine) as session:
                    event = await outbox.add(session, "ORDER_PLACED", {"number": 0})
                    await session.execute(
                        text("INSERT INTO orders (id) VALUES (:id)"), {"id": event.id}
                    )
                    await session.commit()
                await asyncio.sleep(0.05)

        await asyncio.gather(*(write() for _ in range(2)))

asyncio.run(main())
"""

PAYMENT = """
    from sqlalchemy import text
    from sqlalchemy.ext.asyncio import AsyncSession

    payment = Consumer("payment", retry=Retry.fixed(attempts=50, wait=1))

    @payment.on("ORDER_PLACED", once=True)
    async def charge(event: Event, session: AsyncSession, context: Context) -> None:
        # No unique key: a second effect would be a second row.
        await session.execute(text("INSERT INTO charges (id) VALUES (:id)"), {"id": event.id})
        await context.publish("PAYMENT_COMPLETED", {"order": event.id})
"""


@pytest.mark.slow
@pytest.mark.parametrize("kills_per_s", [1.0])
async def test_every_committed_order_is_announced_and_charged_exactly_once(
    settings: Settings,
    probe: Probe,
    worker: Worker,
    postgres_url: str,
    tmp_path: Path,
    kills_per_s: float,
) -> None:
    async with EventStore(postgres_url) as store:
        async with store.engine.begin() as connection:
            await connection.execute(text("CREATE TABLE orders (id text PRIMARY KEY)"))
            await connection.execute(text("CREATE TABLE charges (id text)"))
        probe.declare_exchange("ORDER_PLACED")
        probe.declare_exchange("PAYMENT_COMPLETED")
        announced, completed = probe.tap("ORDER_PLACED"), probe.tap("PAYMENT_COMPLETED")
        relay = Command(settings, tmp_path, RABBITFLOW_DATABASE_URL=postgres_url)
        worker.module("payment", PAYMENT)
        worker.start(RABBITFLOW_DATABASE_URL=postgres_url)
        # What is announced before its queue is there is in the log, and not for payment.
        await worker.ready("payment")
        script = tmp_path / "writer.py"
        script.write_text(WRITER)

        def write() -> subprocess.Popen[bytes]:
            environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
            return subprocess.Popen([sys.executable, script, postgres_url], env=environment)

        def relaying() -> subprocess.Popen[bytes]:
            return relay.start("relay", "--metrics-port", "0")

        starts = {"writer": write, "relay": relaying, "standby": relaying}
        running = {name: start() for name, start in starts.items()}
        kills: Counter[str] = Counter()
        try:
            chance = random.Random(7)
            ends_at = time.monotonic() + FOR_S
            while time.monotonic() < ends_at:
                await asyncio.sleep(chance.expovariate(kills_per_s))
                victim = chance.choice([*starts, "payment"])
                kills[victim] += 1
                if victim == "payment":
                    for child in worker.children():
                        child.kill()
                else:
                    running[victim].kill()
                    running[victim].wait()
                    running[victim] = starts[victim]()
            running["writer"].kill()
            running["writer"].wait()
            await _settled(store)
        finally:
            for process in running.values():
                process.kill()
                process.wait()
        orders, charges = await _ids(store, "orders"), await _ids(store, "charges")
    worker.signal()
    worker.exit_code()
    assert len(orders) > FOR_S, f"too little was written to show anything; killed {dict(kills)}"
    assert Counter(charges) == Counter(orders)
    assert _taken(probe, announced) == set(orders)
    follow_ups = _taken(probe, completed)
    assert len(follow_ups) == len(orders)


async def _settled(store: EventStore) -> None:
    """Wait until the outbox is empty and every order is charged, its follow-up announced."""

    async def is_settled() -> bool:
        async with store.engine.connect() as connection:
            left = await connection.execute(
                text(
                    "SELECT (SELECT count(*) FROM rabbitflow_outbox)"
                    " + (SELECT count(*) FROM rabbitflow_inbox WHERE follow_ups IS NOT NULL)"
                    " + (SELECT count(*) FROM orders)"
                    " - (SELECT count(DISTINCT id) FROM charges)"
                )
            )
            return left.scalar_one() == 0

    await eventually(is_settled, within_s=300)


async def _ids(store: EventStore, table: str) -> list[str]:
    async with store.engine.connect() as connection:
        rows = await connection.execute(text(f"SELECT id FROM {table}"))
        return [event_id for (event_id,) in rows]


def _taken(probe: Probe, queue: str) -> set[str]:
    messages = iter(lambda: probe.take(queue), None)
    return {str(properties.message_id) for _, properties, _ in messages}
