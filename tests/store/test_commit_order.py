"""Writers in other processes, a reader that follows: nothing lost, skipped or out of order."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import psycopg

from rabbitflow import Event
from rabbitflow.store import EventStore, Recorded, verify
from rabbitflow.store.postgres import listener_name

WRITERS = 8
EVENTS = 20_000
PER_WRITER = EVENTS // WRITERS
ALL_WITHIN_S = 120.0

WRITER = """
import asyncio, random, sys
from rabbitflow import ConcurrencyError, Event
from rabbitflow.store import EventStore

async def main(url, writer, count):
    chance = random.Random(writer)
    async with EventStore(url) as store:
        number = 0
        while number < count:
            size = min(chance.choice((1, 5, 50, 100)), count - number)
            events = [
                Event(type="WRITTEN", data={"writer": writer, "number": number + n})
                for n in range(size)
            ]
            # Some of them to a stream that all writers share and must agree on.
            if chance.random() < 0.3:
                stream = "shared"
                while True:
                    try:
                        seen = await store.version(stream)
                        await store.append(stream, events, expected_version=seen)
                        break
                    except ConcurrencyError:
                        continue
            else:
                await store.append(f"writer-{writer}", events)
            number += size

asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
"""


@asynccontextmanager
async def writers(url: str, count: int) -> AsyncIterator[list[asyncio.subprocess.Process]]:
    processes = [
        await asyncio.create_subprocess_exec(
            sys.executable, "-c", WRITER, url, str(writer), str(count), stderr=-1
        )
        for writer in range(WRITERS)
    ]
    try:
        yield processes
        for process in processes:
            _, errors = await process.communicate()
            assert process.returncode == 0, errors.decode()
    finally:
        for process in processes:
            if process.returncode is None:
                process.kill()
                await process.wait()


async def follow(store: EventStore, count: int) -> list[Recorded]:
    seen = []
    async for recorded in store.subscribe():
        seen.append(recorded)
        if len(seen) == count:
            break
    return seen


def check(seen: list[Recorded], per_writer: int) -> None:
    assert [recorded.position for recorded in seen] == list(range(1, len(seen) + 1))
    numbers: dict[int, list[int]] = {writer: [] for writer in range(WRITERS)}
    versions: dict[str, int] = {}
    for recorded in seen:
        numbers[recorded.event.data["writer"]].append(recorded.event.data["number"])
        assert recorded.version == versions.get(recorded.stream, 0) + 1
        versions[recorded.stream] = recorded.version
    assert all(written == list(range(per_writer)) for written in numbers.values())


async def commit_slowly(postgres_url: str) -> None:
    """Let some commits take their time after their positions were given. Without the lock, a reader
    that follows would see later positions first, and never come back for these."""
    async with await psycopg.AsyncConnection.connect(postgres_url, autocommit=True) as admin:
        await admin.execute(
            "CREATE FUNCTION dawdle() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
            " PERFORM pg_sleep(random() * 0.02); RETURN NULL; END $$"
        )
        await admin.execute(
            "CREATE CONSTRAINT TRIGGER dawdle AFTER INSERT ON rabbitflow_events"
            " DEFERRABLE INITIALLY DEFERRED FOR EACH ROW WHEN (NEW.position % 40 = 0)"
            " EXECUTE FUNCTION dawdle()"
        )


async def test_a_reader_sees_every_event_of_eight_writers_in_one_order(
    store: EventStore, store_url: str
) -> None:
    if store.database.dialect == "postgresql":
        await commit_slowly(store_url)
    async with EventStore(store_url) as another, asyncio.timeout(ALL_WITHIN_S):
        async with writers(store_url, PER_WRITER):
            seen, also_seen = await asyncio.gather(follow(store, EVENTS), follow(another, EVENTS))
        check(seen, PER_WRITER)
        assert also_seen == seen
        assert (await verify(store)).faults == []


async def test_a_transaction_that_is_not_committed_holds_back_the_later_ones(
    postgres_url: str,
) -> None:
    """Somebody appends in a transaction of his own and does not commit yet."""
    async with EventStore(postgres_url) as store:
        await store.append("before", Event(type="E", data=1))
        async with await psycopg.AsyncConnection.connect(postgres_url) as slow:
            await slow.execute(
                "SELECT rabbitflow_append('slow', 0, now(), %s::json)",
                [
                    '[{"id": "1", "type": "E", "schema_version": 1, "data": "1", "digest": "",'
                    ' "timestamp": "2026-03-01T00:00Z"}]'
                ],
            )
            later = asyncio.create_task(store.append("later", Event(type="E", data=2)))
            done, _ = await asyncio.wait([later], timeout=0.3)
            assert not done
            assert [each.stream async for each in store.read_all()] == ["before"]
            await slow.commit()
        assert (await later).position == 3
        assert [each.stream async for each in store.read_all()] == ["before", "slow", "later"]


async def test_a_subscription_goes_on_from_where_it_was(store: EventStore) -> None:
    await store.append("a", [Event(type="E", data=n) for n in range(3)])
    got: list[Any] = []

    async def listen() -> None:
        async for recorded in store.subscribe(from_position=3):
            got.append(recorded.event.data)
            if recorded.event.data == 5:
                return

    listening = asyncio.create_task(listen())
    for number in range(3, 6):
        await store.append("a", Event(type="E", data=number))
    async with asyncio.timeout(10):
        await listening
    assert got == [2, 3, 4, 5]


async def test_a_subscription_to_some_types_sees_only_those(store: EventStore) -> None:
    await store.append("a", [Event(type=f"E{n % 3}", data=n) for n in range(9)])
    got = []
    async with asyncio.timeout(10):
        async for recorded in store.subscribe(types=["E0", "E2"]):
            got.append(recorded.event.data)
            if len(got) == 6:
                break
    assert got == [0, 2, 3, 5, 6, 8]


async def test_a_subscription_hears_of_another_process_at_once(postgres_url: str) -> None:
    """By LISTEN and NOTIFY: well before the next look, which is here once an hour."""
    async with EventStore(postgres_url) as store, EventStore(postgres_url) as other:
        store.journal.poll_s = 3600
        following = asyncio.create_task(follow(store, 2))
        async with asyncio.timeout(20):
            await other.append("a", Event(type="E", data=1))
            await other.append("a", Event(type="E", data=2))
            assert [each.event.data for each in await following] == [1, 2]


async def test_the_notifications_come_back_after_their_connection_was_lost(
    postgres_url: str,
) -> None:
    async with EventStore(postgres_url) as store:
        store.journal.poll_s = 0.2
        following = asyncio.create_task(follow(store, 3))
        await store.append("a", Event(type="E", data=1))
        async with await psycopg.AsyncConnection.connect(postgres_url, autocommit=True) as admin:
            ended = await admin.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE application_name = %s",
                [listener_name()],
            )
            await ended.fetchall()
        await store.append("a", [Event(type="E", data=2), Event(type="E", data=3)])
        async with asyncio.timeout(20):
            assert [each.event.data for each in await following] == [1, 2, 3]
