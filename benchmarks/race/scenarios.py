"""The scenarios: each measures one contestant once, in processes of its own."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from benchmarks.race import ground, meter
from benchmarks.race.contestants import Contestant, c_client
from benchmarks.race.meter import CONSUMERS
from benchmarks.race.pages import distinct_bytes
from benchmarks.race.payload import EVENT_TYPE
from rabbitflow.topology import Names

Figures = dict[str, float]
DEADLINE_S = 40.0
MICRO = 1e6


C_CLIENT_PIECES = 20
"""It counts only what it did in all, so a backlog is drained by one run of it after the other."""


class Field:
    """One namespace on the broker, and the processes that run in it."""

    def __init__(self, contestant: Contestant, consumers: int = 1) -> None:
        self.contestant = contestant
        self.consumers = consumers
        self.namespace = f"race-{secrets.token_hex(3)}"
        self.queue = Names(self.namespace).queue(CONSUMERS[0])
        self._directory = tempfile.TemporaryDirectory()
        self.meters = Path(self._directory.name)
        self._processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Field:
        if not self.contestant.owns_queues:
            ground.lay(self.namespace, self.consumers)
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
        for process in self._processes:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        ground.clear(self.namespace, [self.queue], [])
        self._directory.cleanup()

    @property
    def environment(self) -> dict[str, str]:
        """What every process of the field is given."""
        return {
            **os.environ,
            "RABBITFLOW_URL": meter.URL,
            "RABBITFLOW_NAMESPACE": self.namespace,
            "RABBITFLOW_METRICS_PORT": "0",
            "RABBITFLOW_EVENT_LOG": "false",
            "RABBITFLOW_STATE_DIR": str(self.meters),
            "RACE_QUEUE": self.queue,
            "RACE_METER": str(self.meters),
            "RACE_CONSUMERS": str(self.consumers),
            "PYTHONPATH": str(Path.cwd()),
            **dict(self.contestant.environment),
        }

    def fill(self, count: int, size_bytes: int = 0) -> None:
        """Put events where the contestant's consumer will find them."""
        if self.contestant.owns_queues:
            self.produce("awaited", count, size_bytes)
        else:
            ground.fill(self.namespace, count, size_bytes)

    def work(self, processes: int = 1, **further: str) -> list[subprocess.Popen[bytes]]:
        """Start the contestant's consumer."""
        for command in self.contestant.workers(processes):
            self._processes.append(
                subprocess.Popen(
                    command,
                    env={**self.environment, **further},
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    start_new_session=True,
                )
            )
        return self._processes

    def produce(self, mode: str, count: int, size_bytes: int = 0) -> Figures:
        """Run the contestant's publisher to its end; return what it took."""
        module = self.contestant.module
        command = [sys.executable, "-m", "benchmarks.race.producer", module, mode, str(count)]
        environment = {name: v for name, v in self.environment.items() if name != "RACE_METER"}
        done = subprocess.run(
            [*command, str(size_bytes)], env=environment, stdout=subprocess.PIPE, check=True
        )
        figures: Figures = json.loads(done.stdout.splitlines()[-1])
        return figures

    def handled(self, count: int) -> list[meter.Reading]:
        """Return the readings once ``count`` events were handled."""
        deadline = time.monotonic() + DEADLINE_S
        while True:
            readings = meter.read(self.meters)
            done = sum(reading.count for reading in readings)
            if done >= count:
                return readings
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self.contestant.name} handled {done} of {count} in time")
            time.sleep(0.02)


def _rate(readings: list[meter.Reading]) -> Figures:
    count = sum(reading.count for reading in readings)
    began = min(reading.first_at for reading in readings)
    ended = max(reading.last_at for reading in readings)
    cpu_s = sum(reading.cpu_s for reading in readings)
    cpu_count = sum(reading.cpu_count for reading in readings)
    return {
        "rate": (count - len(readings)) / (ended - began),
        "cpu_us": cpu_s / cpu_count * MICRO if cpu_count else float("nan"),
    }


def consume(
    contestant: Contestant, count: int, *, size_bytes: int = 0, processes: int = 1
) -> Figures:
    """Drain a queue of ``count`` events: events a second, and CPU microseconds an event."""
    with Field(contestant) as field:
        if not contestant.module:
            field.fill(count, size_bytes)
            return _c("consume", field.queue, count)
        field.fill(count, size_bytes)
        field.work(processes)
        return _rate(field.handled(count))


def publish(contestant: Contestant, mode: str, count: int, *, size_bytes: int = 0) -> Figures:
    """Publish ``count`` events to an exchange with one queue."""
    with Field(contestant) as field:
        if not contestant.module:
            exchange = Names(field.namespace).exchange(EVENT_TYPE)
            return _c("publish", exchange, count, str(size_bytes or 300))
        took = field.produce(mode, count, size_bytes)
        return {"rate": count / took["seconds"], "cpu_us": took["cpu_s"] / count * MICRO}


