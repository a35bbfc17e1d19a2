"""Which events to read and in which order, as SQL for either database."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from rabbitflow.errors import EventError
from rabbitflow.store.recorded import Row, micros


@dataclass(frozen=True, slots=True)
class Dialect:
    """What differs between the two databases when events are read.

    Fields:
        mark: stands for a parameter.
        columns: select a ``Row``.
        time: returns a time as a parameter.
    """

    mark: str
    columns: str
    time: Callable[[datetime], Any]


SQLITE = Dialect("?", ", ".join(Row._fields), micros)
_POSTGRES_COLUMNS = {
    "timestamp": "(extract(epoch FROM timestamp) * 1000000)::bigint",
    "recorded_at": "(extract(epoch FROM recorded_at) * 1000000)::bigint",
    "data": "data::text",
}
POSTGRES = Dialect(
    "%s", ", ".join(_POSTGRES_COLUMNS.get(name, name) for name in Row._fields), lambda time: time
)


@dataclass(frozen=True, slots=True)
class Selection:
    """Events of one stream by version, or of the whole store by position.

    Fields:
        stream: of this stream; None for the whole store.
        first: the first version or position wanted.
        last: the last one wanted; None for the end.
        until: only what happened up to then, it included.
        types: only these event types; empty for all.
        is_backward: the newest first.
    """

    stream: str | None = None
    first: int = 1
    last: int | None = None
    until: datetime | None = None
    types: tuple[str, ...] = ()
    is_backward: bool = False

    def sql(self, dialect: Dialect, limit: int) -> tuple[str, list[Any]]:
        """Return the statement for the next ``limit`` events, and its parameters."""
        mark = dialect.mark
        number = "position" if self.stream is None else "version"
        conditions = [f"{number} >= {mark}"]
        parameters: list[Any] = [self.first]
        if self.stream is not None:
            conditions.insert(0, f"stream = {mark}")
            parameters.insert(0, self.stream)
        if self.last is not None:
            conditions.append(f"{number} <= {mark}")
            parameters.append(self.last)
        if self.until is not None:
            conditions.append(f"timestamp <= {mark}")
            parameters.append(dialect.time(self.until))
        if self.types:
            conditions.append(f"type IN ({', '.join([mark] * len(self.types))})")
            parameters += self.types
        order = "DESC" if self.is_backward else "ASC"
        return (
            f"SELECT {dialect.columns} FROM rabbitflow_events WHERE {' AND '.join(conditions)}"
            f" ORDER BY {number} {order} LIMIT {limit}",
            parameters,
        )

    def after(self, row: Sequence[Any]) -> Selection:
        """Return what is left of the selection after ``row``, a tuple in the order of ``Row``."""
        number = row[0] if self.stream is None else row[2]
        if self.is_backward:
            return replace(self, last=number - 1)
        return replace(self, first=number + 1)


def aware(until: datetime | None) -> datetime | None:
    """Return a time that is to bound what is read.

    Raises:
        EventError: it has no time zone.
    """
    if until is not None and until.tzinfo is None:
        raise EventError(f"{until} has no time zone; write datetime(…, tzinfo=UTC)")
    return until
