"""A ready consumer that appends announced events to the event store, for keeps beyond the log.

``rabbitflow record`` runs it, and says by the environment what to record.
"""

from __future__ import annotations

import asyncio
import os
from typing import Any

from rabbitflow.consumer import Consumer
from rabbitflow.context import Context
from rabbitflow.errors import DuplicateEvent
from rabbitflow.event import Event
from rabbitflow.retry import Retry
from rabbitflow.store.eventstore import EventStore

TYPES = "RABBITFLOW_RECORD_TYPES"
CONSUMER = "RABBITFLOW_RECORD_CONSUMER"
FROM_BEGINNING = "RABBITFLOW_RECORD_FROM_BEGINNING"

STREAM_PREFIX = "recorded-"


class Recorder:
    """Appends events to the store of ``RABBITFLOW_DATABASE_URL``, opened with the first one. Those
    that come together share a commit, and one that comes again changes nothing."""

    def __init__(self) -> None:
        self._opening = asyncio.Lock()
        self._store: EventStore | None = None

    async def record(self, event: Event[Any], context: Context) -> None:
        """Append an event to the stream of its key, or of its type where it has none."""
        store = self._store or await self._opened()
        try:
            await store.append(stream_of(event), event)
        except DuplicateEvent:
            context.log.debug("event %s is in the store already", event.id)

    async def _opened(self) -> EventStore:
        async with self._opening:
            if self._store is None:
                store = EventStore()
                await store.open()
                self._store = store
            return self._store


def stream_of(event: Event[Any]) -> str:
    """Return where an announced event is recorded: apart from the streams that decisions are made
    on, whose versions are their writers'."""
    name = STREAM_PREFIX + (event.key or event.type)
    return name if len(name.encode()) <= 255 and name.isprintable() else STREAM_PREFIX + event.type


def _consumer() -> Consumer:
    consumer = Consumer(
        os.environ.get(CONSUMER, "record"),
        concurrency=200,
        # A store that is away for a day loses nothing: what has failed for longer is a dead letter.
        retry=Retry.exponential(attempts=300, first=1, cap=300),
        from_beginning=os.environ.get(FROM_BEGINNING) == "1",
    )
    event_types = [name for name in os.environ.get(TYPES, "").split(",") if name]
    if event_types:
        consumer.on(*event_types)(Recorder().record)
    return consumer


recorder = _consumer()