def _c(what: str, name: str, count: int, *further: str) -> Figures:
    client = c_client()
    assert client is not None
    command = [str(client), what, *ground.address(), name, str(count), *further]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, timeout=DEADLINE_S)
    took = json.loads(done.stdout)
    rate = (count - 1) / (took["ended"] - took["began"])
    return {"rate": rate, "cpu_us": took["cpu_s"] / count * MICRO}


def fan_out(contestant: Contestant, count: int) -> Figures:
    """Four consumers of one event type, each with ``count`` events in its queue."""
    with Field(contestant, consumers=len(CONSUMERS)) as field:
        field.fill(count)
        field.work()
        return _rate(field.handled(count * len(CONSUMERS)))


def capacity(contestant: Contestant, count: int) -> Figures:
    """Publish and consume at once, as fast as the two go together."""
    with Field(contestant) as field:
        _warm(field)
        before = sum(reading.count for reading in meter.read(field.meters))
        began = time.time()
        field.produce("pipelined", count)
        readings = field.handled(before + count)
        return {"rate": count / (max(reading.last_at for reading in readings) - began)}


def latency(contestant: Contestant, rate: float, seconds: float) -> Figures:
    """From before the publish to within the handler, at a steady pace."""
    count = int(rate * seconds)
    with Field(contestant) as field:
        before = _warm(field, RACE_LATENCY="1")
        field.produce(f"{rate:g}", count)
        field.handled(before + count)
        late = sorted(meter.latencies_s(field.meters))
    half, most = late[len(late) // 2], late[int(len(late) * 0.99)]
    return {"rate": rate, "p50_ms": half * 1000, "p99_ms": most * 1000}


def _warm(field: Field, **further: str) -> int:
    """Start the consumer and return how many events it has handled once it runs."""
    field.fill(50)
    field.work(**further)
    return sum(reading.count for reading in field.handled(50))


def start_up(contestant: Contestant, idle_s: float) -> Figures:
    """From the command to the first handled event; then memory and CPU with nothing to do."""
    with Field(contestant) as field:
        field.fill(1)
        began = time.time()
        processes = field.work()
        (reading, *_) = field.handled(1)
        tree = list(_tree(processes))
        time.sleep(2.0)
        tree = list(_tree(processes))
        cpu_before_s = sum(_cpu_s(process) for process in tree)
        time.sleep(idle_s)
        cpu_s = sum(_cpu_s(process) for process in tree) - cpu_before_s
        return {
            "first_s": reading.first_at - began,
            "idle_mib": sum(_rss(process) for process in tree) / 2**20,
            "idle_distinct_mib": distinct_bytes(process.pid for process in tree) / 2**20,
            "idle_cpu_percent": cpu_s / idle_s * 100,
        }


def memory(contestant: Contestant, count: int) -> Figures:
    """The most memory that its processes hold while they drain a queue."""
    with Field(contestant) as field:
        field.fill(count)
        processes = field.work()
        most = 0
        while sum(reading.count for reading in meter.read(field.meters)) < count:
            most = max(most, sum(_rss(process) for process in _tree(processes)))
            time.sleep(0.1)
        return {"loaded_mib": most / 2**20}


def _tree(processes: list[subprocess.Popen[bytes]]) -> Iterator[psutil.Process]:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            root = psutil.Process(process.pid)
            yield root
            yield from root.children(recursive=True)


def _rss(process: psutil.Process) -> int:
    try:
        resident: int = process.memory_info().rss
    except psutil.NoSuchProcess:
        return 0
    return resident


def _cpu_s(process: psutil.Process) -> float:
    try:
        used = process.cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    seconds: float = used.user + used.system
    return seconds


def drained(contestant: Contestant, count: int) -> list[tuple[float, int]]:
    """Drain a long backlog; return what had been handled after how many seconds."""
    with Field(contestant) as field:
        field.fill(count)
        samples: list[tuple[float, int]] = []
        if not contestant.module:
            for _ in range(C_CLIENT_PIECES):
                took = _c("consume", field.queue, count // C_CLIENT_PIECES)
                seconds, done = samples[-1] if samples else (0.0, 0)
                piece = count // C_CLIENT_PIECES
                samples.append((seconds + piece / took["rate"], done + piece))
            return samples
        field.work()
        (first, *_) = field.handled(1)
        while not samples or samples[-1][1] < count:
            readings = meter.read(field.meters)
            done = sum(reading.count for reading in readings)
            if not samples or done > samples[-1][1]:  # a reading may be torn: it is never locked
                samples.append((time.time() - first.first_at, done))
            time.sleep(0.5)
        return samples
