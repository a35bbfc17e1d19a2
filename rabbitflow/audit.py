"""The joined answer: what happened, the state it led to, and what each consumer did about it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import select

from rabbitflow.deadletters.letter import Letter, Selection
from rabbitflow.deadletters.look import NoDeadLetterQueue
from rabbitflow.deadletters.survey import find
from rabbitflow.errors import EventError
from rabbitflow.settings import Settings
from rabbitflow.store import EventStore, Recorded
from rabbitflow.store.failures import store_failures
from rabbitflow.store.outbox import INBOX

HANDLED, DEAD_LETTERED, NO_TRACE = "handled", "dead-lettered", "no trace"
"""What is known of an event and a consumer. No trace: it waits, is being retried, or was handled by
a handler without ``once=True``, which leaves none."""

AT_ONCE = 500


@dataclass(frozen=True, slots=True)
class Deed:
    """What a consumer did with an event.

    Fields:
        consumer: its name.
        outcome: :data:`HANDLED`, :data:`DEAD_LETTERED` or :data:`NO_TRACE`.
        at: when; None where nothing tells.
        attempts: how often it was tried, the last one included; 0 where nothing tells.
        is_replay: whether it was handled on an operator's wish.
        replays: how often it was replayed from the dead letters.
        why: of a dead letter: reason, exception and what it said.
    """

    consumer: str
    outcome: str
    at: datetime | None = None
    attempts: int = 0
    is_replay: bool = False
    replays: int = 0
    why: str | None = None


@dataclass(frozen=True, slots=True)
class Finding:
    """One event of an audit.

    Fields:
        event_id: its id.
        recorded: the event as it is stored; None where the store does not have it.
        state: that the stream's events up to this one lead to; None without a fold.
        deeds: what each consumer did with it.
    """

    event_id: str
    recorded: Recorded | None
    state: Any
    deeds: tuple[Deed, ...]


async def audit(
    subject: str,
    store: EventStore,
    consumers: Mapping[str, Sequence[str]],
    settings: Settings,
    *,
    fold: Any = None,
) -> list[Finding]:
    """Return what is known of a stream, or of one event by its id.

    Args:
        subject: a stream's name, or an event's id.
        store: whose events; the inbox is looked for in the same database.
        consumers: whose dead letters are looked at, and the event types each reacts to.
        settings: of the broker.
        fold: of the stream's state, as for :meth:`EventStore.rebuild`.

    Raises:
        EventError: neither store, inbox nor dead letters know it.
        StoreError, BrokerError: one of them can't be read.
    """
    events = [recorded async for recorded in store.read(subject)]
    if not events:
        one = await _event(store, subject)
        events = [one] if one is not None else []
    ids = [recorded.event.id for recorded in events] or [subject]
    handled = await _handled(store, ids)
    letters = await _dead_letters(consumers, ids, settings)
    if not events and not handled and not letters:
        raise EventError(
            f"{subject!r} is no stream and no event that store, inboxes or dead letters know"
        )
    findings = []
    found: list[Recorded | None] = [*events] or [None]
    for event_id, recorded in zip(ids, found, strict=True):
        deeds = [*handled.get(event_id, ()), *letters.get(event_id, ())]
        known = {deed.consumer for deed in deeds}
        if recorded is not None:
            deeds += [
                Deed(name, NO_TRACE)
                for name, event_types in consumers.items()
                if recorded.event.type in event_types and name not in known
            ]
        state = None
        if fold is not None and recorded is not None:
            state = await store.rebuild(recorded.stream, fold, to_version=recorded.version)
        deeds.sort(key=lambda deed: (deed.consumer, deed.at is None, deed.at))
        findings.append(Finding(event_id, recorded, state, tuple(deeds)))
    return findings


async def _event(store: EventStore, event_id: str) -> Recorded | None:
    mark = store.journal.dialect.mark
    places = await store.journal.fetch(
        f"SELECT stream, version FROM rabbitflow_events WHERE id = {mark}", [event_id]
    )
    if not places:
        return None
    stream, version = places[0]
    async for recorded in store.read(stream, from_version=version, to_version=version):
        return recorded
    return None


async def _handled(store: EventStore, ids: Sequence[str]) -> dict[str, list[Deed]]:
    deeds: dict[str, list[Deed]] = {}
    with store_failures(store.database.shown):
        async with store.engine.connect() as connection:
            await connection.execution_options(sqlite_begin="DEFERRED")
            for first in range(0, len(ids), AT_ONCE):
                wanted = INBOX.c.event_id.in_(ids[first : first + AT_ONCE])
                for row in await connection.execute(select(INBOX).where(wanted)):
                    deed = Deed(
                        row.consumer,
                        HANDLED,
                        datetime.fromtimestamp(row.handled_at, UTC),
                        row.attempt,
                        row.is_replay,
                    )
                    deeds.setdefault(row.event_id, []).append(deed)
    return deeds


async def _dead_letters(
    consumers: Iterable[str], ids: Sequence[str], settings: Settings
) -> dict[str, list[Deed]]:
    deeds: dict[str, list[Deed]] = {}
    for consumer in consumers:
        try:
            letters = await find(consumer, settings, Selection(ids=frozenset(ids)))
        except NoDeadLetterQueue:
            continue  # it has never run here
        for letter in letters:
            deeds.setdefault(letter.id, []).append(_deed(consumer, letter))
    return deeds


def _deed(consumer: str, letter: Letter) -> Deed:
    said = [text for text in (letter.exception_type, letter.exception_message) if text]
    why = f"{letter.reason}: {': '.join(said)}" if said else letter.reason
    dead = Deed(consumer, DEAD_LETTERED, letter.failed_at, letter.attempt, why=why)
    return replace(dead, replays=letter.replays)
