"""What was done to the history by hand is refused by the database, or found and named."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Callable
from contextlib import closing
from typing import Any

import psycopg
import pytest

from rabbitflow import Event, EventError, StoreError
from rabbitflow.store import EventStore, Fault, verify

Execute = Callable[[str], None]


@pytest.fixture
def execute(store: EventStore) -> Execute:
    """Runs a statement as somebody with another client would."""

    def run(sql: str) -> None:
        if store.database.dialect == "sqlite":
            with closing(sqlite3.connect(store.database.path)) as connection, connection:
                connection.executescript(sql)
        else:
            with psycopg.connect(store.database.conninfo) as connection:
                connection.execute(sql)

    return run


@pytest.fixture
def tamper(store: EventStore, execute: Execute) -> Execute:
    """Runs a statement as somebody who may also take the triggers away."""
    if store.database.dialect == "sqlite":
        with closing(sqlite3.connect(store.database.path)) as connection:
            triggers = connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'")
            for (name,) in triggers.fetchall():
                connection.execute(f"DROP TRIGGER {name}")
    else:
        for table in ("events", "streams"):
            execute(f"ALTER TABLE rabbitflow_{table} DISABLE TRIGGER ALL")
    return execute


async def fill(store: EventStore) -> None:
    """a: versions 1 to 3 at positions 1, 2, 5; b: 1 and 2 at 3 and 4."""
    await store.append("a", [Event(type="E", data={"n": n}) for n in (1, 2)])
    await store.append("b", [Event(type="E", data={"n": n}) for n in (3, 4)])
    await store.append("a", Event(type="E", data={"n": 5}))


async def faults(store: EventStore, seal: str | None = None) -> list[tuple[Any, ...]]:
    found: list[Fault] = (await verify(store, seal)).faults
    return [(fault.kind, fault.stream, fault.version, fault.position) for fault in found]


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE rabbitflow_events SET data = '{}' WHERE position = 2",
        "DELETE FROM rabbitflow_events WHERE position = 5",
        "DELETE FROM rabbitflow_streams",
        "UPDATE rabbitflow_streams SET version = 1 WHERE stream = 'a'",
    ],
)
async def test_the_database_refuses_to_change_what_happened(
    store: EventStore, execute: Execute, statement: str
) -> None:
    await fill(store)
    with pytest.raises((sqlite3.Error, psycopg.Error), match="append-only"):
        execute(statement)
    assert await faults(store) == []


@pytest.mark.parametrize("table", ["rabbitflow_events", "rabbitflow_streams"])
async def test_postgresql_refuses_to_truncate(postgres_url: str, table: str) -> None:
    async with EventStore(postgres_url) as store:
        await fill(store)
        with psycopg.connect(postgres_url) as connection:
            with pytest.raises(psycopg.Error, match="append-only"):
                connection.execute(f"TRUNCATE {table}")
            connection.rollback()
            # Also in the role that a replication stream is applied in, which skips triggers.
            connection.execute("SET session_replication_role = replica")
            with pytest.raises(psycopg.Error, match="append-only"):
                connection.execute("UPDATE rabbitflow_events SET data = '1'")


async def test_sqlite_refuses_to_replace_an_event(tmp_path: Any) -> None:
    async with EventStore(f"sqlite:///{tmp_path}/events.db") as store:
        await fill(store)
        columns = "stream, version, id, type, schema_version, timestamp, recorded_at, data, hash"
        copied = f"SELECT 9, {columns} FROM rabbitflow_events WHERE position = 1"
        with closing(sqlite3.connect(store.database.path)) as connection:
            for change in (copied, copied.replace(" id,", " 'new',"), copied.replace("9", "1")):
                with pytest.raises(sqlite3.Error, match="append-only"):
                    connection.execute(
                        f"INSERT OR REPLACE INTO rabbitflow_events (position, {columns}) {change}"
                    )


async def test_an_untouched_history_is_whole(store: EventStore) -> None:
    assert (await verify(store)).seal == f"0:{hashlib.sha256().hexdigest()}"
    await fill(store)
    found = await verify(store)
    assert (found.events, found.streams, found.position, found.faults) == (5, 2, 5, [])


@pytest.mark.parametrize(
    "change",
    [
        "data = '{\"n\": 7}'",
        "type = 'F'",
        "source = 'somebody else'",
        "schema_version = 2",
        "id = 'another'",
        "recorded_at = timestamp",
        "hash = hash || hash",
    ],
)
async def test_an_altered_event_is_named(store: EventStore, tamper: Execute, change: str) -> None:
    await fill(store)
    if store.database.dialect == "postgresql":
        change = change.replace("recorded_at = timestamp", "recorded_at = 'epoch'")
    tamper(f"UPDATE rabbitflow_events SET {change} WHERE position = 2")
    assert ("altered", "a", 2, 2) in await faults(store)


async def test_an_event_that_was_altered_with_its_hash_is_missed_by_the_next(
    store: EventStore, tamper: Execute
) -> None:
    await fill(store)
    forged = "'\\x" + "ab" * 32 + "'" if store.database.dialect == "postgresql" else "zeroblob(32)"
    tamper(f"UPDATE rabbitflow_events SET data = '8', hash = {forged} WHERE position = 2")
    assert ("altered", "a", 3, 5) in await faults(store)


async def test_a_last_event_that_was_altered_with_its_hash_is_missed_by_the_noted_end(
    store: EventStore, tamper: Execute
) -> None:
    await fill(store)
    forged = "'\\x" + "ab" * 32 + "'" if store.database.dialect == "postgresql" else "zeroblob(32)"
    tamper(f"UPDATE rabbitflow_events SET data = '8', hash = {forged} WHERE position = 5")
    assert ("altered", "a", 3, None) in await faults(store)


async def test_a_removed_event_is_named(store: EventStore, tamper: Execute) -> None:
    await fill(store)
    tamper("DELETE FROM rabbitflow_events WHERE position = 2")
    assert await faults(store) == [("removed", None, None, 2), ("removed", "a", 3, 5)]


async def test_an_end_that_was_cut_off_is_named(store: EventStore, tamper: Execute) -> None:
    await fill(store)
    tamper("DELETE FROM rabbitflow_events WHERE position = 5")
    assert await faults(store) == [("removed", "a", 3, None)]


async def test_a_stream_that_was_removed_is_named(store: EventStore, tamper: Execute) -> None:
    await fill(store)
    tamper("DELETE FROM rabbitflow_events WHERE stream = 'b'")
    assert ("removed", "b", 1, None) in await faults(store)


async def test_an_inserted_event_is_named(store: EventStore, tamper: Execute) -> None:
    await fill(store)
    columns = "type, schema_version, timestamp, recorded_at, data, hash"
    tamper(
        f"INSERT INTO rabbitflow_events (position, stream, version, id, {columns})"
        f" SELECT 6, 'a', 4, 'forged', {columns} FROM rabbitflow_events WHERE position = 5"
    )
    assert await faults(store) == [("altered", "a", 4, 6), ("inserted", "a", 4, None)]


async def test_a_seal_finds_what_was_written_anew_with_all_its_hashes(
    store: EventStore, tamper: Execute
) -> None:
    await fill(store)
    seal = (await verify(store)).seal
    await store.append("c", Event(type="E", data=6))
    assert await faults(store, seal) == []
    # The whole tail is taken away, its traces too, and the store goes on as if nothing had been.
    tamper("DELETE FROM rabbitflow_events WHERE position > 4")
    tamper("DELETE FROM rabbitflow_streams WHERE stream = 'c'")
    tamper(
        "UPDATE rabbitflow_streams SET version = 2, hash ="
        " (SELECT hash FROM rabbitflow_events WHERE position = 2) WHERE stream = 'a'"
    )
    await store.append("a", Event(type="E", data={"n": 55}))
    assert await faults(store) == []
    assert await faults(store, seal) == [("altered", None, None, 5)]


async def test_a_seal_that_is_none_is_refused(store: EventStore) -> None:
    with pytest.raises(EventError, match="POSITION:HASH"):
        await verify(store, "5")


async def test_reading_an_event_that_was_garbled_says_where_it_is(
    store: EventStore, tamper: Execute
) -> None:
    await fill(store)
    garbled = "data = CAST(x'ff' AS TEXT)" if store.database.dialect == "sqlite" else "id = ''"
    tamper(f"UPDATE rabbitflow_events SET {garbled} WHERE position = 2")
    with pytest.raises(StoreError, match=r"event at position 2 .* store verify"):
        [each async for each in store.read("a")]
    assert ("altered", "a", 2, 2) in await faults(store)
