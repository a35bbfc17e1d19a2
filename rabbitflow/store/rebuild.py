"""A state from events: the newest snapshot that fits, then the events after it."""

from __future__ import annotations

import copy
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Generic, Protocol, TypeVar

from sqlalchemy.ext.asyncio import AsyncEngine

from rabbitflow.event import Event
from rabbitflow.store import snapshots
from rabbitflow.store.fold import Fold, fold_of, initial_of
from rabbitflow.store.journal import Journal
from rabbitflow.store.recorded import NO_HASH, event_of
from rabbitflow.store.selection import Selection
from rabbitflow.upcast import Upcasters

StateT = TypeVar("StateT")


@dataclass(frozen=True, slots=True)
class Rebuilt(Generic[StateT]):
    """A state, and the version of the last event it is the state after; 0 for none."""

    state: StateT
    version: int


class Source(Protocol):
    """What a rebuild needs of the store."""

    upcasters: Upcasters | None
    snapshot_every: int

    @property
    def engine(self) -> AsyncEngine: ...
    @property
    def journal(self) -> Journal: ...
    @property
    def reading(self) -> Callable[[Event[Any]], Event[Any]] | None: ...
    def rows(self, selection: Selection) -> AsyncIterator[list[Any]]: ...


async def rebuild(
    store: Source,
    stream: str,
    fold: Any,
    initial: Any,
    until: datetime | None,
    to_version: int | None,
) -> Rebuilt[Any]:
    """See ``EventStore.rebuild``."""
    if initial is None:
        initial = initial_of(fold)
    kind = snapshots.kind_of(fold, initial, store.upcasters) if store.snapshot_every else None
    # A copy, since a fold may well change the state it is given.
    begin = snapshots.Snapshot(copy.deepcopy(initial), 0, NO_HASH, 0)
    if kind is not None:
        begin = await snapshots.load(store.journal, stream, kind, to_version, until) or begin
    function: Fold[Any] = fold_of(fold) if isinstance(fold, type) else fold
    state, version, hash_, latest = begin.state, begin.version, begin.hash, begin.latest
    has_all, folded, reading = True, 0, store.reading
    async for rows in store.rows(Selection(stream, version + 1, to_version, until)):
        for row in rows:
            event = event_of(row)
            state = function(state, event if reading is None else reading(event))
        latest = max(latest, *(row[6] for row in rows))
        folded += len(rows)
        version, hash_ = rows[-1][2], rows[-1][13]
        # Events may be recorded out of order; then one in the middle can be later than ``until``.
        has_all = begin.version + folded == version
    if kind is not None and has_all and folded >= store.snapshot_every:
        kept = snapshots.Snapshot(state, version, hash_, latest)
        await snapshots.save(store.engine, stream, kind, kept)
    return Rebuilt(state, version)
