"""A database that is full, busy, gone or newer: said in one sentence, and nothing is half done."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import text

from rabbitflow import ConfigurationError, Event, EventStore, StoreError, StoreUnavailable
from rabbitflow.store import verify
from rabbitflow.store.database import Database
from rabbitflow.store.migration import migrations
from tests.harness.disk import small_disk


def event(size: int = 1) -> Event[Any]:
    return Event(type="E", data="x" * size)


async def test_a_full_disk_fails_the_append_and_leaves_the_store_whole(tmp_path: Path) -> None:
    with small_disk(tmp_path / "small") as disk:
        async with EventStore(f"sqlite:///{disk}/events.db") as store:
            stored = 0
            with pytest.raises(StoreError, match=r"disk .* is full: nothing was stored"):
                while True:
                    await store.append("a", [event(20_000), event(20_000)])
                    stored += 2
            assert stored
            found = await verify(store)
            assert (found.events, found.faults) == (stored, [])
        async with EventStore(f"sqlite:///{disk}/events.db") as store:
            assert await store.version("a") == stored


async def test_a_full_disk_of_postgresql_is_said_to_be_full(postgres_url: str) -> None:
    async with EventStore(postgres_url) as store:
        await store.append("a", event())
        async with await psycopg.AsyncConnection.connect(postgres_url, autocommit=True) as admin:
            await admin.execute(
                "CREATE FUNCTION fill() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
                " RAISE EXCEPTION 'could not extend file' USING ERRCODE = 'disk_full'; END $$"
            )
            await admin.execute(
                "CREATE TRIGGER fill BEFORE INSERT ON rabbitflow_events"
                " FOR EACH ROW EXECUTE FUNCTION fill()"
            )
            with pytest.raises(StoreError, match=r"disk .* is full: nothing was stored"):
                await store.append("a", event())
            await admin.execute("DROP TRIGGER fill ON rabbitflow_events")
        assert (await store.append("a", event())).version == 2
        assert (await verify(store)).faults == []


async def test_a_lost_connection_is_replaced(postgres_url: str) -> None:
    async with EventStore(postgres_url) as store:
        await store.append("a", event())
        store.journal._writer.pgconn.finish()  # type: ignore[attr-defined]
        assert (await store.append("a", event())).version == 2


async def test_a_server_that_ends_connections_fails_no_append(postgres_url: str) -> None:
    async with EventStore(postgres_url) as store:
        await store.append("a", event())
        pid = store.journal._writer.info.backend_pid  # type: ignore[attr-defined]
        with psycopg.connect(postgres_url, autocommit=True) as admin:
            admin.execute("SELECT pg_terminate_backend(%s)", [pid])
        assert (await store.append("a", event())).version == 2


async def test_a_store_that_can_not_be_reached_shows_no_password(tmp_path: Path) -> None:
    url = "postgresql://bank:secret@127.0.0.1:1/bank?sslpassword=hidden"
    with pytest.raises(
        StoreUnavailable, match=r"postgresql://bank:\*\*\*@127.0.0.1:1/bank"
    ) as error:
        async with EventStore(url):
            pass
    assert "secret" not in str(error.value)
    assert "hidden" not in str(error.value)
    assert "secret" not in repr(Database.parse(url))
    with pytest.raises(StoreUnavailable, match="can't be opened"):
        async with EventStore(f"sqlite:///{tmp_path}/no/such/folder/events.db"):
            pass


@pytest.mark.parametrize(
    "url", ["mysql://u:secret@h/d", "secret", "sqlite://", "sqlite:///:memory:"]
)
def test_a_url_of_another_kind_is_refused_without_being_shown(url: str) -> None:
    with pytest.raises(ConfigurationError, match="sqlite:///") as error:
        Database.parse(url)
    assert "secret" not in str(error.value)


async def test_a_slow_database_does_not_stop_the_event_loop(tmp_path: Path) -> None:
    """Another process holds the write lock: the append waits, everything else goes on."""
    async with EventStore(f"sqlite:///{tmp_path}/events.db") as store:
        await store.append("a", event())
        with closing(sqlite3.connect(store.database.path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            waiting = asyncio.create_task(store.append("a", event()))
            longest, began = 0.0, time.monotonic()
            while time.monotonic() - began < 0.5:
                before = time.monotonic()
                assert await store.version("a") == 1
                longest = max(longest, time.monotonic() - before)
            assert not waiting.done()
            other.execute("ROLLBACK")
        assert (await waiting).version == 2
        assert longest < 0.4


async def test_a_cancelled_append_does_not_disturb_the_others(store: EventStore) -> None:
    first = asyncio.create_task(store.append("a", event()))
    others = [asyncio.create_task(store.append("b", event())) for _ in range(5)]
    await asyncio.sleep(0)
    first.cancel()
    assert sorted([(await other).version for other in others]) == [1, 2, 3, 4, 5]


async def test_processes_that_start_together_make_the_tables_once(store_url: str) -> None:
    async def start() -> int:
        async with EventStore(store_url) as store:
            return (await store.append("a", event())).version

    assert sorted(await asyncio.gather(*(start() for _ in range(6)))) == [1, 2, 3, 4, 5, 6]


async def test_a_new_file_that_several_open_at_once_is_opened(tmp_path: Path) -> None:
    """Turning a new file into one with a write-ahead log locks the others out for a moment."""

    async def start(url: str) -> None:
        async with EventStore(url) as store:
            await store.append("a", event())

    for number in range(20):
        url = f"sqlite:///{tmp_path}/{number}.db"
        await asyncio.gather(*(start(url) for _ in range(6)))


async def test_a_store_that_a_newer_rabbitflow_has_changed_is_left_alone(
    store: EventStore, store_url: str
) -> None:
    async with store.engine.begin() as connection:
        await connection.execute(text("INSERT INTO rabbitflow_migrations (name) VALUES ('9999')"))
    with pytest.raises(ConfigurationError, match=r"newer rabbitflow .*9999"):
        async with EventStore(store_url):
            pass


async def test_a_migration_that_fails_leaves_nothing_behind(
    store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = {"0001_good": "CREATE TABLE good (id integer);", "0002_bad": "CREATE TABLE bad (;"}
    monkeypatch.setattr("rabbitflow.store.migration.migrations", lambda dialect: broken)
    with pytest.raises(StoreError, match="refused"):
        async with EventStore(store_url):
            pass
    monkeypatch.undo()
    async with EventStore(store_url) as store, store.engine.connect() as connection:
        applied = await connection.execute(text("SELECT name FROM rabbitflow_migrations"))
        assert {name for (name,) in applied} == set(migrations(store.database.dialect))


async def test_a_store_is_not_made_where_it_should_be_there(store_url: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no event store"):
        async with EventStore(store_url, create=False):
            pass
    assert list(tmp_path.iterdir()) == []


async def test_a_role_that_may_only_append_and_read_is_enough(
    postgres_url: str, postgres_server: str
) -> None:
    async with EventStore(postgres_url) as store:
        url = store.database.url.set(drivername="postgresql")
    schema = str(url.query["options"]).split("=")[1]
    role = f"teller_{schema}"
    with psycopg.connect(postgres_server, autocommit=True) as admin:
        admin.execute(f"CREATE ROLE {role} LOGIN")
        try:
            admin.execute(f"GRANT USAGE ON SCHEMA {schema} TO {role}")
            admin.execute(f"GRANT SELECT ON ALL TABLES IN SCHEMA {schema} TO {role}")
            admin.execute(f"GRANT INSERT ON {schema}.rabbitflow_events TO {role}")
            admin.execute(f"GRANT INSERT, UPDATE ON {schema}.rabbitflow_streams TO {role}")
            theirs = url.set(username=role).render_as_string(hide_password=False)
            async with EventStore(theirs) as restricted:
                assert (await restricted.append("a", event())).version == 1
        finally:
            admin.execute(f"DROP OWNED BY {role}")
            admin.execute(f"DROP ROLE {role}")


async def test_a_store_that_is_not_open_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="not open"):
        await EventStore(f"sqlite:///{tmp_path}/events.db").append("a", event())


async def test_a_file_that_is_no_database_is_said_to_be_none(tmp_path: Path) -> None:
    (tmp_path / "events.db").write_bytes(b"this is no database, and long enough to be seen as such")
    with pytest.raises(StoreError, match="not a database"):
        async with EventStore(f"sqlite:///{tmp_path}/events.db"):
            pass
