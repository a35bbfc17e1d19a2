"""The event store beside pyeventsourcing: the same bank account, the same databases, in one run.

    pip install 'eventsourcing[postgres]==9.5.*'
    python -m benchmarks.store [--rounds 3] [--json FILE] [--postgres URL]

Both run as their documentation says, at their defaults: every append is on disk when it returns,
both refuse a second writer at the same version, and neither uses snapshots here. pyeventsourcing is
called from one thread (from 8 where it says so), we from one event loop. What is measured is what a
user would write: making the events, appending, and rebuilding the account in Python.

As of a time, pyeventsourcing knows versions only, so it is asked for the version of that time.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import secrets
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click
import psycopg
from psycopg import conninfo
from rich.console import Console
from rich.table import Table

from rabbitflow import Event, EventStore
from workers.bank import balance

try:
    from eventsourcing.application import Application
    from eventsourcing.domain import Aggregate, event
except ImportError:
    sys.exit("pip install 'eventsourcing[postgres]==9.5.*' first")

ONE_BY_ONE = 500
BATCHES, BATCH = 60, 100
LONG = 1_000
REBUILDS = 20
WRITERS = 8
START = datetime(2026, 1, 1, tzinfo=UTC)

Times = dict[str, float]
SCENARIOS = {
    "append one by one": "µs each",
    "append 100 at once": "ms each time",
    f"{WRITERS} writers at once, one by one": "µs each",
    "rebuild 1,000 events": "ms",
    "as of the middle of 1,000": "ms",
}


class Account(Aggregate):  # type: ignore[misc]
    """The bank account as pyeventsourcing's tutorial writes it."""

    def __init__(self) -> None:
        self.balance = 0

    @event("Deposited")  # type: ignore[untyped-decorator]
    def deposit(self, amount: int) -> None:
        self.balance += amount


class Stopwatch:
    """Takes the time per step of a block."""

    def __init__(self) -> None:
        self.times: Times = {}

    @contextmanager
    def measure(self, what: str, steps: int) -> Iterator[None]:
        began = time.perf_counter()
        yield
        scale = 1e6 if SCENARIOS[what].startswith("µs") else 1e3
        self.times[what] = (time.perf_counter() - began) / steps * scale


