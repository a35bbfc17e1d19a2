"""Following the store: the past in pages, then each new event as it is committed."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol

from rabbitflow.store.journal import Journal
from rabbitflow.store.recorded import Recorded
from rabbitflow.store.selection import Selection


class Source(Protocol):
    """What a subscription needs of the store."""

    @property
    def journal(self) -> Journal: ...
    async def position(self) -> int: ...
    def pages(self, selection: Selection) -> AsyncIterator[list[Recorded]]: ...


async def subscribe(
    store: Source, from_position: int, types: tuple[str, ...]
) -> AsyncIterator[Recorded]:
    """See ``EventStore.subscribe``."""
    journal = store.journal
    await journal.listen()
    following = from_position
    while True:
        heard = journal.bell.rings
        # Positions are given in commit order, so all up to the last one are there, and those of
        # other types need not be looked through again.
        end = await store.position()
        if end >= following:
            async for page in store.pages(Selection(None, following, end, types=types)):
                for recorded in page:
                    yield recorded
            following = end + 1
        else:
            await journal.bell.wait(heard, journal.poll_s)
