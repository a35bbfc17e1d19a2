"""The demo: all eight services run, two events are announced, and everybody reacts."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import sqlite3
import sys
import tempfile
import time
from contextlib import closing, suppress
from datetime import datetime
from pathlib import Path
from uuid import UUID

from rich.console import Console
from rich.table import Column, Table

from rabbitflow.broker import close, connect, lost_connections, throwaway_channel
from rabbitflow.errors import RabbitflowError
from rabbitflow.fallback import broker_or_embedded
from rabbitflow.settings import Settings, load_settings
from rabbitflow.topology import Names, Topology, control_topology, event_topology
from rabbitflow.worker.discovery import discover

READY_WITHIN_S = 30.0
REACTED_WITHIN_S = 30.0
EXAMPLES = Path("examples")
EVENTS = {"ORDER_PLACED": EXAMPLES / "order.json", "RIDE_COMPLETED": EXAMPLES / "ride.json"}
REACTIONS = {("ORDER_PLACED", name) for name in ("payment", "inventory", "email", "analytics")} | {
    ("RIDE_COMPLETED", name)
    for name in ("payment", "driver", "rating", "analytics", "surge", "notification")
}
FOLLOW_UPS = ("PAYMENT_COMPLETED",)

Effect = tuple[str, str, str, float]

console = Console()


class DemoFailed(RabbitflowError):
    """Something the demo promises did not happen in time."""


async def main() -> int:
    """Run the demo; return its exit code."""
    settings = load_settings(namespace=f"demo-{secrets.token_hex(4)}")
    with tempfile.TemporaryDirectory(prefix="rabbitflow-demo-") as directory:
        os.environ.setdefault("RABBITFLOW_DEMO_DB", str(Path(directory) / "effects.db"))
        try:
            async with broker_or_embedded(settings, "rabbitflow demo") as broker:
                console.print(f"Broker: {broker.description}")
                console.print("Starting the eight services: rabbitflow worker workers")
                await _run(broker.settings)
        except RabbitflowError as error:
            console.print(f"rabbitflow demo: {error}", style="red")
            return 1
    return 0


async def _run(settings: Settings) -> None:
    worker = await _command(settings, "worker", "workers", "--metrics-port", "0")
    try:
        await _until_ready(settings, worker)
        for event_type, path in EVENTS.items():
            console.print(f"\nrabbitflow publish {event_type} --data {path}")
            began = time.perf_counter()
            publish = await _command(settings, "publish", event_type, "--data", str(path))
            if await publish.wait() != 0:
                raise DemoFailed(f"{event_type} could not be announced")
            console.print(
                f"announced; the command took {time.perf_counter() - began:.2f} s, start included"
            )
        console.print()
        console.print(_table(await _reactions()))
    finally:
        with suppress(ProcessLookupError):
            worker.send_signal(signal.SIGTERM)
        await worker.wait()
        await _remove(settings)
    console.print("Every service reacted, and none of them knows the others.")


async def _command(settings: Settings, *arguments: str) -> asyncio.subprocess.Process:
    # The URL goes by the environment and never by argv, where everybody can read it.
    environment = {
        **{name: value for name, value in os.environ.items() if name != "RABBITFLOW_URL_FILE"},
        "RABBITFLOW_URL": settings.broker_url,
        "RABBITFLOW_NAMESPACE": settings.namespace or "",
    }
    quiet = ("--log-level", "WARNING") if arguments[0] == "worker" else ()
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "rabbitflow", *arguments, *quiet, env=environment
    )


async def _until_ready(settings: Settings, worker: asyncio.subprocess.Process) -> None:
    """Return when every service consumes from its queue."""
    names = Names(settings.namespace)
    waiting = {consumer for _, consumer in REACTIONS}
    connection = await connect(settings, "rabbitflow demo")
    deadline = time.monotonic() + READY_WITHIN_S
    try:
        while waiting:
            if worker.returncode is not None or time.monotonic() > deadline:
                raise DemoFailed(f"not ready: {', '.join(sorted(waiting))}")
            for consumer in sorted(waiting):
                with suppress(RabbitflowError):  # its queue is not declared yet
                    async with throwaway_channel(connection, settings) as channel:
                        with lost_connections():
                            found = await channel.queue_declare(names.queue(consumer), passive=True)
                    if found.consumer_count:
                        waiting.discard(consumer)
            await asyncio.sleep(0.05)
    finally:
        await close(connection)


async def _reactions() -> list[Effect]:
    """Return what everybody did, once everybody did something."""
    deadline = time.monotonic() + REACTED_WITHIN_S
    while True:
        effects = _effects()
        missing = REACTIONS - {(event_type, consumer) for event_type, consumer, *_ in effects}
        if not missing:
            return effects
        if time.monotonic() > deadline:
            raise DemoFailed(
                "no reaction to "
                + ", ".join(f"{event_type} from {consumer}" for event_type, consumer in missing)
            )
        await asyncio.sleep(0.05)


def _effects() -> list[Effect]:
    path = Path(os.environ["RABBITFLOW_DEMO_DB"])
    if not path.exists():
        return []
    with closing(sqlite3.connect(path, timeout=30)) as connection:
        try:
            rows = connection.execute(
                "SELECT event_type, consumer, what, event_id, handled_at FROM effects"
                " ORDER BY event_type, handled_at"
            ).fetchall()
        except sqlite3.OperationalError:  # the first service is just creating the tables
            return []
    return [
        (event_type, consumer, what, _ms_between(event_id, handled_at))
        for event_type, consumer, what, event_id, handled_at in rows
    ]


def _ms_between(event_id: str, handled_at: str) -> float:
    """Milliseconds from the making of the event, which a UUIDv7 holds, to its effect."""
    made_at_ms = UUID(event_id).int >> 80
    return datetime.fromisoformat(handled_at).timestamp() * 1000 - made_at_ms


def _table(effects: list[Effect]) -> Table:
    table = Table("event", "service", "what it did", Column("after", justify="right"))
    for event_type, consumer, what, after_ms in effects:
        table.add_row(event_type, consumer, what, f"{after_ms:.0f} ms")
    return table


async def _remove(settings: Settings) -> None:
    """Remove what the demo declared: its namespace is used once."""
    discovery = await discover(["workers"])
    declared = Topology()
    for found in discovery.consumers:
        declared += found.topology(settings)
    for event_type in FOLLOW_UPS:
        declared += event_topology(event_type, settings)
    declared += control_topology(settings)
    connection = await connect(settings, "rabbitflow demo")
    try:
        async with throwaway_channel(connection, settings) as channel:
            with lost_connections():
                for queue in declared.queues:
                    await channel.queue_delete(queue.name)
                for exchange in declared.exchanges:
                    await channel.exchange_delete(exchange.name)
    finally:
        await close(connection)


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
