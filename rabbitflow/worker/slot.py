"""The place of one child process, and what a worker's slots add up to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

from rabbitflow.observe.exposition import ConsumerState
from rabbitflow.observe.metrics import Figures, add_figures
from rabbitflow.settings import Settings
from rabbitflow.topology import Names
from rabbitflow.worker.discovery import Found
from rabbitflow.worker.process import (
    EXIT_BROKER_LOST,
    EXIT_CONFIGURATION,
    EXIT_REPLACE,
    Beat,
    Child,
)
from rabbitflow.worker.suspects import Strikes, SuspectNote

NOT_CONNECTED = {"consume": False, "publish": False}


class Slot:
    """The place of one child: whoever runs there, how often it died, what killed it."""

    def __init__(self, found: Found, number: int, directory: Path, settings: Settings) -> None:
        self.found = found
        self.child: Child | None = None
        self.is_refused = False
        self.was_ready = False
        self.ended_figures: dict[str, Figures] = {"handled": {}, "published": {}}
        self.restarts: Counter[str] = Counter()
        self.last_messages: dict[str, int] = {}
        self.label = found.name if not number else f"{found.name}#{number + 1}"
        queue = Names(settings.namespace).queue(found.name)
        self.strikes = Strikes(settings.state_dir / f"{queue}.strikes.json")
        self.note_path = directory / f"{self.label}.suspect"
        self.note = SuspectNote(self.note_path)

    @property
    def is_ready(self) -> bool:
        """Whether its child consumes and can settle."""
        return self.child is not None and self.child.beat.is_ready

    @property
    def beat(self) -> Beat:
        """The last thing its child said."""
        return Beat() if self.child is None else self.child.beat

    @property
    def handled(self) -> int:
        """How many events its children are done with, whatever the outcome."""
        return sum(
            sum(figures["outcomes"].values())
            for by_type in (self.ended_figures["handled"], self.beat.handled)
            for figures in by_type.values()
        )

    def end(self, reason: str) -> None:
        """Keep the figures of a child that ended: a counter never goes backwards."""
        beat = self.beat
        self.was_ready = self.was_ready or (self.child is not None and self.child.was_ready)
        # A new mapping each time: the status server reads the old one in its own thread.
        kept = deepcopy(self.ended_figures)
        add_figures(kept["handled"], beat.handled)
        add_figures(kept["published"], beat.published)
        self.ended_figures, self.child = kept, None
        self.last_messages = beat.messages or self.last_messages
        self.restarts[reason] += 1


def consumer_states(slots: Sequence[Slot]) -> dict[str, ConsumerState]:
    """Return every consumer as it is now, its processes added up. Safe from any thread."""
    states: dict[str, ConsumerState] = {}
    for slot in slots:
        beat, ended_figures = slot.beat, slot.ended_figures
        state = states.setdefault(slot.found.name, ConsumerState(is_up=True))
        state.is_up = state.is_up and slot.is_ready
        state.is_paused = state.is_paused or beat.is_paused
        state.in_flight += beat.in_flight
        add_figures(state.handled, ended_figures["handled"])
        add_figures(state.handled, beat.handled)
        add_figures(state.published, ended_figures["published"])
        add_figures(state.published, beat.published)
        state.messages = beat.messages or slot.last_messages or state.messages
        state.connected = {
            role: stands and state.connected.get(role, True)
            for role, stands in (beat.connected or NOT_CONNECTED).items()
        }
        add_figures(state.restarts, dict(slot.restarts))
    return states


def readiness(slots: Sequence[Slot]) -> dict[str, Any]:
    """Return what ``/readyz`` answers. Safe from any thread."""
    consumers: dict[str, bool] = {}
    for slot in slots:
        consumers[slot.found.name] = consumers.get(slot.found.name, True) and slot.is_ready
    return {"ready": bool(consumers) and all(consumers.values()), "consumers": consumers}


def end_reason(child: Child, status: int) -> str:
    """Why a child has to be started again, as a label."""
    if child.killed_because is not None:
        return "stalled"
    reasons = {
        EXIT_REPLACE: "hung_thread",
        EXIT_BROKER_LOST: "broker_lost",
        EXIT_CONFIGURATION: "refused",
    }
    return reasons.get(status, "died")
