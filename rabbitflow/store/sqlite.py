"""The journal in an SQLite file: one thread writes, a few read, the event loop never waits."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any

from rabbitflow.errors import ConcurrencyError, DuplicateEvent, StoreError
from rabbitflow.store.bell import Bell
from rabbitflow.store.database import BUSY_TIMEOUT_S, Database, set_pragmas
from rabbitflow.store.failures import store_failure, store_failures
from rabbitflow.store.journal import BATCH_APPENDS, Append, Appended, unavailable
from rabbitflow.store.recorded import NO_HASH, Row, chained
from rabbitflow.store.selection import SQLITE

READERS = 4

_HEAD = "SELECT version, hash FROM rabbitflow_streams WHERE stream = ?"
_LAST_POSITION = "SELECT coalesce(max(position), 0) FROM rabbitflow_events"
_INSERT = (
    f"INSERT INTO rabbitflow_events ({', '.join(Row._fields)})"
    f" VALUES ({', '.join('?' * len(Row._fields))})"
)
_MOVE_HEAD = (
    "INSERT INTO rabbitflow_streams (stream, version, hash) VALUES (?, ?, ?)"
    " ON CONFLICT (stream) DO UPDATE SET version = excluded.version, hash = excluded.hash"
)

Outcome = Appended | Exception
Waiting = tuple[Append, asyncio.Future[Outcome]]


class SqliteJournal:
    """See ``journal.Journal``. Works on ``sqlite3`` itself: an async driver hops to its thread and
    back for every statement, which costs more than the statements; here an append is one hop."""

    dialect = SQLITE
    poll_s = 0.1

    def __init__(self, database: Database) -> None:
        self.bell = Bell()
        self._database = database
        self._waiting: SimpleQueue[Waiting | None] = SimpleQueue()
        self._writing: threading.Thread | None = None
        self._reading = ThreadPoolExecutor(READERS, thread_name_prefix="rabbitflow-store-reader")
        self._writer: sqlite3.Connection | None = None
        self._readers: list[sqlite3.Connection] = []

    async def append(self, append: Append) -> Appended:
        """See ``journal.Journal``."""
        loop = asyncio.get_running_loop()
        if self._writing is None:
            # A daemon, so that a store that nobody closed does not keep its process from ending.
            self._writing = threading.Thread(
                target=self._write, args=(loop,), name="rabbitflow-store-writer", daemon=True
            )
            self._writing.start()
        outcome: asyncio.Future[Outcome] = loop.create_future()
        self._waiting.put((append, outcome))
        result = await outcome
        if isinstance(result, Exception):
            raise result
        return result

    async def fetch(self, sql: str, parameters: Sequence[Any]) -> list[Any]:
        """See ``journal.Journal``."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._reading, self._read, sql, parameters)

    async def listen(self) -> None:
        """SQLite tells nobody of a commit in another process; that is what ``poll_s`` is for."""

    async def close(self) -> None:
        """See ``journal.Journal``."""
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(None, self._close)

    def _close(self) -> None:
        if self._writing is not None:
            self._waiting.put(None)
            self._writing.join()
        self._reading.shutdown()
        for connection in (*self._readers, *([self._writer] if self._writer else [])):
            connection.close()

    # Below here: in the threads.

    def _read(self, sql: str, parameters: Sequence[Any]) -> list[Any]:
        with store_failures(self._database.shown):
            connection = self._readers.pop() if self._readers else self._connect("query_only = ON")
            try:
                return connection.execute(sql, parameters).fetchall()
            except sqlite3.OperationalError as error:
                if "decode" not in str(error):
                    raise
                # Somebody wrote bytes that are no text; they must be read to be found.
                connection.text_factory = _decoded
                return connection.execute(sql, parameters).fetchall()
            finally:
                connection.text_factory = str
                self._readers.append(connection)

    def _connect(self, *pragmas: str) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self._database.path,
            timeout=BUSY_TIMEOUT_S,
            isolation_level=None,
            check_same_thread=False,
        )
        set_pragmas(connection.execute)
        for pragma in pragmas:
            connection.execute(f"PRAGMA {pragma}")
        return connection

    def _write(self, loop: asyncio.AbstractEventLoop) -> None:
        """Commit the appends that wait by now together, until there is a None."""
        waiting = self._waiting
        while (first := waiting.get()) is not None:
            batch = [first]
            while waiting.qsize() and len(batch) < BATCH_APPENDS:
                another = waiting.get()
                if another is None:
                    waiting.put(None)
                    break
                batch.append(another)
            try:
                outcomes = self._commit([append for append, _ in batch])
            except Exception as error:
                outcomes = [error] * len(batch)
            try:
                loop.call_soon_threadsafe(self._tell, [future for _, future in batch], outcomes)
            except RuntimeError:
                return  # the event loop is closed: nobody waits any more

    def _tell(self, futures: list[asyncio.Future[Outcome]], outcomes: list[Outcome]) -> None:
        for future, outcome in zip(futures, outcomes, strict=True):
            if not future.done():
                future.set_result(outcome)
        self.bell.ring()

    def _commit(self, batch: Sequence[Append]) -> list[Outcome]:
        try:
            if self._writer is None:
                self._writer = self._connect()
            return self._transaction(self._writer, batch)
        except (sqlite3.Error, StoreError) as error:
            if self._writer is not None and self._writer.in_transaction:
                self._writer.execute("ROLLBACK")
            if len(batch) == 1:
                return [self._failure(error)]
        # One append of the batch failed and took the others along: each for itself.
        return [outcome for append in batch for outcome in self._commit([append])]

    def _failure(self, error: Exception) -> Exception:
        if isinstance(error, sqlite3.IntegrityError):
            return DuplicateEvent(f"an event of the append is already stored ({error})")
        if isinstance(error, StoreError):
            return error
        return unavailable(store_failure(error, self._database.shown))

    def _transaction(
        self, connection: sqlite3.Connection, batch: Sequence[Append]
    ) -> list[Outcome]:
        connection.execute("BEGIN IMMEDIATE")
        outcomes = [append_rows(connection.cursor(), append) for append in batch]
        connection.execute("COMMIT")
        return outcomes


def _decoded(text: bytes) -> str:
    return text.decode(errors="surrogateescape")


def append_rows(cursor: Any, append: Append) -> Outcome:
    """Write an append's rows in the transaction of ``cursor``, or nothing where the stream is at
    another version. The transaction holds SQLite's write lock, so positions are in commit order."""
    cursor.execute(_HEAD, (append.stream,))
    version, previous = cursor.fetchone() or (0, NO_HASH)
    if append.expected is not None and append.expected != version:
        return ConcurrencyError(append.stream, append.expected, version)
    cursor.execute(_LAST_POSITION)
    (position,) = cursor.fetchone()
    rows = []
    for written, content in zip(append.written, append.digests, strict=True):
        version += 1
        position += 1
        previous = chained(previous, version, content)
        rows.append((position, append.stream, version, *written, previous))
    cursor.executemany(_INSERT, rows)
    cursor.execute(_MOVE_HEAD, (append.stream, version, previous))
    return Appended(version, position)
