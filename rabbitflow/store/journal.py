"""What the store asks of a database: to append, to read, to tell when there is more."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from rabbitflow.errors import StoreError, StoreUnavailable
from rabbitflow.store.bell import Bell
from rabbitflow.store.recorded import Written
from rabbitflow.store.selection import Dialect

BATCH_APPENDS = 200
"""How many appends that came at the same time share one commit at most."""


def unavailable(error: StoreError) -> StoreError:
    """Return what an append raises for ``error``: where its outcome is unknown, what to do."""
    if not isinstance(error, StoreUnavailable):
        return error
    return StoreUnavailable(
        f"{error}; append the same events again: what was stored is not stored twice"
    )


@dataclass(frozen=True, slots=True)
class Append:
    """One call of append: all of it is stored, or nothing.

    Fields:
        stream: where.
        expected: the version the stream must be at; None for any.
        written: the events.
        digests: of their contents, from ``recorded.digest``.
    """

    stream: str
    expected: int | None
    written: Sequence[Written]
    digests: Sequence[bytes]


@dataclass(frozen=True, slots=True)
class Appended:
    """Where the events of an append ended: the last one's version and position."""

    version: int
    position: int


class Journal(Protocol):
    """The events in one kind of database. Appends that wait together share a commit.

    Fields:
        dialect: how to write statements for ``fetch``.
        bell: rung after every commit that this process hears of.
        poll_s: how often to look without the bell.
    """

    dialect: Dialect
    bell: Bell
    poll_s: float

    async def append(self, append: Append) -> Appended:
        """Store the events; they are durable when it returns.

        Raises:
            ConcurrencyError: the stream is at another version.
            DuplicateEvent: an id is already stored.
            StoreUnavailable: the database can't be reached, or not in time.
            StoreError: it refused, such as for a full disk.
        """
        ...

    async def fetch(self, sql: str, parameters: Sequence[Any]) -> list[Any]:
        """Return the rows of a SELECT, off the event loop."""
        ...

    async def listen(self) -> None:
        """Let the bell ring for commits of other processes too, where the database tells them."""
        ...

    async def close(self) -> None:
        """Finish the appends under way and close."""
        ...
