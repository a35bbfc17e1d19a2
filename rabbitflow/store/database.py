"""The store's database: its URL, and the engine that opens it."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sqlalchemy import create_engine
from sqlalchemy import event as hooks
from sqlalchemy.engine import URL, Engine, make_url
from sqlalchemy.exc import ArgumentError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_random

from rabbitflow.errors import ConfigurationError
from rabbitflow.store.failures import sqlite_code

BUSY_TIMEOUT_S = 30.0
"""How long a writer on SQLite waits for another one's transaction, in seconds."""

SQLITE_PRAGMAS = (
    f"PRAGMA busy_timeout = {int(BUSY_TIMEOUT_S * 1000)}",
    # Readers and the writer don't wait for each other; a commit is on disk when it returns.
    "PRAGMA journal_mode = WAL",
    "PRAGMA synchronous = FULL",
)

_DRIVERS: dict[str, tuple[Literal["sqlite", "postgresql"], str]] = {
    "sqlite": ("sqlite", "sqlite+aiosqlite"),
    "sqlite+aiosqlite": ("sqlite", "sqlite+aiosqlite"),
    "postgres": ("postgresql", "postgresql+psycopg"),
    "postgresql": ("postgresql", "postgresql+psycopg"),
    "postgresql+psycopg": ("postgresql", "postgresql+psycopg"),
}


@dataclass(frozen=True, slots=True, repr=False)
class Database:
    """Where a store lives: ``sqlite:///file.db`` or ``postgresql://user:password@host/name``.

    Fields:
        dialect: which of the two it is.
        url: for SQLAlchemy, with the async driver; it holds the password.
        shown: the URL without its password, for logs and errors.
    """

    dialect: Literal["sqlite", "postgresql"]
    url: URL
    shown: str

    def __repr__(self) -> str:
        return f"Database({self.shown!r})"

    @classmethod
    def parse(cls, url: str) -> Database:
        """Return the database that ``url`` names.

        Raises:
            ConfigurationError: it names none, or a kind that the store can't use.
        """
        try:
            parsed = make_url(url)
            dialect, driver = _DRIVERS[parsed.drivername]
        except (ArgumentError, KeyError, ValueError):
            # The text may hold a password, so it is not shown.
            raise ConfigurationError(
                "not a database the store can use; write sqlite:///file.db"
                " or postgresql://user:password@host:5432/name"
            ) from None
        if dialect == "sqlite" and parsed.database in (None, "", ":memory:"):
            raise ConfigurationError(
                "an event store is kept: name a file, as in sqlite:///events.db"
            )
        return cls(dialect, parsed.set(drivername=driver), shown(parsed))

    @property
    def path(self) -> Path:
        """The file of an SQLite database."""
        return Path(self.url.database or "")

    @property
    def conninfo(self) -> str:
        """What libpq takes: the URL with its password. Never print it."""
        return self.url.set(drivername="postgresql").render_as_string(hide_password=False)

    def engine(self, **options: Any) -> AsyncEngine:
        """Return an SQLAlchemy engine on this database; ``options`` go to SQLAlchemy.

        On SQLite its transactions begin with ``BEGIN IMMEDIATE``: one that reads first and writes
        later would fail, not wait, when another writer came between. The execution option
        ``sqlite_begin="DEFERRED"`` is for those that only read.
        """
        if self.dialect == "postgresql":
            return create_async_engine(self.url, **options)
        engine = create_async_engine(
            self.url, connect_args={"timeout": BUSY_TIMEOUT_S, "isolation_level": None}, **options
        )
        hooks.listen(engine.sync_engine, "connect", _set_pragmas)
        hooks.listen(engine.sync_engine, "begin", _begin)
        return engine

    def sync_engine(self, **options: Any) -> Engine:
        """Return an engine for code without an event loop, as :meth:`engine`."""
        if self.dialect == "postgresql":
            return create_engine(self.url, **options)
        engine = create_engine(
            self.url.set(drivername="sqlite"),
            connect_args={
                "timeout": BUSY_TIMEOUT_S,
                "isolation_level": None,
                "check_same_thread": False,
            },
            **options,
        )
        hooks.listen(engine, "connect", _set_pragmas)
        hooks.listen(engine, "begin", _begin)
        return engine


def shown(url: URL) -> str:
    """Return a database's URL without its password and query, fit to be shown."""
    return url.set(drivername=url.get_backend_name(), password=None, query={}).render_as_string()


def set_pragmas(execute: Callable[[str], object]) -> None:
    """Set up a connection to SQLite, with ``execute`` of it.

    The first one turns a new file into one with a write-ahead log. Whoever opens the file in that
    moment is told that it is locked at once, whatever the busy time-out, where each would wait for
    the other (sqlite.org/c3ref/busy_handler.html); so it is tried again, for ``BUSY_TIMEOUT_S``
    seconds.

    Raises:
        sqlite3.Error: it can't be opened.
    """
    for pragma in SQLITE_PRAGMAS:
        again = Retrying(
            retry=retry_if_exception(_is_locked),
            wait=wait_random(0.005, 0.05),
            stop=stop_after_delay(BUSY_TIMEOUT_S),
            reraise=True,
        )
        again(execute, pragma)


def _is_locked(error: BaseException) -> bool:
    return sqlite_code(error) == sqlite3.SQLITE_BUSY


def _set_pragmas(connection: Any, record: object) -> None:
    cursor = connection.cursor()
    set_pragmas(cursor.execute)
    cursor.close()


def _begin(connection: Any) -> None:
    how = connection.get_execution_options().get("sqlite_begin", "IMMEDIATE")
    connection.exec_driver_sql(f"BEGIN {how}")
