"""What every contestant does per event: validate with pydantic, count, note the time.

The same few lines for everybody, so that a difference is the framework's. Counts are kept in a file
mapped into memory, one a process, which the race reads while it runs.
"""

from __future__ import annotations

import mmap
import os
import resource
import threading
import time
from array import array
from pathlib import Path
from struct import Struct
from typing import NamedTuple

from pydantic import BaseModel

URL = os.environ.get("RABBITFLOW_URL", "amqp://guest:guest@localhost:5672/")
QUEUE = os.environ.get("RACE_QUEUE", "race")
PREFETCH = 100
CONSUMERS = ("payment", "inventory", "email", "analytics")

_RECORD = Struct("<qdddd")
_CPU_EVERY = 64


class Item(BaseModel):
    productId: str
    quantity: int


class Order(BaseModel):
    orderId: str
    customerId: str
    amount: int
    currency: str
    items: list[Item]
    sentAt: float = 0.0
    note: str = ""


class Envelope(BaseModel):
    """The body of an event, for those who have no event of their own."""

    id: str
    type: str
    timestamp: str
    data: Order


class Reading(NamedTuple):
    """One process: how many events, first and last at, CPU seconds from the first on."""

    count: int
    first_at: float
    last_at: float
    cpu_s: float
    cpu_count: float


class Meter:
    """Counts the events of one process, and with ``RACE_LATENCY`` how long each was on its way."""

    def __init__(self) -> None:
        directory = os.environ.get("RACE_METER")
        self._lock = threading.Lock()
        self._count = 0
        self._first_at = self._cpu_first_s = self._cpu_s = 0.0
        self._cpu_count = 0
        self._late: array[float] | None = None
        self._map: mmap.mmap | None = None
        if directory is not None:
            path = Path(directory) / f"{os.getpid()}.meter"
            path.write_bytes(bytes(_RECORD.size))
            with path.open("r+b") as file:
                self._map = mmap.mmap(file.fileno(), _RECORD.size)
            if "RACE_LATENCY" in os.environ:
                self._late = array("d")
                self._late_path = path.with_suffix(".late")

    def handled(self, sent_at: float = 0.0) -> None:
        """Count one event, in whichever thread."""
        with self._lock:
            self._handled(sent_at)

    def _handled(self, sent_at: float) -> None:
        now = time.time()
        if not self._count:
            self._first_at, self._cpu_first_s = now, _cpu_s()
        self._count += 1
        if not self._count % _CPU_EVERY:
            self._cpu_s, self._cpu_count = _cpu_s() - self._cpu_first_s, self._count
        if self._map is not None:
            _RECORD.pack_into(
                self._map, 0, self._count, self._first_at, now, self._cpu_s, self._cpu_count
            )
        if self._late is not None and sent_at:
            self._late.append(now - sent_at)
            if not len(self._late) % 50:
                self._late_path.write_bytes(self._late.tobytes())


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def read(directory: Path) -> list[Reading]:
    """Return what the processes have counted so far, those that have counted nothing left out."""
    readings = []
    for path in directory.glob("*.meter"):
        record = path.read_bytes()
        if len(record) == _RECORD.size:
            reading = Reading(*_RECORD.unpack(record))
            if reading.count:
                readings.append(reading)
    return readings


def latencies_s(directory: Path) -> list[float]:
    """Return how long the events were on their way, as far as it was written down."""
    late = array("d")
    for path in directory.glob("*.late"):
        late.frombytes(path.read_bytes())
    return list(late)


_meter: Meter | None = None


def handled(sent_at: float = 0.0) -> None:
    """Count one event of this process; a forked worker counts for itself."""
    global _meter, _pid
    if _meter is None or _pid != os.getpid():
        with _making:
            if _meter is None or _pid != os.getpid():
                _meter, _pid = Meter(), os.getpid()
    _meter.handled(sent_at)


_pid = 0
_making = threading.Lock()
