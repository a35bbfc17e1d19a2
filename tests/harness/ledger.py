"""A ledger outside the broker: what handlers in other processes did, in one SQLite file.

Imported by the handlers that tests write, so it knows nothing of the tests.
"""

from __future__ import annotations

import os
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS effects ("
    "consumer TEXT, event_id TEXT, number INTEGER, attempt INTEGER, pid INTEGER, at REAL)"
)


class Effect(NamedTuple):
    """One run of a handler that got as far as its effect."""

    consumer: str
    event_id: str
    number: int
    attempt: int
    pid: int
    at: float


class Ledger:
    """Appends effects and reads them back."""

    def __init__(self, path: Path | str | None = None) -> None:
        self._path = str(path or os.environ["TEST_LEDGER"])
        with closing(self._connect()) as connection:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute(_SCHEMA)
            connection.execute("CREATE INDEX IF NOT EXISTS by_event ON effects (event_id)")
            connection.execute("CREATE INDEX IF NOT EXISTS by_time ON effects (consumer, at)")

    def write(self, consumer: str, event_id: str, number: int = 0, attempt: int = 1) -> None:
        """Write one effect; it is on file when this returns."""
        with closing(self._connect()) as connection:
            row = Effect(consumer, event_id, number, attempt, os.getpid(), time.time())
            connection.execute("INSERT INTO effects VALUES (?, ?, ?, ?, ?, ?)", row)

    def holds(self, consumer: str, event_id: str) -> bool:
        """Whether a consumer's effect of an event is on file."""
        with closing(self._connect()) as connection:
            found = connection.execute(
                "SELECT 1 FROM effects WHERE event_id = ? AND consumer = ?", (event_id, consumer)
            ).fetchone()
        return found is not None

    def of(self, consumer: str, since: float = 0.0) -> list[Effect]:
        """The effects of a consumer after a moment, oldest first."""
        with closing(self._connect()) as connection:
            rows = connection.execute(
                "SELECT * FROM effects WHERE consumer = ? AND at > ? ORDER BY rowid",
                (consumer, since),
            ).fetchall()
        return [Effect(*row) for row in rows]

    def ids(self, consumer: str) -> list[str]:
        """The event ids a consumer handled, in order, again where it did so again."""
        return [effect.event_id for effect in self.of(consumer)]

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self._path, timeout=30, isolation_level=None)
        connection.execute("PRAGMA synchronous = OFF")  # a process may die here, the machine not
        return connection
