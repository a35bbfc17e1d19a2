"""Replaying past events to one consumer, on an operator's wish; resumable."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from rabbitflow.confirmed import ConfirmedChannel
from rabbitflow.errors import ConfigurationError, EventError
from rabbitflow.log.copying import Copies, RecentIds
from rabbitflow.log.entry import Entry
from rabbitflow.log.reading import in_order, note_ends, open_pasts
from rabbitflow.log.span import Span
from rabbitflow.rate import Rate
from rabbitflow.settings import Settings
from rabbitflow.topology import Names

KEEP_EVERY_S = 0.5


@dataclass(frozen=True, slots=True)
class Replay:
    """What to replay: which events, to which consumer.

    Fields:
        consumer: whose queue the copies go to.
        event_types: whose logs are read.
        span: which part of them.
    """

    consumer: str
    event_types: tuple[str, ...]
    span: Span


@dataclass(slots=True)
class Tally:
    """How a replay went, or goes.

    Fields:
        copied: events that are safe in the consumer's queue; in a dry run, that would be.
        left_out: entries outside the span, or announced twice with one id.
        unreadable: entries that are no events; they are not replayed.
        ends: by event type, the last offset there was when it began; None for an empty log.
        progress: by event type, the offset up to which it is done.
    """

    copied: int = 0
    left_out: int = 0
    unreadable: int = 0
    ends: dict[str, int | None] = field(default_factory=dict)
    progress: dict[str, int] = field(default_factory=dict)


class ReplayState:
    """Where a replay to a consumer is kept while it is not finished: a file of this machine.

    Args:
        consumer: its name.
        settings: for the directory and the namespace.
    """

    def __init__(self, consumer: str, settings: Settings) -> None:
        self.path = settings.state_dir / f"{Names(settings.namespace).queue(consumer)}.replay.json"

    def load(self) -> tuple[Replay, Tally] | None:
        """Return the replay that was not finished and how far it got; None where there is none.

        Raises:
            ConfigurationError: the file can't be read.
        """
        try:
            kept = json.loads(self.path.read_text(encoding="utf-8"))
            start, until = kept["replay"]["span"].values()
            replay = Replay(
                kept["replay"]["consumer"],
                tuple(kept["replay"]["event_types"]),
                Span(_moment(start), _moment(until)),
            )
            return replay, Tally(**kept["tally"])
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigurationError(
                f"the state of a replay in {self.path} can't be read ({error}); delete the file to"
                " replay from the beginning"
            ) from error

    def keep(self, replay: Replay, tally: Tally) -> None:
        """Write it; a kill leaves the state before or the state after, never half of one."""
        written = Path(f"{self.path}.new")
        kept = {"replay": asdict(replay), "tally": asdict(tally)}
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            written.write_text(json.dumps(kept, default=_written), encoding="utf-8")
            written.replace(self.path)
        except OSError as error:
            raise ConfigurationError(
                f"the progress of the replay can't be kept in {self.path}: {error};"
                " set RABBITFLOW_STATE_DIR to a directory that can be written"
            ) from error

    def drop(self) -> None:
        """Forget it: the replay is finished."""
        self.path.unlink(missing_ok=True)


async def run_replay(
    replay: Replay,
    settings: Settings,
    *,
    dry_run: bool = False,
    rate: Rate | None = None,
    tally: Tally | None = None,
    on_progress: Callable[[Tally], object] = lambda tally: None,
) -> Tally:
    """Copy past events into one consumer's queue, those of several logs as they happened, up to
    what was there when it began.

    Every half second the progress is kept in a file (:class:`ReplayState`); a replay that is killed
    goes on from there with its ``tally``, and up to half a second of copies are made twice.

    Raises:
        ConfigurationError: there is no such log or queue; the state can't be kept.
        BrokerError: the broker can't be reached, or refuses.
    """
    channel = ConfirmedChannel(settings, f"rabbitflow replay to {replay.consumer}")
    copies = Copies(channel, replay.consumer, settings, rate=rate)
    tally = tally or Tally()
    copied_before = tally.copied
    state = ReplayState(replay.consumer, settings)
    recent = RecentIds()
    kept_at = 0.0

    def advance(*, is_due: bool) -> None:
        nonlocal kept_at
        if not dry_run:
            tally.copied = copied_before + copies.confirmed
            tally.progress |= copies.progress
        if is_due or time.monotonic() - kept_at > KEEP_EVERY_S:
            kept_at = time.monotonic()
            if not dry_run:
                state.keep(replay, tally)
            on_progress(tally)

    try:
        connection = await channel.connection()
        tally.ends = tally.ends or await note_ends(connection, replay.event_types, settings)
        advance(is_due=True)
        async with AsyncExitStack() as stack:
            arguments = {
                event_type: tally.progress[event_type] + 1
                if event_type in tally.progress
                else replay.span.argument
                for event_type in replay.event_types
            }
            pasts = await open_pasts(stack, connection, arguments, tally.ends, settings)
            async for entry in in_order(pasts):
                if not _is_meant(entry, replay.span, recent, tally):
                    continue
                if dry_run:
                    tally.copied += 1
                else:
                    await copies.send(entry)
                advance(is_due=False)
            await copies.all_confirmed()
        advance(is_due=True)
        if not dry_run:
            state.drop()
    finally:
        await copies.close()
        await channel.close()
    return tally


def _is_meant(entry: Entry, span: Span, recent: RecentIds, tally: Tally) -> bool:
    try:
        event = entry.event()
    except EventError:
        tally.unreadable += 1
        return False
    if not span.holds(event) or not recent.add(event.id):
        tally.left_out += 1
        return False
    return True


def _moment(kept: Any) -> Any:
    """A moment was kept as text with a T in it; words and offsets as they are."""
    return datetime.fromisoformat(kept) if isinstance(kept, str) and "T" in kept else kept


def _written(value: object) -> str:
    assert isinstance(value, datetime)
    return value.isoformat()
