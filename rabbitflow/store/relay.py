"""The relay: announces what outboxes hold, confirmed, in order, and strikes it out."""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import psycopg
from sqlalchemy import Select, delete, func, select, text, update
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, wait_random_exponential

from rabbitflow.errors import BrokerError, ConfigurationError, EventError, StoreError
from rabbitflow.event import Event
from rabbitflow.publisher import Publisher
from rabbitflow.store.database import Database
from rabbitflow.store.failures import store_failures
from rabbitflow.store.migration import migrate
from rabbitflow.store.outbox import LANES, OUTBOX

Order = Literal["all", "key"]

BATCH = 500
LOOK_EVERY_S = {"sqlite": 0.1, "postgresql": 1.0}
"""SQLite tells nobody of a commit; PostgreSQL does, and is looked at in case it could not."""

STANDBY_LOOK_S = 1.0
COUNT_EVERY_S = 2.0
LONGEST_PAUSE_S = 5.0
CHANNEL = "rabbitflow_outbox"
_LOCK_KEY = 1918987877

# The lock belongs to this very table, as two outboxes may be in one database, in two schemas.
_OURS = "(:key, 'rabbitflow_outbox'::regclass::oid::int)"
_TRY_LANE = text(f"SELECT pg_try_advisory_xact_lock{_OURS}")
_TRY_ALL = text(f"SELECT pg_try_advisory_lock{_OURS}")

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class RelayFigures:
    """What a relay knows of its outbox.

    Fields:
        is_active: whether it is this relay that announces; another one may have the lock.
        waiting: events that are not announced yet.
        oldest_at: when the oldest of them was added, in seconds since 1970; None where none waits.
        refused: events that can't be announced, and stay.
        relayed: events announced since the start.
        has_looked: whether the outbox could be looked into, once.
    """

    is_active: bool = False
    waiting: int = 0
    oldest_at: float | None = None
    refused: int = 0
    relayed: int = 0
    has_looked: bool = False

    def lag_s(self) -> float:
        """How long the oldest event has waited, in seconds."""
        return 0.0 if self.oldest_at is None else max(0.0, time.time() - self.oldest_at)


@dataclass(slots=True)
class _Announced:
    """What became of a batch: positions confirmed, reasons of those refused, what stopped it."""

    confirmed: list[int] = field(default_factory=list)
    refused: dict[int, str] = field(default_factory=dict)
    failure: BrokerError | None = None


