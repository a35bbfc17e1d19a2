"""Projections: tables of your own that follow the events, each event's effect exactly once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from rabbitflow.errors import ProjectionFailed
from rabbitflow.store.eventstore import EventStore
from rabbitflow.store.failures import store_failures
from rabbitflow.store.recorded import Recorded
from rabbitflow.store.selection import Selection

BATCH_EVENTS = 500
BATCH_S = 0.2
"""A batch's transaction is short: on SQLite it keeps all other writers waiting."""

FINISH_S = 5.0
"""How long a batch may take to finish when its projection is cancelled."""


@dataclass(frozen=True, slots=True)
class Projection:
    """Turns events into rows. How far it has come is committed together with what it wrote, so a
    crash at any moment leaves no event out and none applied twice.

    Fields:
        name: of its checkpoint; another name starts from the beginning.
        apply: writes what one event changes, on the connection it is given and nothing else.
        reset: makes its tables anew, empty; called before the first event, and to rebuild.
        types: only these event types; empty for all.
    """

    name: str
    apply: Callable[[AsyncConnection, Recorded], Awaitable[None]]
    reset: Callable[[AsyncConnection], Awaitable[None]]
    types: tuple[str, ...] = ()

    async def catch_up(self, store: EventStore) -> int:
        """Apply what was committed until now; return how many events that were.

        Several processes may do so at once: each event is still applied once.
        """
        applied, end = 0, await store.position()
        while True:
            count, position = await self._batch(store, end)
            applied += count
            if position >= end:
                return applied

    async def follow(self, store: EventStore) -> None:
        """Catch up, then apply every new event as it is committed, until cancelled; then it
        finishes the batch under way, so that no transaction is torn."""
        await store.journal.listen()
        while True:
            heard = store.journal.bell.rings
            end = await store.position()
            batch = asyncio.create_task(self._batch(store, end))
            try:
                applied, _ = await asyncio.shield(batch)
            except asyncio.CancelledError:
                done, _ = await asyncio.wait([batch], timeout=FINISH_S)
                if not done:
                    batch.cancel()
                    await asyncio.wait([batch])
                failed = None if batch.cancelled() else batch.exception()
                raise failed or asyncio.CancelledError from None
            if not applied:
                await store.journal.bell.wait(heard, store.journal.poll_s)

    async def rebuild(self, store: EventStore) -> int:
        """Begin anew with empty tables, and catch up; return how many events that were.

        Until it is done its readers see what it has so far.
        """
        with store_failures(store.database.shown):
            async with store.engine.begin() as connection:
                await self._locked_position(connection)
                await self.reset(connection)
                await self._move_to(connection, 0)
        return await self.catch_up(store)

    async def position(self, store: EventStore) -> int:
        """Return the position of the last event it has seen, 0 before the first."""
        rows = await store.journal.fetch(
            "SELECT position FROM rabbitflow_checkpoints"
            f" WHERE projection = {store.journal.dialect.mark}",
            [self.name],
        )
        return int(rows[0][0]) if rows else 0

    async def _batch(self, store: EventStore, end: int) -> tuple[int, int]:
        """Apply some events in one transaction; return how many, and how far it has come."""
        with store_failures(store.database.shown):
            async with store.engine.begin() as connection:
                position = await self._locked_position(connection)
                if position >= end:
                    return 0, position
                began, applied = time.monotonic(), 0
                selection = Selection(None, position + 1, end, types=self.types)
                page = await store.page(selection, BATCH_EVENTS)
                # A page that is not full holds all there is up to the end.
                reached = end if len(page) < BATCH_EVENTS else page[-1].position
                for recorded in page:
                    await self._apply(connection, recorded)
                    applied += 1
                    if time.monotonic() - began > BATCH_S and recorded is not page[-1]:
                        reached = recorded.position
                        break
                await self._move_to(connection, reached)
        return applied, reached

    async def _apply(self, connection: AsyncConnection, recorded: Recorded) -> None:
        try:
            await self.apply(connection, recorded)
        except Exception as error:
            raise ProjectionFailed(
                f"projection {self.name} stopped at position {recorded.position}"
                f" ({recorded.event.type} {recorded.event.id}, {recorded.stream}"
                f" version {recorded.version}): {type(error).__name__}: {error}"
            ) from error

    async def _locked_position(self, connection: AsyncConnection) -> int:
        """Return how far it has come, and keep others from moving it in this transaction."""
        name = {"name": self.name}
        inserted = await connection.execute(
            text(
                "INSERT INTO rabbitflow_checkpoints (projection, position) VALUES (:name, 0)"
                " ON CONFLICT (projection) DO NOTHING"
            ),
            name,
        )
        if inserted.rowcount:
            await self.reset(connection)
        # SQLite has no row locks and needs none: a transaction that writes is alone.
        lock = " FOR UPDATE" if connection.dialect.name == "postgresql" else ""
        position = await connection.scalar(
            text(f"SELECT position FROM rabbitflow_checkpoints WHERE projection = :name{lock}"),
            name,
        )
        return int(position or 0)

    async def _move_to(self, connection: AsyncConnection, position: int) -> None:
        await connection.execute(
            text("UPDATE rabbitflow_checkpoints SET position = :at WHERE projection = :name"),
            {"name": self.name, "at": position},
        )
