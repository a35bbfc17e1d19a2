"""Snapshots: what a fold made of a stream so far, kept so that the next fold starts there.

They are disposable. Each belongs to one fold, by name and by what its code, its state's schema and
its initial state were; and to one event, by hash. Where any of it differs the snapshot is not used.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
from collections.abc import Callable, Hashable
from dataclasses import dataclass, is_dataclass
from datetime import datetime
from typing import Any, cast

from pydantic import BaseModel, PydanticUserError, TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from rabbitflow.errors import StoreError
from rabbitflow.store.database import shown
from rabbitflow.store.failures import store_failures
from rabbitflow.store.fingerprint import fingerprint, is_alone
from rabbitflow.store.fold import applied_by
from rabbitflow.store.journal import Journal
from rabbitflow.store.recorded import micros
from rabbitflow.upcast import Upcasters

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A state, and the event it is the state after.

    Fields:
        state: what the fold returned.
        version: of the last event in it.
        hash: of that event.
        latest: the latest time of the events in it, in microseconds since 1970 UTC.
    """

    state: Any
    version: int
    hash: bytes
    latest: int


@dataclass(frozen=True, slots=True)
class Kind:
    """Whose snapshots: those of one fold, from one initial state.

    Fields:
        fold: its module and name.
        schema: a digest of everything that makes the state what it is.
        adapter: writes and reads the state as JSON.
    """

    fold: str
    schema: str
    adapter: TypeAdapter[Any]


def kind_of(fold: Callable[..., Any], initial: Any, upcasters: Upcasters | None) -> Kind | None:
    """Return whose snapshots a fold can use; None where it can't have any.

    It can where its state is a pydantic model or a dataclass, and it is a function of a module, or
    a class: one inside another function may depend on that one's variables.
    """
    if not isinstance(initial, BaseModel) and not is_dataclass(initial):
        return None
    functions = tuple(applied_by(fold).values()) if isinstance(fold, type) else (fold,)
    if not all(map(is_alone, functions)):
        return None
    known = _schema_of(cast(Hashable, type(initial)))
    if known is None:
        return None
    schema, adapter = known
    code = f"{fingerprint(functions)} {schema}"
    try:
        parts = [code, adapter.dump_json(initial).decode()]
    except PydanticSerializationError:
        return None
    for key, step in sorted((upcasters.steps if upcasters else {}).items()):
        if not is_alone(step):
            return None
        parts.append(f"{key} {fingerprint((step,))}")
    digest = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]
    return Kind(f"{fold.__module__}:{fold.__qualname__}", digest, adapter)


@functools.lru_cache(maxsize=256)
def _schema_of(state_type: Hashable) -> tuple[str, TypeAdapter[Any]] | None:
    try:
        adapter: TypeAdapter[Any] = TypeAdapter(cast(Any, state_type))
        return json.dumps(adapter.json_schema(), sort_keys=True), adapter
    except PydanticUserError:
        return None


async def load(
    journal: Journal, stream: str, kind: Kind, to_version: int | None, until: datetime | None
) -> Snapshot | None:
    """Return the newest snapshot whose events are all wanted, or None."""
    mark = journal.dialect.mark
    conditions = f"stream = {mark} AND fold = {mark} AND schema = {mark}"
    parameters: list[Any] = [stream, kind.fold, kind.schema]
    if to_version is not None:
        conditions += f" AND version <= {mark}"
        parameters.append(to_version)
    if until is not None:
        conditions += f" AND latest <= {mark}"
        parameters.append(micros(until))
    rows = await journal.fetch(
        f"SELECT version, hash, latest, state FROM rabbitflow_snapshots AS kept WHERE {conditions}"
        " AND hash = (SELECT hash FROM rabbitflow_events"
        " WHERE stream = kept.stream AND version = kept.version)"
        " ORDER BY version DESC LIMIT 1",
        parameters,
    )
    if not rows:
        return None
    version, hash_, latest, state = rows[0]
    try:
        return Snapshot(kind.adapter.validate_json(state), version, hash_, latest)
    except ValidationError:
        return None


async def save(engine: AsyncEngine, stream: str, kind: Kind, snapshot: Snapshot) -> None:
    """Keep a snapshot. A state that would not come back as it is, is not kept; a database that
    does not take it is logged: the events are all that counts."""
    try:
        written = kind.adapter.dump_json(snapshot.state)
        if kind.adapter.validate_json(written) != snapshot.state:
            return
    except (PydanticSerializationError, ValidationError):
        return
    try:
        with store_failures(shown(engine.url)):
            async with engine.begin() as connection:
                await connection.execute(
                    text(
                        "INSERT INTO rabbitflow_snapshots"
                        " (stream, fold, schema, version, hash, latest, state) VALUES"
                        " (:stream, :fold, :schema, :version, :hash, :latest, :state)"
                        " ON CONFLICT DO NOTHING"
                    ),
                    {
                        "stream": stream,
                        "fold": kind.fold,
                        "schema": kind.schema,
                        "version": snapshot.version,
                        "hash": snapshot.hash,
                        "latest": snapshot.latest,
                        "state": written.decode(),
                    },
                )
    except StoreError as error:
        _log.warning("a snapshot was not kept", extra={"stream": stream, "error": str(error)})


async def drop(engine: AsyncEngine, stream: str | None) -> int:
    """Remove the snapshots of a stream, or all; return how many."""
    with store_failures(shown(engine.url)):
        async with engine.begin() as connection:
            where = "" if stream is None else " WHERE stream = :stream"
            removed = await connection.execute(
                text(f"DELETE FROM rabbitflow_snapshots{where}"), {"stream": stream}
            )
            return removed.rowcount
