"""The inbox: a handler's work and the id of its event are committed together, so that a duplicate
has no second effect."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from pydantic import ValidationError
from sqlalchemy import Delete, Engine, Select, Update, delete, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import Session
from sqlalchemy.sql.dml import ReturningInsert

from rabbitflow.cipher import Cipher
from rabbitflow.context import Announcer, Context
from rabbitflow.errors import AlreadyHandled, EventError, StoreError
from rabbitflow.event import Event, readable
from rabbitflow.settings import Settings
from rabbitflow.signature import Signature
from rabbitflow.store.database import Database
from rabbitflow.store.failures import store_failures
from rabbitflow.store.migration import migrate
from rabbitflow.store.outbox import INBOX

CLEAN_EVERY_S = 3600.0
CLEAN_AT_ONCE = 10_000

logger = logging.getLogger(__name__)


class _FollowUps:
    """Stands in for the publisher while a handler runs: what it announces is committed with its
    work, and announced afterwards."""

    def __init__(self, source: str, cipher: Cipher | None) -> None:
        self.events: list[Event[Any]] = []
        self._source = source
        self._cipher = cipher

    async def publish(self, event: str | Event[Any], data: Any = None, **fields: Any) -> Event[Any]:
        if isinstance(event, str):
            fields.setdefault("source", self._source)
            try:
                event = Event[Any](type=event, data=data, **fields)
            except ValidationError as error:
                raise EventError(readable(error)) from error
        event.encode(
            self._cipher
        )  # what can't be written is the handler's error, while it can still fail
        self.events.append(event)
        return event

    def written(self) -> str | None:
        """The events as JSON; None where there are none."""
        bodies = [event.encode(self._cipher).decode() for event in self.events]
        return json.dumps(bodies) if bodies else None


class DatabaseInbox:
    """Runs the handlers of one consumer that say ``once=True``.

    The id is written first, so that the second of two deliveries at once waits for the first; then
    the handler works in the same transaction; its follow-ups are written; all of it is committed.
    Only then are the follow-ups announced, and struck out. Whoever is killed in between leaves them
    to the redelivery, which finds the id, announces what is left, and does nothing else.

    Args:
        consumer: its name.
        url: of its database.
        announcer: publishes follow-ups, confirmed.
        settings: for how long ids are kept.
        concurrency: how many handlers run at once, each with a connection.
    """

    def __init__(
        self, consumer: str, url: str, announcer: Announcer, settings: Settings, concurrency: int
    ) -> None:
        self._consumer = consumer
        self._database = Database.parse(url)
        self._announcer = announcer
        self._keep_s = settings.inbox_keep_days * 86_400
        self._concurrency = concurrency
        self._cipher = Cipher.at(settings.encryption_keys_file)
        self._async: AsyncEngine | None = None
        self._sync: Engine | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._cleaning: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Bring the tables up to date and begin to clean up; again, it does nothing.

        Raises:
            StoreError: the database can't be reached, or refuses.
            ConfigurationError: a newer rabbitflow has changed it.
        """
        if self._async is not None:
            return
        # One more than there are handlers: follow-ups are struck out beside them.
        size = {"pool_size": self._concurrency + 1, "max_overflow": self._concurrency}
        engine = self._database.engine(**size)
        try:
            await migrate(engine)
        except BaseException:
            await engine.dispose()
            raise
        self._async, self._sync = engine, self._database.sync_engine(**size)
        self._loop = asyncio.get_running_loop()
        self._cleaning = asyncio.create_task(self._clean(), name="inbox-cleaning")

    async def close(self) -> None:
        """Close the database."""
        if self._cleaning is not None:
            self._cleaning.cancel()
            await asyncio.gather(self._cleaning, return_exceptions=True)
        if self._async is not None:
            await self._async.dispose()
        if self._sync is not None:
            self._sync.dispose()

    def once(self, signature: Signature) -> Signature:
        """Return a handler's signature whose call runs it once per event.

        The call raises AlreadyHandled for a duplicate.
        """
        wrapped = self._run if signature.is_async else self._run_in_thread

        def call(event: Any, context: Context) -> Any:
            return wrapped(signature, event, context)

        return replace(signature, call=call)

    async def _run(self, signature: Signature, event: Event[Any], context: Context) -> None:
        assert self._async is not None
        follow_ups = _FollowUps(context.consumer, self._cipher)
        async with AsyncSession(self._async, expire_on_commit=False) as session:
            with store_failures(self._database.shown):
                is_new = (await session.execute(self._first(event, context))).first() is not None
            if is_new:
                context.commit_with(session, follow_ups)
                await signature.call(event, context)
                with store_failures(self._database.shown):
                    if follow_ups.events:
                        await session.execute(self._keeps(event, follow_ups.written()))
                    await session.commit()
        await self._finish(event, follow_ups.events, is_duplicate=not is_new)

    def _run_in_thread(self, signature: Signature, event: Event[Any], context: Context) -> None:
        assert self._sync is not None
        assert self._loop is not None
        follow_ups = _FollowUps(context.consumer, self._cipher)
        with Session(self._sync, expire_on_commit=False) as session:
            with store_failures(self._database.shown):
                is_new = session.execute(self._first(event, context)).first() is not None
            if is_new:
                context.commit_with(session, follow_ups)
                signature.call(event, context)
                with store_failures(self._database.shown):
                    if follow_ups.events:
                        session.execute(self._keeps(event, follow_ups.written()))
                    session.commit()
        if follow_ups.events or not is_new:
            finishing = self._finish(event, follow_ups.events, is_duplicate=not is_new)
            asyncio.run_coroutine_threadsafe(finishing, self._loop).result()

    async def _finish(
        self, event: Event[Any], follow_ups: Sequence[Event[Any]], *, is_duplicate: bool
    ) -> None:
        """Announce what the handler's work has brought, and see the duplicate off."""
        if is_duplicate:
            follow_ups = await self._left_over(event)
        for follow_up in follow_ups:
            await self._announcer.publish(follow_up)
        if follow_ups:
            await self._execute(self._keeps(event, None))
        if is_duplicate:
            raise AlreadyHandled(f"{self._consumer} has handled event {event.id} before")

    async def _left_over(self, event: Event[Any]) -> list[Event[Any]]:
        assert self._async is not None
        with store_failures(self._database.shown):
            async with self._async.connect() as connection:
                await connection.execution_options(sqlite_begin="DEFERRED")
                kept = (await connection.execute(self._kept(event))).scalar()
        bodies = [] if kept is None else json.loads(kept)
        return [Event[Any].model_validate_json(body) for body in bodies]

    async def _execute(self, statement: Update | Delete) -> int:
        assert self._async is not None
        with store_failures(self._database.shown):
            async with self._async.begin() as connection:
                return int((await connection.execute(statement)).rowcount)

    def _first(self, event: Event[Any], context: Context) -> ReturningInsert[Any]:
        row = {
            "consumer": self._consumer,
            "event_id": event.id,
            "attempt": context.attempt,
            "is_replay": context.is_replay,
            "handled_at": time.time(),
        }
        # A row comes back where one was written; how many there were, not every result tells.
        if self._database.dialect == "postgresql":
            into = postgresql.insert(INBOX).values(row).on_conflict_do_nothing()
            return into.returning(INBOX.c.event_id)
        return sqlite.insert(INBOX).values(row).on_conflict_do_nothing().returning(INBOX.c.event_id)

    def _kept(self, event: Event[Any]) -> Select[Any]:
        return select(INBOX.c.follow_ups).where(*self._row_of(event))

    def _keeps(self, event: Event[Any], follow_ups: str | None) -> Update:
        return update(INBOX).where(*self._row_of(event)).values(follow_ups=follow_ups)

    def _row_of(self, event: Event[Any]) -> tuple[Any, Any]:
        return INBOX.c.consumer == self._consumer, INBOX.c.event_id == event.id

    async def _clean(self) -> None:
        """Forget ids that are too old to come back, a part at a time so that nobody waits long."""
        while True:
            try:
                is_more = True
                while is_more:
                    is_more = await self._execute(self._old()) == CLEAN_AT_ONCE
            except StoreError as error:
                logger.warning("the inbox of %s is not cleaned up: %s", self._consumer, error)
            await asyncio.sleep(CLEAN_EVERY_S)

    def _old(self) -> Delete:
        old = (
            select(INBOX.c.event_id)
            .where(
                INBOX.c.consumer == self._consumer,
                INBOX.c.handled_at < time.time() - self._keep_s,
                INBOX.c.follow_ups.is_(None),
            )
            .limit(CLEAN_AT_ONCE)
        )
        return delete(INBOX).where(
            INBOX.c.consumer == self._consumer, INBOX.c.event_id.in_(old.scalar_subquery())
        )