class Relay:
    """Announces the events of one database's outbox.

    A batch is announced while its lock is held, and struck out once the broker has confirmed it;
    whoever is killed in between leaves it to the next, which announces it again, with the same ids.

    Args:
        database: where the outbox is.
        publisher: announces.
        order: ``all``: in the order added, by one relay at a time, others standing by. ``key``:
            events of one key in order, several relays sharing the work (PostgreSQL).
        batch: how many events at once.
    """

    def __init__(
        self, database: str, publisher: Publisher, *, order: Order = "all", batch: int = BATCH
    ) -> None:
        self.figures = RelayFigures()
        self._database = Database.parse(database)
        if order == "key" and self._database.dialect == "sqlite":
            raise ConfigurationError(
                "SQLite has one writer at a time, so one relay announces all of it: --order all"
            )
        self._publisher = publisher
        self._lanes: Sequence[int | None] = range(LANES) if order == "key" else (None,)
        self._batch = batch
        self._woken = asyncio.Event()
        self._stopping = asyncio.Event()
        self._counted_at = float("-inf")
        self._lock: int | None = None
        self._holder: AsyncConnection | None = None

    def stop(self) -> None:
        """Finish the batch under way, then return from :meth:`run`."""
        self._stopping.set()
        self._woken.set()

    async def run(self) -> None:
        """Announce what is there and what comes, until stopped. A broker or database that can't be
        reached is tried again.

        Raises:
            ConfigurationError: the database can't be used.
        """
        again = AsyncRetrying(
            retry=retry_if_exception_type((BrokerError, StoreError)),
            wait=wait_random_exponential(multiplier=0.2, max=LONGEST_PAUSE_S),
            stop=lambda state: self._stopping.is_set(),
            sleep=self._sleep,
            before_sleep=_warn,
            reraise=True,
        )
        engine = self._database.engine()
        listening: asyncio.Task[None] | None = None
        try:
            await again(migrate, engine)
            if self._database.dialect == "postgresql":
                listening = asyncio.create_task(self._listen(), name="outbox-listener")
            while not self._stopping.is_set():
                self._woken.clear()
                is_more = False
                async for attempt in again:
                    with attempt:
                        is_more = await self._pass(engine)
                if not is_more:
                    await self._sleep(self._pause_s())
        except (BrokerError, StoreError):
            # What is not announced stays in the outbox.
            if not self._stopping.is_set():
                raise
        finally:
            if listening is not None:
                listening.cancel()
                await asyncio.gather(listening, return_exceptions=True)
            if self._lock is not None:
                os.close(self._lock)
            await self._let_go()
            await engine.dispose()

    async def _pass(self, engine: AsyncEngine) -> bool:
        """Relay one batch of every lane; return whether there may be more."""
        is_active = is_more = False
        with store_failures(self._database.shown):
            # First, so that the lag is seen also while the broker is away.
            if time.monotonic() - self._counted_at > COUNT_EVERY_S:
                await self._count(engine)
            for lane in self._lanes:
                taken = await self._relay(engine, lane)
                is_active |= taken is not None
                is_more |= taken == self._batch
                if self._stopping.is_set():
                    break
            if self.figures.waiting and not is_more:
                await self._count(engine)
        self.figures.has_looked = True
        if self.figures.is_active is not is_active:
            self.figures.is_active = is_active
            if self._lanes == (None,):
                state = "announces" if is_active else "stands by: another relay announces"
                logger.info("the relay of %s %s", self._database.shown, state)
        return is_more

    async def _relay(self, engine: AsyncEngine, lane: int | None) -> int | None:
        """Relay one batch; return how many it was, or None where another relay has the lock."""
        if self._database.dialect == "postgresql":
            async with self._locked(engine, lane) as connection:
                if connection is None:
                    return None
                rows = (await connection.execute(self._next(lane))).all()
                announced = await self._announce(rows)
                await _strike_out(connection, announced)
        else:
            if not self._locks_file():
                return None
            async with engine.connect() as connection:
                await connection.execution_options(sqlite_begin="DEFERRED")
                rows = (await connection.execute(self._next(lane))).all()
            # Writers must not wait for the broker, so nothing is locked meanwhile but our file.
            announced = await self._announce(rows)
            if rows:
                async with engine.begin() as connection:
                    await _strike_out(connection, announced)
        self.figures.relayed += len(announced.confirmed)
        if announced.failure is not None:
            raise announced.failure
        return len(rows)

    def _next(self, lane: int | None) -> Select[Any]:
        wanted = select(OUTBOX.c.position, OUTBOX.c.body).where(OUTBOX.c.refused.is_(None))
        if lane is not None:
            wanted = wanted.where(OUTBOX.c.lane == lane)
        ordered = wanted.order_by(OUTBOX.c.position).limit(self._batch)
        return ordered.with_for_update(skip_locked=True)  # SQLite has no such thing, and ignores it

    async def _announce(self, rows: Sequence[Any]) -> _Announced:
        announced = _Announced()
        events: dict[str, tuple[int, Event[Any]]] = {}
        for position, body in rows:
            event = Event[Any].model_validate_json(body)
            if event.id in events:
                break  # added twice: one after the other, so that each confirm is told apart
            events[event.id] = (position, event)
        while events and announced.failure is None:
            try:
                await self._publisher.publish_many(
                    [event for _, event in events.values()],
                    on_confirmed=lambda event: announced.confirmed.append(events.pop(event.id)[0]),
                )
            except EventError:
                await self._announce_singly(events, announced)
            except BrokerError as error:
                announced.failure = error
        return announced

    async def _announce_singly(
        self, events: dict[str, tuple[int, Event[Any]]], announced: _Announced
    ) -> None:
        """Announce the rest of a batch in which an event can't be, to find out which one."""
        for event_id, (position, event) in list(events.items()):
            try:
                await self._publisher.publish(event)
            except EventError as refused:
                logger.error("event %s is not announced, ever: %s", event_id, refused)
                announced.refused[position] = str(refused)
            except BrokerError as failure:
                announced.failure = failure
                return
            else:
                announced.confirmed.append(position)
            del events[event_id]

    async def _count(self, engine: AsyncEngine) -> None:
        waiting = OUTBOX.c.refused.is_(None)
        counts = select(
            func.count().filter(waiting),
            func.min(OUTBOX.c.added_at).filter(waiting),
            func.count().filter(~waiting),
        )
        async with engine.connect() as connection:
            await connection.execution_options(sqlite_begin="DEFERRED")
            row = (await connection.execute(counts)).one()
        self.figures.waiting, self.figures.oldest_at, self.figures.refused = row
        self._counted_at = time.monotonic()

    @asynccontextmanager
    async def _locked(
        self, engine: AsyncEngine, lane: int | None
    ) -> AsyncIterator[AsyncConnection | None]:
        """A transaction of whoever has the lock on PostgreSQL; None where another relay has it.

        A lane is locked for one transaction, so that relays take turns. The whole outbox is locked
        by a connection for as long as it lasts, and announced on that very connection: a relay that
        lost it has lost the lock, and can't strike anything out.
        """
        if lane is not None:
            async with engine.begin() as connection:
                taken = await connection.execute(_TRY_LANE, {"key": _LOCK_KEY + lane + 1})
                yield connection if taken.scalar() else None
            return
        try:
            if self._holder is None:
                holder = await engine.connect()
                async with holder.begin():
                    taken = await holder.execute(_TRY_ALL, {"key": _LOCK_KEY})
                if not taken.scalar():
                    await holder.close()
                    yield None
                    return
                self._holder = holder
            async with self._holder.begin():
                yield self._holder
        except BaseException:
            await self._let_go()
            raise

    async def _let_go(self) -> None:
        """Close the connection that holds the lock, which frees it."""
        holder, self._holder = self._holder, None
        if holder is not None:
            await holder.invalidate()
            await holder.close()

    def _locks_file(self) -> bool:
        """Take the lock beside an SQLite file; the system frees it when the process ends."""
        if self._lock is None:
            path = Path(f"{self._database.path}.relay")
            self._lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    async def _listen(self) -> None:
        """Wake the relay when something is added; without it, it looks once a second."""
        while True:
            with suppress(psycopg.Error, OSError):
                async with await psycopg.AsyncConnection.connect(
                    self._database.conninfo, autocommit=True
                ) as connection:
                    await connection.execute(f"LISTEN {CHANNEL}")
                    self._woken.set()
                    async for _ in connection.notifies():
                        self._woken.set()
            await asyncio.sleep(LOOK_EVERY_S["postgresql"])

    def _pause_s(self) -> float:
        return LOOK_EVERY_S[self._database.dialect] if self.figures.is_active else STANDBY_LOOK_S

    async def _sleep(self, pause_s: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(pause_s):
                await self._woken.wait()


async def _strike_out(connection: AsyncConnection, announced: _Announced) -> None:
    if announced.confirmed:
        await connection.execute(delete(OUTBOX).where(OUTBOX.c.position.in_(announced.confirmed)))
    for position, reason in announced.refused.items():
        refusing = update(OUTBOX).where(OUTBOX.c.position == position).values(refused=reason)
        await connection.execute(refusing)


def _warn(state: RetryCallState) -> None:
    error = state.outcome.exception() if state.outcome else None
    logger.warning("the relay waits: %s", error)
