"""A million events: a stream is found by the index, not by looking through the table."""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
from pydantic import BaseModel

from rabbitflow import Event
from rabbitflow.store import EventStore
from rabbitflow.store.selection import POSTGRES, SQLITE, Selection

EVENTS = 1_000_000
STREAMS = 2_000
START = datetime(2026, 1, 1, tzinfo=UTC)

# Event n belongs to stream n % STREAMS and happened n seconds after START.
FILL = f"""
WITH RECURSIVE number (n) AS (VALUES (0) UNION ALL SELECT n + 1 FROM number WHERE n + 1 < {EVENTS})
INSERT INTO rabbitflow_events
SELECT n + 1, 'account-' || (n % {STREAMS}), n / {STREAMS} + 1, printf('%036d', n),
    'MONEY_DEPOSITED', 1, ({int(START.timestamp())} + n) * 1000000, 0, '{{"amount":1}}',
    NULL, NULL, NULL, NULL, zeroblob(32)
FROM number
"""


class Balance(BaseModel):
    amount: int = 0


def balance(state: Balance, event: Event[Any]) -> Balance:
    return Balance(amount=state.amount + event.data["amount"])


async def test_as_of_of_one_stream_among_a_million_events_takes_under_50_ms(tmp_path: Any) -> None:
    url = f"sqlite:///{tmp_path}/events.db"
    async with EventStore(url):
        pass
    with closing(sqlite3.connect(f"{tmp_path}/events.db", isolation_level=None)) as connection:
        for pragma in ("journal_mode = OFF", "synchronous = OFF", "cache_size = -200000"):
            connection.execute(f"PRAGMA {pragma}")
        connection.execute("DROP TRIGGER rabbitflow_events_no_replace")  # three look-ups each
        connection.execute(FILL)
    async with EventStore(url, snapshot_every=0) as store:
        until = START + timedelta(seconds=EVENTS // 2)
        took = []
        for stream in ("account-7", "account-1000", "account-1999"):
            began = time.perf_counter()
            state = await store.rebuild(stream, balance, until=until)
            took.append(time.perf_counter() - began)
            assert state.amount == EVENTS // STREAMS // 2
        # The best of three: the machine may be busy with something else.
        assert min(took) < 0.05


async def test_sqlite_reads_a_stream_by_the_index(tmp_path: Any) -> None:
    async with EventStore(f"sqlite:///{tmp_path}/events.db") as store:
        sql, parameters = Selection("a", 5, 9, START).sql(SQLITE, 10)
        rows = await store.journal.fetch(f"EXPLAIN QUERY PLAN {sql}", parameters)
        [plan] = [row[3] for row in rows]
        assert "SEARCH rabbitflow_events USING INDEX" in plan
        assert "(stream=? AND version>? AND version<?)" in plan
        sql, parameters = Selection(None, 5).sql(SQLITE, 10)
        [[*_, plan]] = await store.journal.fetch(f"EXPLAIN QUERY PLAN {sql}", parameters)
        assert plan == "SEARCH rabbitflow_events USING INTEGER PRIMARY KEY (rowid>?)"


async def test_postgresql_reads_a_stream_by_the_index(postgres_url: str) -> None:
    async with EventStore(postgres_url):
        pass
    sql, parameters = Selection("a", 5, 9, START).sql(POSTGRES, 10)
    with psycopg.connect(postgres_url) as connection:
        connection.execute(
            "INSERT INTO rabbitflow_events SELECT n, 'stream-' || n % 100, n / 100 + 1,"
            " n::text, 'E', 1, now(), now(), '{}', NULL, NULL, NULL, NULL, ''"
            " FROM generate_series(1, 20000) AS n"
        )
        connection.execute("ANALYZE rabbitflow_events")
        rows = connection.execute(f"EXPLAIN {sql}", parameters).fetchall()
    plan = "\n".join(line for (line,) in rows)
    assert "Index Scan using rabbitflow_events_stream_version_key" in plan
    assert "Sort" not in plan
