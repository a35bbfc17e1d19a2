"""Does a broken consumer slow its neighbours? One event type, four consumers, rating breaks.

    make bench-isolation
    python -m benchmarks.isolation [--events 5000] [--rate 200] [--rounds 1] [--json FILE] [PEER…]

Every round goes through all frameworks and scenarios; of several rounds the median is shown. With
--page the table is put into docs/isolation.md. With --json every result is kept as soon as it is
there, and a run that was ended goes on from it.

Every framework runs at its documented defaults. Events are sent at a steady pace, which all of them
keep up with while rating is healthy. Looked at are the other three consumers: how much of what was
sent they handled by the end, and the 99th percentile of the time from sending to handling.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import importlib.metadata
import itertools
import json
import os
import platform
import secrets
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import click
import pika
import pika.exceptions
import psutil
from rich.console import Console
from rich.table import Table

PEERS = ("rabbitflow", "faststream", "celery", "dramatiq", "taskiq")
MODES = ("healthy", "raising", "hanging", "killing", "dead-lettering")
OTHERS = ("payment", "inventory", "email")
URL = os.environ.get("RABBITFLOW_URL", "amqp://guest:guest@localhost:5672/")
WARM_UP_EVENTS = 20
READY_WITHIN_S = 30.0
GRACE_S = 10.0
SILENCE_S = 4.0
SETTLED_AFTER_S = 3.0
SHARED_QUEUE = "shared queue"
"""What the queue of all four consumers is called in ``QUEUES`` where a framework has but one."""

TABLE_BEGINS, TABLE_ENDS = "<!-- the table begins -->", "<!-- the table ends -->"

console = Console(width=150)


@dataclass
class Result:
    """One framework in one scenario.

    Fields:
        handled: of the events sent to the other three consumers, how many they handled.
        expected: how many were sent to them.
        rate: at which they did, in events per second from the first to the last.
        p50_ms, p99_ms: from sending to handling, of those handled.
        rating: what became of the events sent to rating.
        round: in which it was measured, from 1.
    """

    peer: str
    mode: str
    handled: int
    expected: int
    rate: float
    p50_ms: float
    p99_ms: float
    rating: dict[str, int]
    round: int = 1


def run(peer: str, mode: str, events: int, rate: float) -> Result:
    """Run one framework in one scenario, in processes of its own."""
    prefix = f"iso-{secrets.token_hex(3)}"
    with tempfile.TemporaryDirectory() as directory:
        log = Path(directory) / "log"
        environment = {
            **os.environ,
            "BENCH_PREFIX": prefix,
            "BENCH_MODE": mode,
            "BENCH_LOG": str(log),
            "BENCH_URL": URL,
            "RABBITFLOW_URL": URL,
            "RABBITFLOW_NAMESPACE": prefix,
            "RABBITFLOW_STATE_DIR": directory,
            "RABBITFLOW_METRICS_PORT": "0",
            "PYTHONPATH": str(Path.cwd()),
        }
        app = [sys.executable, "-m", "benchmarks.isolation", "--as", peer, "--"]
        described = subprocess.run(
            [*app, "describe"], env=environment, capture_output=True, text=True, check=True
        )
        worker_arguments, queues = json.loads(described.stdout)
        with (Path(directory) / "worker.log").open("wb") as output:
            worker = subprocess.Popen(
                [sys.executable, *worker_arguments],
                env=environment,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
            try:
                _warm_up(app, environment, log)
                send = [*app, "send", str(events), str(rate)]
                subprocess.run(send, env=environment, check=True)
                _until_quiet(log, events)
            finally:
                left = _stop(worker, queues)
                _remove(prefix, queues)
        return _result(peer, mode, events, log, left)


def _warm_up(app: list[str], environment: dict[str, str], log: Path) -> None:
    """Send a few events until the other three have handled some: everybody is up."""
    deadline = time.monotonic() + READY_WITHIN_S
    while True:
        send = [*app, "send", str(-WARM_UP_EVENTS), "100"]
        subprocess.run(send, env=environment, check=True)
        seen = {line.split()[0] for line in log.read_text().splitlines()} if log.exists() else set()
        if seen >= set(OTHERS):
            return
        if time.monotonic() > deadline:
            said = log.with_name("worker.log").read_text(errors="replace")
            raise RuntimeError(f"the worker handles nothing; it says:\n{said[-2000:]}")
        time.sleep(0.5)


def _until_quiet(log: Path, events: int) -> None:
    """Wait until the other three have handled everything and rating does nothing more, or time is
    up."""
    deadline = time.monotonic() + GRACE_S
    seen, last_at = 0, time.monotonic()
    while time.monotonic() < deadline:
        lines = _lines(log)
        counts = Counter(name for name, number, *_ in lines if int(number) >= 0)
        if len(lines) > seen:
            seen, last_at = len(lines), time.monotonic()
        are_done = all(counts[name] >= events for name in OTHERS)
        if are_done and (counts["rating"] >= events or time.monotonic() - last_at > SILENCE_S):
            return
        time.sleep(0.25)


def _lines(log: Path) -> list[list[str]]:
    return [line.split() for line in log.read_text().splitlines()] if log.exists() else []


def _stop(worker: subprocess.Popen[bytes], queues: dict[str, list[str]]) -> dict[str, int]:
    """Kill the worker and return how many messages are still on the broker."""
    processes = [psutil.Process(worker.pid)]
    processes += processes[0].children(recursive=True)
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    worker.wait()
    psutil.wait_procs(processes, timeout=10)
    connection = pika.BlockingConnection(pika.URLParameters(URL))
    # What the dead processes held comes back when the broker has noticed that they are gone, and a
    # retry that is due goes back to the queue, where nobody takes it now: on its way it is counted
    # in neither. So the most that is seen within the time is what is left.
    left = _left(connection, queues)
    last_at = time.monotonic()
    while time.monotonic() < last_at + SETTLED_AFTER_S:
        time.sleep(0.1)
        again = _left(connection, queues)
        if sum(again.values()) > sum(left.values()):
            left, last_at = again, time.monotonic()
    connection.close()
    return left


def _left(connection: pika.BlockingConnection, queues: dict[str, list[str]]) -> dict[str, int]:
    left: dict[str, int] = {}
    for meaning, names in queues.items():
        for name in names:
            channel = connection.channel()
            try:
                found = channel.queue_declare(name, passive=True)
            except pika.exceptions.ChannelClosedByBroker:
                continue
            left[meaning] = left.get(meaning, 0) + found.method.message_count
            channel.close()
    return left


def _remove(prefix: str, queues: dict[str, list[str]]) -> None:
    """Remove what the run left on the broker."""
    connection = pika.BlockingConnection(pika.URLParameters(URL))
    channel = connection.channel()
    names = {name for found in queues.values() for name in found}
    for other in (*OTHERS, "rating"):
        names |= {f"{prefix}.{other}{end}" for end in ("", ".dead", ".workers")}
        names |= {f"{prefix}.{other}.retry.{2**power}s" for power in range(17)}
    names |= {f"{prefix}.events.ORDER_PLACED.log", f"{prefix}.taskiq.delay"}
    for name in names:
        channel.queue_delete(name)
    for name in ("events.ORDER_PLACED", "rabbitflow.control", "orders", "taskiq", "celery"):
        channel.exchange_delete(f"{prefix}.{name}")
    connection.close()


def _result(peer: str, mode: str, events: int, log: Path, left: dict[str, int]) -> Result:
    took_ms: list[float] = []
    first, last = float("inf"), 0.0
    handled: Counter[str] = Counter()
    rated: set[str] = set()
    for name, number, sent_at, handled_at in _lines(log):
        if int(number) < 0:
            continue
        if name == "rating":
            rated.add(number)
            continue
        handled[name] += 1
        first, last = min(first, float(sent_at)), max(last, float(handled_at))
        took_ms.append((float(handled_at) - float(sent_at)) * 1000)
    took_ms.sort()
    span_s = (last - first) if took_ms else float("nan")
    expected = events * len(OTHERS)
    others = sum(min(handled[name], events) for name in OTHERS)
    if SHARED_QUEUE in left:
        # The other consumers' messages wait in it as well.
        left["queue"] = max(0, left.pop(SHARED_QUEUE) - (expected - others))
    fate = {"handled": len(rated), **{name: count for name, count in left.items() if count}}
    gone = events - sum(fate.values())
    if gone > 0:
        fate["gone"] = gone
    return Result(
        peer,
        mode,
        others,
        expected,
        sum(handled.values()) / span_s,
        took_ms[len(took_ms) // 2] if took_ms else float("nan"),
        took_ms[int(len(took_ms) * 0.99)] if took_ms else float("nan"),
        fate,
    )


def medians(results: list[Result]) -> list[Result]:
    """Return one result for each framework and scenario: that of the round whose p99 is the median,
    with the medians of rate and p50."""
    rounds: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        rounds.setdefault((result.peer, result.mode), []).append(result)
    return [
        replace(
            sorted(of_one, key=lambda result: result.p99_ms)[len(of_one) // 2],
            rate=statistics.median(result.rate for result in of_one),
            p50_ms=statistics.median(result.p50_ms for result in of_one),
        )
        for of_one in (rounds.get(one, []) for one in itertools.product(PEERS, MODES))
        if of_one
    ]


async def _send(peer: str, events: int, rate: float) -> None:
    """Send events at a steady pace; fewer than none are warm-up, numbered below zero."""
    module = importlib.import_module(f"benchmarks.peers.{peer}_app")
    async with module.Producer() as producer:
        began = time.perf_counter()
        numbers = range(events) if events > 0 else range(events, 0)
        for sent, number in enumerate(numbers):
            due_s = began + sent / rate - time.perf_counter()
            if due_s > 0:
                await asyncio.sleep(due_s)
            await producer.send(number, time.time())


def markdown(results: list[Result]) -> str:
    """Return the table for docs/isolation.md, each framework against itself while all is well."""
    lines = [
        "| framework | rating is | the others handled | rate, healthy = 1 | p50 | p99 |"
        " p99, healthy = 1 | what became of rating's events |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    healthy = {result.peer: result for result in results if result.mode == "healthy"}
    for result in results:
        fate = ", ".join(f"{count:,} {name}" for name, count in result.rating.items() if count)
        base = healthy[result.peer]
        lines.append(
            f"| {result.peer} | {result.mode} | {result.handled / result.expected:.1%} |"
            f" {result.rate / base.rate:.2f} |"
            f" {result.p50_ms:,.1f} ms | {result.p99_ms:,.1f} ms |"
            f" {result.p99_ms / base.p99_ms:,.2f} | {fate} |"
        )
    return "\n".join(lines)


def show(results: list[Result], events: int, rate: float) -> None:
    """Print the table, each framework against itself while rating is healthy."""
    table = Table(
        *("framework", "rating is", "the others handled", "rate, healthy = 1"),
        *("p50", "p99", "p99, healthy = 1"),
        "what became of rating's events",
        title=f"{events} events at {rate:g}/s, 4 consumers; the other three while rating breaks",
    )
    healthy = {result.peer: result for result in results if result.mode == "healthy"}
    for result in results:
        base = healthy.get(result.peer)
        table.add_row(
            result.peer,
            result.mode,
            f"{result.handled / result.expected:.1%}",
            f"{result.rate / base.rate:,.2f}" if base else "",
            f"{result.p50_ms:,.1f} ms",
            f"{result.p99_ms:,.1f} ms",
            f"{result.p99_ms / base.p99_ms:,.2f}" if base else "",
            ", ".join(f"{count} {name}" for name, count in result.rating.items()),
        )
    console.print(table)


@click.command()
@click.argument("arguments", nargs=-1)
@click.option("--as", "peer")
@click.option("--events", default=5000)
@click.option("--rate", default=200.0)
@click.option("--rounds", default=1)
@click.option("--mode", "modes", multiple=True, type=click.Choice(MODES))
@click.option("--page", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--json", "output", type=click.Path(dir_okay=False, path_type=Path))
def main(
    arguments: tuple[str, ...],
    peer: str | None,
    events: int,
    rate: float,
    rounds: int,
    modes: tuple[str, ...],
    page: Path | None,
    output: Path | None,
) -> None:
    """Run the race, or one part of it as a process of its own."""
    if peer is not None and arguments[0] == "describe":
        module = importlib.import_module(f"benchmarks.peers.{peer}_app")
        click.echo(json.dumps([module.WORKER, module.QUEUES]))
        return
    if peer is not None:
        asyncio.run(_send(peer, int(arguments[1]), float(arguments[2])))
        return
    results = _known(output)
    done = {(result.round, result.peer, result.mode) for result in results}
    for one in itertools.product(range(1, rounds + 1), arguments or PEERS, modes or MODES):
        if one in done:
            continue
        number, name, mode = one
        console.print(f"round {number} of {rounds}: {name}, rating {mode} …")
        results.append(replace(run(name, mode, events, rate), round=number))
        if output is not None:
            output.write_text(json.dumps([asdict(result) for result in results], indent=1))
    results = medians(results)
    show(results, events, rate)
    console.print(conditions())
    if page is not None:
        before, _, rest = page.read_text().partition(TABLE_BEGINS)
        _, _, after = rest.partition(TABLE_ENDS)
        measured = f"Medians of {rounds} rounds. {conditions()}."
        table = f"\n\n{markdown(results)}\n\n{measured}\n\n"
        page.write_text(before + TABLE_BEGINS + table + TABLE_ENDS + after)


def _known(output: Path | None) -> list[Result]:
    """Return the results of a run that was ended before."""
    if output is None or not output.exists():
        return []
    return [Result(**result) for result in json.loads(output.read_text())]


def conditions() -> str:
    """Say what was measured, and on what."""
    packages = ("rabbitflow", "faststream", "celery", "dramatiq", "taskiq", "taskiq-aio-pika")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)
    connection = pika.BlockingConnection(pika.URLParameters(URL))
    broker = connection._impl.server_properties["version"]
    connection.close()
    return (
        f"{versions}; RabbitMQ {broker} on the same machine, Python {platform.python_version()},"
        f" {os.cpu_count()} cores"
    )


if __name__ == "__main__":
    main()
