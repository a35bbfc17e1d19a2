"""Events of the store as JSON, one a line."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any

from pydantic_core import from_json

from rabbitflow.event import to_body
from rabbitflow.store.eventstore import EventStore
from rabbitflow.store.recorded import Recorded


def exported(recorded: Recorded) -> dict[str, Any]:
    """Return an event and its place as JSON values; ``event`` is the body as on the wire."""
    return {
        "position": recorded.position,
        "stream": recorded.stream,
        "version": recorded.version,
        "recorded_at": recorded.recorded_at,
        "hash": recorded.hash.hex(),
        "event": from_json(recorded.event.encode()),
    }


async def ndjson(
    store: EventStore, stream: str | None, first: int, until: datetime | None
) -> AsyncIterator[str]:
    """Yield events as lines of JSON: those of a stream from version ``first`` on, or those of the
    whole store from position ``first`` on; only what happened up to ``until``."""
    events = (
        store.read_all(from_position=first, until=until)
        if stream is None
        else store.read(stream, from_version=first, until=until)
    )
    async for recorded in events:
        yield to_body(exported(recorded), recorded.event.type).decode() + "\n"
