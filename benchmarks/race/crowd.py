"""Does an event cost more when there are many consumers and many event types?

RabbitMQ 3.x sets three file handles aside for each quorum queue, so a thousand consumers want a
broker that may open 12,000 files; with Debian's unit it may open 65,536.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pika
import psutil

from benchmarks.race import ground, meter
from benchmarks.race.payload import order
from rabbitflow import Event, Publisher
from rabbitflow.topology import Names

DELIVERIES = 40_000
SIZES = (
    (1, 1, False, DELIVERIES),
    (10, 10, False, DELIVERIES),
    (100, 100, False, DELIVERIES),
    (100, 100, True, DELIVERIES),
    (1000, 100, False, DELIVERIES),
    (1000, 100, False, 10 * DELIVERIES),
)
"""Consumers, event types, whether every consumer hears every type, and deliveries in all."""
READY_WITHIN_S = 240.0
IDLE_S = 20.0
"""Two rounds of every consumer's look at the broker."""


def measure(scale: float) -> list[dict[str, Any]]:
    """Return, for each size, how long the start took, what a delivery cost, and what none does."""
    return [
        _one(consumers, types, all_hear_all, int(deliveries * scale))
        for consumers, types, all_hear_all, deliveries in SIZES
    ]


def _one(consumers: int, types: int, all_hear_all: bool, deliveries: int) -> dict[str, Any]:
    namespace = f"crowd-{secrets.token_hex(3)}"
    names = Names(namespace)
    with tempfile.TemporaryDirectory() as directory:
        environment = {
            **os.environ,
            "RABBITFLOW_URL": meter.URL,
            "RABBITFLOW_NAMESPACE": namespace,
            "RABBITFLOW_EVENT_LOG": "false",
            "RACE_METER": directory,
            "CROWD_CONSUMERS": str(consumers),
            "CROWD_TYPES": str(types),
            **({"CROWD_ALL": "1"} if all_hear_all else {}),
        }
        command = [sys.executable, "-m", "rabbitflow", "worker", "--single-process"]
        began = time.monotonic()
        log = Path(directory) / "worker.log"
        with log.open("wb") as output:
            worker = subprocess.Popen(
                [*command, "benchmarks.race.crowd_app"],
                env=environment,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        try:
            while log.read_text().count("consumes from queue") < consumers:
                if worker.poll() is not None or time.monotonic() - began > READY_WITHIN_S:
                    raise RuntimeError(f"the crowd did not start:\n{log.read_text()[-2000:]}")
                time.sleep(0.1)
            ready_s = time.monotonic() - began
            heard_by = consumers if all_hear_all else max(1, consumers // types)
            asyncio.run(_publish(namespace, types, deliveries // heard_by))
            expected = deliveries // heard_by * heard_by
            readings = _until(Path(directory), expected)
            idle_percent = psutil.Process(worker.pid).cpu_percent(interval=IDLE_S)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(worker.pid, signal.SIGKILL)
            worker.wait()
            _clear(names, consumers, types)
    (reading,) = readings
    return {
        "consumers": consumers,
        "types": types,
        "all": all_hear_all,
        "deliveries": expected,
        "ready_s": ready_s,
        "rate": (reading.count - 1) / (reading.last_at - reading.first_at),
        "cpu_us": reading.cpu_s / reading.cpu_count * 1e6,
        "idle_percent": idle_percent,
    }


async def _publish(namespace: str, types: int, count: int) -> None:
    async with Publisher(settings=ground.settings(namespace)) as publisher:
        await publisher.publish_many(
            Event(type=f"EVENT_{number % types}", data=order()) for number in range(count)
        )


def _until(directory: Path, count: int) -> list[meter.Reading]:
    deadline = time.monotonic() + 120
    while True:
        readings = meter.read(directory)
        if sum(reading.count for reading in readings) >= count:
            return readings
        if time.monotonic() > deadline:
            raise TimeoutError(f"the crowd did not handle {count} deliveries in time")
        time.sleep(0.05)


def _clear(names: Names, consumers: int, types: int) -> None:
    connection = pika.BlockingConnection(pika.URLParameters(meter.URL))
    channel = connection.channel()
    for number in range(consumers):
        name = f"crowd-{number}"
        channel.queue_delete(names.queue(name))
        channel.queue_delete(names.dead(name))
        channel.queue_delete(names.workers(name))
    for kind in range(types):
        channel.exchange_delete(names.exchange(f"EVENT_{kind}"))
    channel.exchange_delete(names.control())
    connection.close()