def theirs(environment: dict[str, str]) -> Times:
    """Measure pyeventsourcing."""
    one, many, writers, rebuild, as_of = SCENARIOS
    watch = Stopwatch()
    bank: Application[Any] = Application(environment)
    account = Account()
    bank.save(account)
    with watch.measure(one, ONE_BY_ONE):
        for number in range(ONE_BY_ONE):
            account.deposit(number)
            bank.save(account)
    with watch.measure(many, BATCHES):
        for _ in range(BATCHES):
            batch = Account()
            for number in range(BATCH - 1):
                batch.deposit(number)
            bank.save(batch)

    def write(number: int) -> None:
        own = Account()
        for _ in range(ONE_BY_ONE // WRITERS):
            own.deposit(number)
            bank.save(own)

    with (
        ThreadPoolExecutor(WRITERS) as pool,
        watch.measure(writers, ONE_BY_ONE // WRITERS * WRITERS),
    ):
        list(pool.map(write, range(WRITERS)))

    long = Account()
    for number in range(LONG - 1):
        long.deposit(number)
    bank.save(long)
    with watch.measure(rebuild, REBUILDS):
        for _ in range(REBUILDS):
            found = bank.repository.get(long.id)
    assert found.balance == sum(range(LONG - 1))
    with watch.measure(as_of, REBUILDS):
        for _ in range(REBUILDS):
            bank.repository.get(long.id, version=LONG // 2)
    bank.close()
    return watch.times


def deposit(number: int, second: int | None = None) -> Event[Any]:
    """An event of ours."""
    if second is None:
        return Event(type="MONEY_DEPOSITED", data={"amount": number})
    at = START + timedelta(seconds=second)
    return Event(type="MONEY_DEPOSITED", data={"amount": number}, timestamp=at)


async def ours(url: str) -> Times:
    """Measure rabbitflow."""
    one, many, writers, rebuild, as_of = SCENARIOS
    watch = Stopwatch()
    run = secrets.token_hex(4)
    async with EventStore(url, snapshot_every=0) as store:
        await store.append(f"{run}-account", deposit(0), expected_version=0)
        with watch.measure(one, ONE_BY_ONE):
            for number in range(ONE_BY_ONE):
                await store.append(f"{run}-account", deposit(number), expected_version=number + 1)
        with watch.measure(many, BATCHES):
            for batch in range(BATCHES):
                events = [deposit(number) for number in range(BATCH)]
                await store.append(f"{run}-batch-{batch}", events, expected_version=0)

        async def write(writer: int) -> None:
            for number in range(ONE_BY_ONE // WRITERS):
                await store.append(
                    f"{run}-writer-{writer}", deposit(number), expected_version=number
                )

        with watch.measure(writers, ONE_BY_ONE // WRITERS * WRITERS):
            await asyncio.gather(*map(write, range(WRITERS)))

        await store.append(f"{run}-long", [deposit(n, n) for n in range(LONG)])
        with watch.measure(rebuild, REBUILDS):
            for _ in range(REBUILDS):
                state = await store.rebuild(f"{run}-long", balance)
        assert state.balance == sum(range(LONG))
        until = START + timedelta(seconds=LONG // 2)
        with watch.measure(as_of, REBUILDS):
            for _ in range(REBUILDS):
                await store.rebuild(f"{run}-long", balance, until=until)
    return watch.times


def run_ours(url: str) -> Times:
    """Measure on the event loop that our workers use: uvloop where it is installed."""
    if importlib.util.find_spec("uvloop"):
        import uvloop  # noqa: PLC0415

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(ours(url))
    return asyncio.run(ours(url))


@contextmanager
def sqlite() -> Iterator[tuple[dict[str, str], str]]:
    """Files in one folder; yields what each of the two is given."""
    with tempfile.TemporaryDirectory() as folder:
        environment = {
            "PERSISTENCE_MODULE": "eventsourcing.sqlite",
            "SQLITE_DBNAME": f"{folder}/theirs.db",
        }
        yield environment, f"sqlite:///{folder}/ours.db"


@contextmanager
def postgres(server: str) -> Iterator[tuple[dict[str, str], str]]:
    """A database that is dropped afterwards; yields what each of the two is given."""
    name = f"bench_{secrets.token_hex(4)}"
    with psycopg.connect(server, autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name}")
        given = conninfo.conninfo_to_dict(server)
        user, host = given.get("user", "postgres"), given.get("host", "localhost")
        password, port = given.get("password") or "none", given.get("port") or "5432"
        environment = {
            "PERSISTENCE_MODULE": "eventsourcing.postgres",
            "POSTGRES_DBNAME": name,
            "POSTGRES_HOST": str(host),
            "POSTGRES_PORT": str(port),
            "POSTGRES_USER": str(user),
            "POSTGRES_PASSWORD": str(password),
        }
        try:
            yield environment, f"postgresql://{user}:{password}@{host}:{port}/{name}"
        finally:
            admin.execute(f"DROP DATABASE {name} WITH (FORCE)")


def compare(where: Callable[[], Any], rounds: int) -> dict[str, dict[str, float]]:
    """Return the medians of both, in turn, over some rounds."""
    runs: dict[str, list[Times]] = {"pyeventsourcing": [], "rabbitflow": []}
    for _ in range(rounds):
        with where() as (environment, url):
            runs["pyeventsourcing"].append(theirs(environment))
            runs["rabbitflow"].append(run_ours(url))
    return {
        peer: {what: statistics.median(times[what] for times in each) for what in SCENARIOS}
        for peer, each in runs.items()
    }


@click.command()
@click.option("--rounds", default=3, show_default=True)
@click.option("--json", "output", type=click.Path(path_type=Path), help="Write the figures there.")
@click.option("--postgres", "server", default="postgresql://postgres@localhost/postgres")
def main(rounds: int, output: Path | None, server: str) -> None:
    """Measure and print."""
    results = {
        "SQLite": compare(sqlite, rounds),
        "PostgreSQL": compare(lambda: postgres(server), rounds),
    }
    for database, peers in results.items():
        table = Table("", "pyeventsourcing", "rabbitflow", "times as fast", title=database)
        for what, unit in SCENARIOS.items():
            they, we = peers["pyeventsourcing"][what], peers["rabbitflow"][what]
            table.add_row(what, f"{they:,.1f} {unit}", f"{we:,.1f} {unit}", f"{they / we:.1f}")
        Console(width=110).print(table)
    if output is not None:
        output.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
