"""What a producer waits for: four services called in turn, against one event announced.

    make bench

The services take 100 ms each. Called over HTTP, one after the other, the caller waits for all of
them. Announced as an event, it waits for the broker alone, however many consumers there are and
however slow they are.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import statistics
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import asynccontextmanager, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from rich.console import Console
from rich.table import Table

from rabbitflow import Publisher
from rabbitflow.broker import close, connect, lost_connections, throwaway_channel
from rabbitflow.errors import RabbitflowError
from rabbitflow.settings import Settings, load_settings
from rabbitflow.topology import Names, consumer_topology, control_topology

RUNS = 50
SERVICE_TAKES_S = 0.1
SLOW_TAKES_S = 5.0
ORDER = {"orderId": "ORD-12345", "userId": "USR-789", "amount": 1500, "items": ["item_1"]}

CONSUMER = """
import asyncio
from rabbitflow import Consumer, Event
{name} = Consumer("{name}", concurrency=64)
@{name}.on("ORDER_PLACED")
async def react(event: Event) -> None:
    await asyncio.sleep({takes_s})
"""


class _Service(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        time.sleep(SERVICE_TAKES_S)
        self.send_response(204)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Stay quiet."""


@contextmanager
def services(count: int) -> Iterator[list[str]]:
    """HTTP services on loopback that take 100 ms each; yields their URLs."""
    servers = [ThreadingHTTPServer(("127.0.0.1", 0), _Service) for _ in range(count)]
    for server in servers:
        threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield [f"http://127.0.0.1:{server.server_port}/" for server in servers]
    finally:
        for server in servers:
            server.shutdown()
            server.server_close()


def call_in_turn(urls: list[str], runs: int) -> list[float]:
    """Return how long it took, each time, to call every service and wait for its answer."""
    took = []
    for _ in range(runs):
        began = time.perf_counter()
        for url in urls:
            with urllib.request.urlopen(url) as answer:
                answer.read()
        took.append(time.perf_counter() - began)
    return took


async def announce(settings: Settings, runs: int) -> list[float]:
    """Return how long it took, each time, until the event was confirmed."""
    took = []
    async with Publisher(settings=settings) as publisher:
        await publisher.publish("ORDER_PLACED", ORDER)
        for _ in range(runs):
            began = time.perf_counter()
            await publisher.publish("ORDER_PLACED", ORDER)
            took.append(time.perf_counter() - began)
    return took


@asynccontextmanager
async def consumers(takes_s: list[float]):  # type: ignore[no-untyped-def]
    """A worker with one consumer for each of ``takes_s``; yields the settings to publish with."""
    settings = load_settings(namespace=f"bench-{secrets.token_hex(4)}")
    names = [f"consumer{number}" for number in range(len(takes_s))]
    with tempfile.TemporaryDirectory() as directory:
        package = Path(directory) / "bench_consumers"
        package.mkdir()
        (package / "__init__.py").touch()
        for name, each_s in zip(names, takes_s, strict=True):
            (package / f"{name}.py").write_text(CONSUMER.format(name=name, takes_s=each_s))
        worker = None
        if names:
            worker = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "rabbitflow", "worker", "bench_consumers"),
                *("--shutdown-timeout", "1", "--log-level", "ERROR", "--metrics-port", "0"),
                cwd=directory,
                env={
                    **os.environ,
                    "RABBITFLOW_URL": settings.broker_url,
                    "RABBITFLOW_NAMESPACE": settings.namespace or "",
                },
                stderr=asyncio.subprocess.DEVNULL,
            )
        try:
            await _until_consumed(settings, names)
            yield settings
        finally:
            if worker is not None:
                worker.terminate()
                await worker.wait()
            await _remove(settings, names)


async def _until_consumed(settings: Settings, names: list[str]) -> None:
    waiting = set(names)
    connection = await connect(settings, "rabbitflow benchmark")
    try:
        while waiting:
            for name in sorted(waiting):
                try:
                    async with throwaway_channel(connection, settings) as channel:
                        with lost_connections():
                            queue = Names(settings.namespace).queue(name)
                            found = await channel.queue_declare(queue, passive=True)
                except RabbitflowError:
                    continue
                if found.consumer_count:
                    waiting.discard(name)
            await asyncio.sleep(0.05)
    finally:
        await close(connection)


async def _remove(settings: Settings, names: list[str]) -> None:
    declared = control_topology(settings)
    for name in names or ["nobody"]:
        declared += consumer_topology(name, ["ORDER_PLACED"], [2, 4, 8, 16], settings)
    connection = await connect(settings, "rabbitflow benchmark")
    try:
        async with throwaway_channel(connection, settings) as channel:
            for queue in declared.queues:
                await channel.queue_delete(queue.name)
            for exchange in declared.exchanges:
                await channel.exchange_delete(exchange.name)
    finally:
        await close(connection)


async def main() -> None:
    """Measure and print."""
    table = Table("the producer", "and then", "it waits, median", "p95", title=f"{RUNS} orders")

    def row(how: str, whom: str, took: list[float]) -> None:
        p95 = statistics.quantiles(took, n=20)[-1]
        table.add_row(how, whom, f"{statistics.median(took) * 1000:.1f} ms", f"{p95 * 1000:.1f} ms")

    for count in (1, 4):
        with services(count) as urls:
            row("calls in turn", f"{count} services of 100 ms", call_in_turn(urls, RUNS // 5))
    for takes_s, whom in (
        ([], "nobody listens"),
        ([SERVICE_TAKES_S], "1 consumer of 100 ms"),
        ([SERVICE_TAKES_S] * 4, "4 consumers of 100 ms"),
        ([SERVICE_TAKES_S] * 3 + [SLOW_TAKES_S], "4 consumers, one of 5 s"),
    ):
        async with consumers(takes_s) as settings:
            row("announces an event", whom, await announce(settings, RUNS))
    Console().print(table)


if __name__ == "__main__":
    asyncio.run(main())
