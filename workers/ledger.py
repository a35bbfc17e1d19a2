"""Where the example services keep their effects: one SQLite file, each effect once per event."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rabbitflow import Context, Event

SCHEMA = """
CREATE TABLE IF NOT EXISTS effects (
    consumer TEXT NOT NULL, event_id TEXT NOT NULL, event_type TEXT NOT NULL,
    announced_at TEXT NOT NULL, handled_at TEXT NOT NULL, what TEXT NOT NULL,
    PRIMARY KEY (consumer, event_id)
);
CREATE TABLE IF NOT EXISTS totals (
    name TEXT NOT NULL, key TEXT NOT NULL, value TEXT NOT NULL, PRIMARY KEY (name, key)
);
CREATE TABLE IF NOT EXISTS outbox (
    event_id TEXT PRIMARY KEY, recipient TEXT NOT NULL, subject TEXT NOT NULL, body TEXT NOT NULL
);
"""


def database() -> Path:
    """The file of RABBITFLOW_DEMO_DB, or one below the current directory."""
    return Path(os.environ.get("RABBITFLOW_DEMO_DB", ".demo/effects.db"))


@contextmanager
def transaction() -> Iterator[sqlite3.Connection]:
    """A transaction that sees no other writer; everything in it is kept, or nothing."""
    path = database()
    path.parent.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(path, timeout=30, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("BEGIN IMMEDIATE")
        try:
            for statement in SCHEMA.split(";"):
                connection.execute(statement)
            yield connection
        except BaseException:
            connection.execute("ROLLBACK")
            raise
        connection.execute("COMMIT")


def record(connection: sqlite3.Connection, event: Event[Any], context: Context, what: str) -> bool:
    """Note what ``context.consumer`` did about ``event``; False where it did so before."""
    written = connection.execute(
        "INSERT OR IGNORE INTO effects VALUES (?, ?, ?, ?, ?, ?)",
        (
            context.consumer,
            event.id,
            event.type,
            event.timestamp.isoformat(),
            datetime.now(UTC).isoformat(),
            what,
        ),
    )
    return written.rowcount == 1


def total(connection: sqlite3.Connection, name: str, key: str, default: str = "0") -> str:
    """Return a running total."""
    row = connection.execute(
        "SELECT value FROM totals WHERE name = ? AND key = ?", (name, key)
    ).fetchone()
    return default if row is None else str(row[0])


def set_total(connection: sqlite3.Connection, name: str, key: str, value: object) -> None:
    """Keep a running total."""
    connection.execute("INSERT OR REPLACE INTO totals VALUES (?, ?, ?)", (name, key, str(value)))
