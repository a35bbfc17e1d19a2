"""What every contestant runs per event: validate as pydantic does, count, note when it was done.

The same few lines for everybody, so that a difference is the framework's.
"""

from __future__ import annotations

import json
import os
import resource
import time
from pathlib import Path

from pydantic import BaseModel


class Item(BaseModel):
    productId: str
    quantity: int


class Order(BaseModel):
    orderId: str
    customerId: str
    amount: int
    currency: str
    items: list[Item]
    note: str = ""


class Envelope(BaseModel):
    """What peers without an event of their own validate: the body of an event."""

    id: str
    type: str
    timestamp: str
    data: Order


EXPECTED = int(os.environ.get("RACE_EVENTS", "0"))
RESULT = os.environ.get("RACE_RESULT", os.devnull)


def cpu_s() -> float:
    """CPU seconds of this process so far."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


class Meter:
    """Counts handled events; with the last one expected it writes how long they took."""

    def __init__(self) -> None:
        self.count = 0
        self._began = 0.0
        self._cpu_began = 0.0

    def handled(self) -> None:
        """Count one. The clock starts with the first."""
        self.count += 1
        if self.count == 1:
            self._began, self._cpu_began = time.time(), cpu_s()
        if self.count == EXPECTED:
            self._write()

    def _write(self) -> None:
        figures = {
            "began": self._began,
            "ended": time.time(),
            "events": self.count,
            "cpu_s": cpu_s() - self._cpu_began,
        }
        path = Path(RESULT)
        written = path.with_suffix(f".{os.getpid()}")
        written.write_text(json.dumps(figures))
        written.rename(path)


meter = Meter()
handled = meter.handled
