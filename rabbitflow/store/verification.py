"""Whether the history is still what was appended: finds altered, removed and inserted events."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from rabbitflow.errors import EventError
from rabbitflow.store.eventstore import EventStore
from rabbitflow.store.recorded import NO_HASH, Row, chained, digest
from rabbitflow.store.selection import Selection

Kind = Literal["altered", "removed", "inserted"]
Head = tuple[int, bytes]


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that was done to the history, and where.

    Fields:
        kind: ``altered``, ``removed`` or ``inserted``.
        what: in words.
        stream, version, position: where, as far as it is known.
    """

    kind: Kind
    what: str
    stream: str | None = None
    version: int | None = None
    position: int | None = None


@dataclass(slots=True)
class Verification:
    """What was found.

    Fields:
        events: how many were looked at.
        streams: how many streams they belong to.
        position: of the last one.
        seal: stands for everything up to there; keep it elsewhere and give it to the next
            verification, and whatever was changed in that part since is found, also by somebody
            who may write to the database as he likes.
        faults: none when all is well.
    """

    events: int = 0
    streams: int = 0
    position: int = 0
    seal: str = ""
    faults: list[Fault] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """Return it as JSON."""
        return asdict(self)


async def verify(store: EventStore, seal: str | None = None) -> Verification:
    """Look at every event that is in the store now; writers may go on.

    Without a seal it finds what was changed by somebody who did not also write all the hashes that
    follow anew; with one it finds that, too.

    Args:
        store: which.
        seal: of an earlier verification.

    Raises:
        EventError: ``seal`` is none.
    """
    sealed_at, sealed = _parsed(seal) if seal else (None, "")
    ends = await _ends(store)
    result = Verification(position=await store.position())
    heads: dict[str, Head] = {}
    running = hashlib.sha256()
    selection = Selection(None, 1, result.position)
    expected = 1
    async for rows in store.rows(selection):
        for row in map(Row._make, rows):
            if row.position != expected:
                result.faults.append(_missing_positions(expected, row.position - 1))
            expected = row.position + 1
            if sealed_at is not None and row.position > sealed_at:
                _check_seal(result, running, sealed_at, sealed)
                sealed_at = None
            _check(row, heads, result.faults)
            running.update(_bytes(row.hash))
            result.events += 1
    if sealed_at is not None:
        _check_seal(result, running, sealed_at, sealed)
    result.streams = len(heads)
    result.seal = f"{expected - 1}:{running.hexdigest()}"
    result.faults += await _check_ends(store, ends, heads)
    return result


def _check(row: Row, heads: dict[str, Head], faults: list[Fault]) -> None:
    """Compare an event with its hash and the event before; the head moves on to it."""
    version, previous = heads.get(row.stream, (0, NO_HASH))
    place = (row.stream, row.version, row.position)
    is_next = row.version == version + 1
    if not is_next and isinstance(row.version, int) and row.version > version:
        gone = f"versions {version + 1} to {row.version - 1}"
        if row.version == version + 2:
            gone = f"version {version + 1}"
        faults.append(Fault("removed", f"{gone} of {row.stream!r} are missing", *place))
    elif not is_next:
        what = f"version {row.version} of {row.stream!r} comes after version {version}"
        faults.append(Fault("inserted", what, *place))
        return
    elif chained(previous, row.version, _content(row)) != row.hash:
        faults.append(
            Fault(
                "altered",
                f"version {row.version} of {row.stream!r} ({row.id}) does not match its hash and"
                " the event before: it was altered, or inserted by other hands",
                *place,
            )
        )
    heads[row.stream] = (row.version, _bytes(row.hash))


def _content(row: Row) -> bytes:
    try:
        return digest(row.stream, row)
    except (EventError, TypeError):
        return b""  # not what the store ever writes


def _bytes(value: object) -> bytes:
    return value if isinstance(value, bytes) else repr(value).encode()


def _missing_positions(first: int, last: int) -> Fault:
    which = f"position {first} is" if first == last else f"positions {first} to {last} are"
    return Fault("removed", f"{which} missing from the store", position=first)


async def _ends(store: EventStore) -> dict[str, Head]:
    rows = await store.journal.fetch("SELECT stream, version, hash FROM rabbitflow_streams", ())
    return {stream: (version, hash_) for stream, version, hash_ in rows}


async def _check_ends(
    store: EventStore, ends: dict[str, Head], heads: dict[str, Head]
) -> list[Fault]:
    """Compare where streams were noted to end with where they end; the notes are older."""
    faults = []
    for stream, (version, hash_) in ends.items():
        found, found_hash = heads.get(stream, (0, NO_HASH))
        if found < version:
            what = f"{stream!r} ended at version {version}, and now at {found}"
            faults.append(Fault("removed", what, stream, found + 1))
        elif found == version and found_hash != hash_:
            what = f"the last event of {stream!r} is not the one that was appended"
            faults.append(Fault("altered", what, stream, version))
    unknown = [stream for stream, head in heads.items() if ends.get(stream, (0, b""))[0] < head[0]]
    noted = await _ends(store) if unknown else {}
    for stream in unknown:
        version, noted_version = heads[stream][0], noted.get(stream, (0, b""))[0]
        if noted_version < version:
            what = f"{stream!r} was noted to end at version {noted_version}, and has {version}"
            faults.append(Fault("inserted", what, stream, noted_version + 1))
    return faults


def _check_seal(result: Verification, running: Any, position: int, sealed: str) -> None:
    if running.hexdigest() != sealed:
        what = f"the events up to position {position} are not those that were sealed"
        result.faults.append(Fault("altered", what, position=position))


def _parsed(seal: str) -> tuple[int, str]:
    position, _, hexadecimal = seal.partition(":")
    if not position.isdigit() or len(hexadecimal) != 64:
        raise EventError("not a seal: give what an earlier verification printed, POSITION:HASH")
    return int(position), hexadecimal
