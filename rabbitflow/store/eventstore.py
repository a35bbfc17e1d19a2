"""``EventStore``: append-only streams of events in SQLite or PostgreSQL."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack
from datetime import datetime
from typing import Any, Self, TypeVar

from sqlalchemy.ext.asyncio import AsyncEngine
from tenacity import (
    AsyncRetrying,
    retry_if_exception_type,
    stop_after_attempt,
    wait_random_exponential,
)

from rabbitflow.cipher import Cipher
from rabbitflow.encryption import opened
from rabbitflow.errors import ConcurrencyError, ConfigurationError, DuplicateEvent, EventError
from rabbitflow.event import Event
from rabbitflow.settings import load_settings
from rabbitflow.store import snapshots
from rabbitflow.store.database import Database
from rabbitflow.store.fold import Fold
from rabbitflow.store.journal import Append, Appended, Journal
from rabbitflow.store.migration import migrate, require_migrated
from rabbitflow.store.postgres import PostgresJournal
from rabbitflow.store.rebuild import Rebuilt, rebuild
from rabbitflow.store.recorded import Recorded, checked_stream, digest, read, write
from rabbitflow.store.selection import Selection, aware
from rabbitflow.store.sqlite import SqliteJournal
from rabbitflow.store.subscription import subscribe
from rabbitflow.upcast import Upcasters

StateT = TypeVar("StateT")

PAGE = 1000
"""How many events are read at once."""


class EventStore:
    """Keeps events in streams, for good. Use it as ``async with EventStore(url) as store``.

    Args:
        url: ``sqlite:///file.db`` or ``postgresql://user:password@host/name``; the setting
            ``RABBITFLOW_DATABASE_URL`` where it is not given.
        upcasters: what turns old versions of events into new ones as they are read.
        cipher: encrypts fields that are ``Encrypted`` and opens them as they are read; those of a
            key that it does not have stay as they are.
        snapshot_every: keep a snapshot of a rebuilt state (a pydantic model or a dataclass) once
            so many events were folded for it; 0 for never.
        create: make or update the tables where needed; without it a store that is not there, or
            not up to date, is an error.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        upcasters: Upcasters | None = None,
        cipher: Cipher | None = None,
        snapshot_every: int = 100,
        create: bool = True,
    ) -> None:
        self.database = Database.parse(
            load_settings().database_url.get_secret_value() if url is None else url
        )
        self.upcasters = upcasters
        self._cipher = cipher
        self.snapshot_every = snapshot_every
        self._create = create
        self._resources = AsyncExitStack()
        self._engine: AsyncEngine | None = None
        self._journal: Journal | None = None

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def open(self) -> None:
        """Open the database and bring its tables up to date.

        Raises:
            ConfigurationError: there is no store and ``create`` is off, or a newer rabbitflow has
                changed it.
            StoreUnavailable: the database can't be reached.
        """
        database = self.database
        if database.dialect == "sqlite" and not self._create and not database.path.exists():
            raise ConfigurationError(f"there is no event store at {database.shown}")
        async with AsyncExitStack() as resources:
            engine = database.engine()
            resources.push_async_callback(engine.dispose)
            journal: Journal
            if database.dialect == "sqlite":
                journal = SqliteJournal(database)
            else:
                journal = PostgresJournal(database, engine)
            resources.push_async_callback(journal.close)
            # A file that can't be opened fails here, not in the engine: aiosqlite would leave a
            # thread behind that still talks to the event loop when that is closed.
            await journal.fetch("SELECT 1", ())
            await (migrate if self._create else require_migrated)(engine)
            self._resources = resources.pop_all()
        self._engine, self._journal = engine, journal

    async def close(self) -> None:
        """Finish the appends under way and close."""
        self._engine = self._journal = None
        await self._resources.aclose()

    @property
    def engine(self) -> AsyncEngine:
        """SQLAlchemy's engine on the store's database, for tables of your own beside it."""
        if self._engine is None:
            raise ConfigurationError("the event store is not open: async with EventStore(…)")
        return self._engine

    @property
    def journal(self) -> Journal:
        """The events in the database, as the parts of the store use them."""
        if self._journal is None:
            raise ConfigurationError("the event store is not open: async with EventStore(…)")
        return self._journal

    async def append(
        self,
        stream: str,
        events: Event[Any] | Sequence[Event[Any]],
        *,
        expected_version: int | None = None,
    ) -> Appended:
        """Append one event, or several in one transaction, to the end of a stream.

        They are on disk when it returns. Appending the same events (the same ids) to the same
        place again changes nothing and returns what the first time did, so a call whose outcome
        is unknown is simply made again.

        Args:
            stream: what they belong to, such as ``account-1``.
            events: at least one.
            expected_version: the version of the stream's last event as the caller knows it, 0 for
                a new stream; None appends wherever the stream ends.

        Raises:
            ConcurrencyError: another writer was first.
            DuplicateEvent: an event of that id is stored in another place.
            EventError: an event can't be written, or the stream's name does not fit.
            StoreUnavailable, StoreError: the database; nothing or all of it was stored.
        """
        prepared = _prepare(stream, events, expected_version, self._cipher)
        try:
            return await self.journal.append(prepared)
        except (ConcurrencyError, DuplicateEvent):
            repeated = await self._repeated(prepared)
            if repeated is None:
                raise
            return repeated

    async def _repeated(self, append: Append) -> Appended | None:
        """Return where the events of ``append`` are, if they are stored just as it asks for."""
        mark = self.journal.dialect.mark
        places = await self.journal.fetch(
            f"SELECT stream, version FROM rabbitflow_events WHERE id = {mark}",
            [append.written[0].id],
        )
        if not places or places[0][0] != append.stream:
            return None
        first = places[0][1]
        if append.expected is not None and append.expected + 1 != first:
            return None
        count = len(append.written)
        stored = await self.page(Selection(append.stream, first, first + count - 1), count)
        if [each.event.id for each in stored] != [written.id for written in append.written]:
            return None
        return Appended(stored[-1].version, stored[-1].position)

    async def read(
        self,
        stream: str,
        *,
        from_version: int = 1,
        to_version: int | None = None,
        until: datetime | None = None,
        backward: bool = False,
    ) -> AsyncIterator[Recorded]:
        """Yield the events of a stream by version; none where there is no such stream.

        Args:
            stream: which.
            from_version: the first one wanted.
            to_version: the last one wanted.
            until: only what happened up to then (``event.timestamp``), it included; aware.
            backward: the newest first.
        """
        selection = Selection(
            checked_stream(stream), from_version, to_version, aware(until), (), backward
        )
        async for page in self.pages(selection):
            for recorded in page:
                yield recorded

    async def read_all(
        self,
        *,
        from_position: int = 1,
        to_position: int | None = None,
        until: datetime | None = None,
        types: Sequence[str] = (),
        backward: bool = False,
    ) -> AsyncIterator[Recorded]:
        """Yield the events of all streams in the order they were committed, without gaps.

        Args:
            from_position: the first one wanted.
            to_position: the last one wanted.
            until: only what happened up to then, it included; aware.
            types: only these event types.
            backward: the newest first.
        """
        selection = Selection(
            None, from_position, to_position, aware(until), tuple(types), backward
        )
        async for page in self.pages(selection):
            for recorded in page:
                yield recorded

    async def version(self, stream: str) -> int:
        """Return the version of a stream's last event, 0 where there is no such stream."""
        rows = await self.journal.fetch(
            f"SELECT version FROM rabbitflow_streams WHERE stream = {self.journal.dialect.mark}",
            [checked_stream(stream)],
        )
        return int(rows[0][0]) if rows else 0

    async def position(self) -> int:
        """Return the position of the last event of all, 0 in an empty store."""
        rows = await self.journal.fetch(
            "SELECT coalesce(max(position), 0) FROM rabbitflow_events", ()
        )
        return int(rows[0][0])

    async def rebuild(
        self,
        stream: str,
        fold: type[StateT] | Fold[StateT],
        initial: StateT | None = None,
        *,
        until: datetime | None = None,
        to_version: int | None = None,
    ) -> StateT:
        """Return the state that the events of a stream lead to, now or as it was.

        Args:
            stream: which.
            fold: a function ``(state, event) -> state``, or a class whose methods are marked with
                ``applies``.
            initial: the state before the first event; by default the fold's state type, called.
            until: as of then: only with what happened up to then, it included; aware.
            to_version: as of that event.

        Raises:
            EventError: an event can't be upcast, or does not fit the fold.
        """
        rebuilt = await self.load(stream, fold, initial, until=until, to_version=to_version)
        return rebuilt.state

    async def load(
        self,
        stream: str,
        fold: type[StateT] | Fold[StateT],
        initial: StateT | None = None,
        *,
        until: datetime | None = None,
        to_version: int | None = None,
    ) -> Rebuilt[StateT]:
        """Return what :meth:`rebuild` does, and the version it is the state of."""
        checked_stream(stream)
        return await rebuild(self, stream, fold, initial, aware(until), to_version)

    async def decide(
        self,
        stream: str,
        fold: type[StateT] | Fold[StateT],
        decision: Callable[[StateT], Event[Any] | Sequence[Event[Any]]],
        initial: StateT | None = None,
        *,
        attempts: int = 10,
    ) -> Appended:
        """Rebuild a stream's state, let ``decision`` say what happens, and append that.

        Where another writer was first, it is done again with the new state, so ``decision`` has no
        effects of its own: it returns events, none for nothing, or raises to refuse.

        Args:
            stream: which.
            fold: as in :meth:`rebuild`.
            decision: takes the state and returns the event or events.
            initial: as in :meth:`rebuild`.
            attempts: how often it is tried.

        Raises:
            ConcurrencyError: another writer was first every time.
        """
        async for attempt in AsyncRetrying(
            retry=retry_if_exception_type(ConcurrencyError),
            stop=stop_after_attempt(attempts),
            wait=wait_random_exponential(multiplier=0.005, max=0.5),
            reraise=True,
        ):
            with attempt:
                before = await self.load(stream, fold, initial)
                events = decision(before.state)
                if not isinstance(events, Event) and not events:
                    return Appended(before.version, await self.position())
                return await self.append(stream, events, expected_version=before.version)
        raise AssertionError("tenacity reraises the last error")

    async def drop_snapshots(self, stream: str | None = None) -> int:
        """Remove the snapshots of a stream, or all of them; return how many there were."""
        return await snapshots.drop(self.engine, stream)

    def subscribe(
        self, *, from_position: int = 1, types: Sequence[str] = ()
    ) -> AsyncIterator[Recorded]:
        """Yield the events of all streams in the order they were committed: those of the past, then
        each new one as it is committed, without end and without a gap.

        Args:
            from_position: where to begin, such as one after the last that was seen.
            types: only these event types.
        """
        return subscribe(self, from_position, tuple(types))

    async def pages(self, selection: Selection, size: int = PAGE) -> AsyncIterator[list[Recorded]]:
        """Yield what ``selection`` names in lists of ``size`` at most; no transaction stays open
        between them, and as nothing ever changes, none is needed."""
        async for rows in self.rows(selection, size):
            yield self._recorded(rows)

    async def page(self, selection: Selection, size: int) -> list[Recorded]:
        """Return the first ``size`` events of what ``selection`` names."""
        return self._recorded(await self._fetch(selection, size))

    async def rows(self, selection: Selection, size: int = PAGE) -> AsyncIterator[list[Any]]:
        """Yield what :meth:`pages` does as it is kept: tuples in the order of ``Row``."""
        while True:
            rows = await self._fetch(selection, size)
            if rows:
                yield rows
            if len(rows) < size:
                return
            selection = selection.after(rows[-1])

    async def _fetch(self, selection: Selection, size: int) -> list[Any]:
        sql, parameters = selection.sql(self.journal.dialect, size)
        return await self.journal.fetch(sql, parameters)

    def _recorded(self, rows: list[Any]) -> list[Recorded]:
        page = [read(row) for row in rows]
        reading = self.reading
        if reading is None:
            return page
        return [recorded._replace(event=reading(recorded.event)) for recorded in page]

    @property
    def reading(self) -> Callable[[Event[Any]], Event[Any]] | None:
        """What makes an event that was kept one of today, with its encrypted fields opened; None
        where nothing needs to be done. It raises EventError."""
        return None if self.upcasters is None and self._cipher is None else self._read

    def _read(self, event: Event[Any]) -> Event[Any]:
        if self.upcasters is not None:
            event = self.upcasters.apply(event)
        if self._cipher is not None:
            data = opened(event.data, self._cipher, event.id)
            event = event.model_copy(update={"data": data})
        return event


def _prepare(
    stream: str,
    events: Event[Any] | Sequence[Event[Any]],
    expected_version: int | None,
    cipher: Cipher | None,
) -> Append:
    checked_stream(stream)
    several = [events] if isinstance(events, Event) else list(events)
    if not several:
        raise EventError(f"nothing to append to {stream!r}")
    if expected_version is not None and expected_version < 0:
        raise EventError(f"a stream's version is 0 or more, not {expected_version}")
    now = time.time_ns() // 1000
    written = [write(event, now, cipher) for event in several]
    return Append(stream, expected_version, written, [digest(stream, each) for each in written])
