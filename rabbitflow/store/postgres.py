"""The journal in PostgreSQL: one connection appends, in one round trip; a pool of others reads."""

from __future__ import annotations

import asyncio
import logging
import os
from collections import deque
from collections.abc import Sequence
from typing import Any

import psycopg
from psycopg import errors
from pydantic_core import to_json
from sqlalchemy.ext.asyncio import AsyncEngine

from rabbitflow.errors import ConcurrencyError, DuplicateEvent, StoreUnavailable
from rabbitflow.store.bell import Bell
from rabbitflow.store.database import Database
from rabbitflow.store.failures import store_failure, store_failures
from rabbitflow.store.journal import BATCH_APPENDS, Append, Appended, unavailable
from rabbitflow.store.recorded import moment
from rabbitflow.store.selection import POSTGRES

TIMEOUT_S = 30.0
"""How long a commit may take, the wait for other writers included."""

CHANNEL = "rabbitflow_events"

_APPEND = "SELECT last_version, last_position FROM rabbitflow_append(%s, %s, %s, %s::json)"
_RECONNECT_S = 1.0

_log = logging.getLogger(__name__)

Outcome = Appended | Exception
Connection = psycopg.AsyncConnection[tuple[Any, ...]]
Cursor = psycopg.AsyncCursor[tuple[Any, ...]]


def listener_name() -> str:
    """What pg_stat_activity calls the connection of this process that hears of commits."""
    return f"rabbitflow-store-listener-{os.getpid()}"


