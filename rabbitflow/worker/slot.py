"""The place of one child process, and what a worker's slots add up to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

from rabbitflow.observe.metrics import Figures, add_figures
from rabbitflow.observe.state import ConsumerState
from rabbitflow.topology import Names
from rabbitflow.worker.discovery import Found
from rabbitflow.worker.plan import Terms
from rabbitflow.worker.process import (
    EXIT_BROKER_LOST,
    EXIT_CONFIGURATION,
    EXIT_REPLACE,
    Beat,
    Child,
)
from rabbitflow.worker.suspects import Strikes, SuspectNote

NOT_CONNECTED = {"consume": False, "publish": False}

END_REASONS = ("died", "stalled", "hung_thread", "broker_lost", "refused")
"""Why a child ended without being told to."""


class Slot:
    """The place of one child: whoever runs there, how often it died, what killed it."""

    def __init__(self, found: Found, number: int, directory: Path, terms: Terms) -> None:
        self.found = found
        self.child: Child | None = None
        self.is_refused = False
        self.failed_starts = 0
        self.is_broker_away = False
        self._was_ready = False
        self.ended_figures: dict[str, Figures] = {"handled": {}, "published": {}}
        # Shown as 0 from the start: a rate needs a value before the first increase.
        self.restarts = Counter(dict.fromkeys(END_REASONS, 0))
        self.label = found.name if not number else f"{found.name}#{number + 1}"
        # One process of a consumer is enough to say what waits in its queues.
        self.counts_backlog = not number
        queue = Names(terms.namespace).queue(found.name)
        self.strikes = Strikes(terms.state_dir / f"{queue}.strikes.json")
        self.note_path = directory / f"{self.label}.suspect"
        self.note = SuspectNote(self.note_path)

    @property
    def is_ready(self) -> bool:
        """Whether its child consumes and can settle."""
        return self.child is not None and self.child.beat.is_ready

    @property
    def was_ready(self) -> bool:
        """Whether a child of it has been ready."""
        return self._was_ready or (self.child is not None and self.child.was_ready)

    @property
    def is_down(self) -> bool:
        """Whether no child of it runs, for another reason than that the broker is away."""
        has_none = self.child is None or not self.child.has_beaten
        return has_none and not self.is_broker_away

    @property
    def missing(self) -> str | None:
        """What it still lacks to be ready, or None."""
        child = self.child
        if child is None:
            return "refused; the log says why" if self.is_refused else "its process is down"
        if not child.has_beaten:
            return "its process is starting"
        if child.beat.is_ready:
            return None
        lost = [role for role, stands in child.beat.connected.items() if not stands]
        if lost:
            return f"no connection to {' and '.join(lost)}"
        return "it does not consume, or an outcome can't be settled"

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

    def continue_from(self, earlier: Slot) -> None:
        """Count on from the slot that this one takes the place of."""
        if earlier.child is not None:
            earlier.retire()
        self.ended_figures, self.restarts = earlier.ended_figures, earlier.restarts

    def end(self, reason: str) -> None:
        """Let go of a child that ended without being told to."""
        self.retire()
        self.restarts[reason] += 1
        self.is_broker_away = reason == "broker_lost"
        # A broker that is away is no fault of the child's.
        self.failed_starts += not self.was_ready and reason != "broker_lost"

    def retire(self) -> None:
        """Keep the figures of a child that ended: a counter never goes backwards."""
        beat = self.beat
        self._was_ready = self.was_ready
        # A new mapping each time: the status server reads the old one in its own thread.
        kept = deepcopy(self.ended_figures)
        add_figures(kept["handled"], beat.handled)
        add_figures(kept["published"], beat.published)
        self.ended_figures, self.child = kept, None


def consumer_states(
    slots: Sequence[Slot], messages: Mapping[str, Mapping[str, int]]
) -> dict[str, ConsumerState]:
    """Return every consumer as it is now, its processes added up. Safe from any thread.

    ``messages`` are those in its queues, by consumer and state, where no child tells them.
    """
    states: dict[str, ConsumerState] = {}
    for slot in slots:
        beat, ended_figures = slot.beat, slot.ended_figures
        state = states.setdefault(slot.found.name, ConsumerState(is_up=True))
        state.is_up = state.is_up and slot.is_ready
        state.is_paused = state.is_paused or beat.is_paused
        state.is_breaker_open = state.is_breaker_open or beat.is_breaker_open
        state.in_flight += beat.in_flight
        add_figures(state.handled, ended_figures["handled"])
        add_figures(state.handled, beat.handled)
        add_figures(state.published, ended_figures["published"])
        add_figures(state.published, beat.published)
        state.oldest_waiting_s = max(state.oldest_waiting_s, beat.oldest_waiting_s)
        if slot.counts_backlog:
            state.messages = beat.messages or messages.get(slot.found.name, {})
        state.connected = {
            role: stands and state.connected.get(role, True)
            for role, stands in (beat.connected or NOT_CONNECTED).items()
        }
        add_figures(state.restarts, dict(slot.restarts))
    return states


def readiness(slots: Sequence[Slot], broken_modules: Sequence[str] = ()) -> dict[str, Any]:
    """Return what ``/readyz`` answers: who is not ready, and why. Safe from any thread."""
    consumers: dict[str, bool] = {}
    reasons: dict[str, str] = {}
    for slot in slots:
        name, missing = slot.found.name, slot.missing
        consumers[name] = consumers.get(name, True) and missing is None
        if missing is not None:
            reasons[slot.label] = missing
    reasons |= dict.fromkeys(broken_modules, "can't be imported")
    return {"ready": bool(consumers) and not reasons, "consumers": consumers, "not_ready": reasons}


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
