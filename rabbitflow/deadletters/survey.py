"""What is among the dead letters: counted and grouped by what went wrong, or read one by one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from rabbitflow.deadletters.letter import EVERYTHING, Letter, Selection
from rabbitflow.deadletters.look import Look
from rabbitflow.settings import Settings


@dataclass(slots=True)
class Group:
    """Dead letters that failed alike.

    Fields:
        reason, exception_type, event_type: what they have in common.
        count: how many.
        first_failed_at, last_failed_at: of their failures, the earliest and the latest.
    """

    reason: str
    exception_type: str | None
    event_type: str | None
    count: int = 0
    first_failed_at: datetime | None = None
    last_failed_at: datetime | None = None

    def add(self, failed_at: datetime | None) -> None:
        """Count one more."""
        self.count += 1
        if failed_at is not None:
            self.first_failed_at = min(self.first_failed_at or failed_at, failed_at)
            self.last_failed_at = max(self.last_failed_at or failed_at, failed_at)


@dataclass(slots=True)
class Survey:
    """The dead letters of one consumer, the largest group first.

    Fields:
        consumer: whose.
        total: how many there are.
        matching: how many of them are meant by the selection; the groups count only these.
        groups: by reason, exception and event type.
    """

    consumer: str
    total: int
    matching: int
    groups: list[Group]


async def survey(
    consumer: str,
    settings: Settings,
    selection: Selection = EVERYTHING,
    on_seen: Callable[[int, int], object] = lambda seen, total: None,
) -> Survey:
    """Count and group the dead letters of ``consumer``; each stays where it is.

    ``on_seen`` is called with how many were looked at, and how many there are.

    Raises:
        As :class:`Look`.
    """
    groups: dict[tuple[str, str | None, str | None], Group] = {}
    matching = seen = 0
    async with Look(consumer, settings) as look:
        total = look.count
        async for held in look:
            seen += 1
            on_seen(seen, total)
            letter = held.letter
            if not selection.matches(letter):
                continue
            matching += 1
            key = (letter.reason, letter.exception_type, letter.event_type)
            group = groups.get(key)
            if group is None:
                group = groups[key] = Group(*key)
            group.add(letter.failed_at)
    found = sorted(groups.values(), key=lambda group: -group.count)
    return Survey(consumer, total, matching, found)


async def find(
    consumer: str, settings: Settings, selection: Selection = EVERYTHING, limit: int | None = None
) -> list[Letter]:
    """Return the oldest ``limit`` dead letters that are meant; each stays where it is.

    Raises:
        As :class:`Look`.
    """
    found: list[Letter] = []
    async with Look(consumer, settings) as look:
        async for held in look:
            if selection.matches(held.letter) and (limit is None or len(found) < limit):
                found.append(held.letter)
    return found


async def each(
    consumer: str,
    settings: Settings,
    on_letter: Callable[[Letter, int], object],
    selection: Selection = EVERYTHING,
) -> int:
    """Call ``on_letter`` with each dead letter that is meant, and how many there are; return how
    many were meant. One is in memory at a time, or as many as a window holds.

    Raises:
        As :class:`Look`.
    """
    count = 0
    async with Look(consumer, settings) as look:
        total = look.count
        async for held in look:
            if selection.matches(held.letter):
                count += 1
                on_letter(held.letter, total)
    return count