class PostgresJournal:
    """See ``journal.Journal``."""

    dialect = POSTGRES
    poll_s = 2.0

    def __init__(self, database: Database, engine: AsyncEngine) -> None:
        self.bell = Bell()
        self._database = database
        self._engine = engine.execution_options(isolation_level="AUTOCOMMIT")
        self._waiting: deque[tuple[Append, asyncio.Future[Outcome]]] = deque()
        self._writer: Connection | None = None
        self._writing: asyncio.Task[None] | None = None
        self._listening: asyncio.Task[None] | None = None

    async def append(self, append: Append) -> Appended:
        """See ``journal.Journal``."""
        outcome: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self._waiting.append((append, outcome))
        # A task of its own: the caller may be cancelled in the middle of other callers' commit.
        if self._writing is None or self._writing.done():
            self._writing = asyncio.create_task(self._commit_waiting(), name="store-writer")
        result = await outcome
        if isinstance(result, Exception):
            raise result
        return result

    async def fetch(self, sql: str, parameters: Sequence[Any]) -> list[Any]:
        """See ``journal.Journal``."""
        with store_failures(self._database.shown):
            async with self._engine.connect() as connection:
                raw: Any = (await connection.get_raw_connection()).driver_connection
                cursor = await raw.execute(sql, parameters, prepare=True)
                rows: list[Any] = await cursor.fetchall()
                return rows

    async def listen(self) -> None:
        """See ``journal.Journal``."""
        if self._listening is None:
            self._listening = asyncio.create_task(self._listen(), name="store-listener")

    async def close(self) -> None:
        """See ``journal.Journal``."""
        if self._listening is not None:
            self._listening.cancel()
            await asyncio.wait([self._listening])
        if self._writing is not None:
            await asyncio.wait([self._writing])
        if self._writer is not None:
            await self._writer.close()

    async def _commit_waiting(self) -> None:
        while self._waiting:
            batch = [self._waiting.popleft() for _ in range(min(len(self._waiting), BATCH_APPENDS))]
            try:
                outcomes = await self._commit([append for append, _ in batch])
            except BaseException as error:
                # Nobody else answers those that wait; a cancelled writer is a store that closes.
                said = StoreUnavailable(f"the store at {self._database.shown} stopped: {error!r}")
                for _, future in batch:
                    if not future.done():
                        future.set_result(said)
                raise
            for (_, future), outcome in zip(batch, outcomes, strict=True):
                if not future.done():
                    future.set_result(outcome)
            self.bell.ring()

    async def _commit(self, batch: Sequence[Append], *, again: bool = True) -> list[Outcome]:
        try:
            async with asyncio.timeout(TIMEOUT_S):
                writer = await self._connected()
                if len(batch) == 1:
                    cursor = await self._call(writer, batch[0])
                    return [await _outcome(cursor, batch[0])]
                # All calls are sent before the first answer is waited for.
                async with writer.pipeline(), writer.transaction():
                    cursors = [await self._call(writer, append) for append in batch]
                    return [
                        await _outcome(cursor, append)
                        for cursor, append in zip(cursors, batch, strict=True)
                    ]
        except errors.UniqueViolation as error:
            if len(batch) == 1:
                said = error.diag.message_detail or error
                return [DuplicateEvent(f"an event of the append is already stored ({said})")]
        except (psycopg.Error, OSError, TimeoutError) as error:
            is_lost = isinstance(error, TimeoutError) or self._writer is None or self._writer.broken
            if is_lost:
                await self._forget_writer()
                if again and not isinstance(error, TimeoutError):
                    # Safe also where the first try was committed: ids are stored once.
                    return await self._commit(batch, again=False)
            if is_lost or len(batch) == 1:
                return [self._failure(error)] * len(batch)
        # One append of the batch failed and took the others along: each for itself.
        return [outcome for append in batch for outcome in await self._commit([append])]

    def _failure(self, error: Exception) -> Exception:
        if isinstance(error, TimeoutError):
            return unavailable(
                StoreUnavailable(
                    f"the store at {self._database.shown} did not commit within {TIMEOUT_S:g} s"
                )
            )
        return unavailable(store_failure(error, self._database.shown))

    async def _connected(self) -> Connection:
        if self._writer is None or self._writer.closed:
            self._writer = await self._connect(f"rabbitflow-store-writer-{os.getpid()}")
        return self._writer

    async def _connect(self, name: str) -> Connection:
        """Connect; ``name`` is what pg_stat_activity shows."""
        return await psycopg.AsyncConnection.connect(
            self._database.conninfo, autocommit=True, application_name=name
        )

    async def _forget_writer(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            await writer.close()

    async def _call(self, writer: Connection, append: Append) -> Cursor:
        events = [
            {
                "id": written.id,
                "type": written.type,
                "schema_version": written.schema_version,
                "timestamp": moment(written.timestamp),
                "data": written.data,
                "source": written.source,
                "correlation_id": written.correlation_id,
                "causation_id": written.causation_id,
                "key": written.key,
                "digest": digest.hex(),
            }
            for written, digest in zip(append.written, append.digests, strict=True)
        ]
        recorded_at = moment(append.written[0].recorded_at)
        given = (append.stream, append.expected, recorded_at, to_json(events).decode())
        return await writer.execute(_APPEND, given, prepare=True)

    async def _listen(self) -> None:
        """Ring the bell for every commit that the server tells of; connect again when lost."""
        is_lost = False
        while True:
            try:
                async with await self._connect(listener_name()) as connection:
                    await connection.execute(f"LISTEN {CHANNEL}")
                    self.bell.ring()  # for what was committed before the LISTEN
                    is_lost = False
                    async for _ in connection.notifies():
                        self.bell.ring()
            except (psycopg.Error, OSError) as error:
                if not is_lost:
                    _log.warning(
                        "lost the notifications of the store; looking every %g s until they are"
                        " back",
                        self.poll_s,
                        extra={"database": self._database.shown, "error": str(error)},
                    )
                is_lost = True
            await asyncio.sleep(_RECONNECT_S)


async def _outcome(cursor: Cursor, append: Append) -> Outcome:
    row = await cursor.fetchone()
    assert row is not None  # a function with OUT parameters returns one row
    version, position = row
    if position is None:
        return ConcurrencyError(append.stream, append.expected or 0, version)
    return Appended(version, position)
