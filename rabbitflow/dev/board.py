"""What is on the board: the latest events, and what each consumer made of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime

from rabbitflow.observe.metrics import RETRIED

KEPT_EVENTS = 500


@dataclass(slots=True)
class Announced:
    """An event that somebody announced.

    Fields:
        outcomes: how it ended last, by consumer.
        attempts: how often each consumer tried it.
    """

    id: str
    type: str
    at: datetime
    outcomes: dict[str, str] = field(default_factory=dict)
    attempts: dict[str, int] = field(default_factory=dict)


class Board:
    """The latest events, the oldest first. It only notes; who shows it reads :attr:`events`."""

    def __init__(self) -> None:
        self._by_id: dict[str, Announced] = {}

    @property
    def events(self) -> list[Announced]:
        """The latest events, the oldest first."""
        return list(self._by_id.values())

    def announced(self, event_id: str, event_type: str, at: datetime) -> bool:
        """Note an event; return whether it is new. A duplicate changes nothing."""
        if event_id in self._by_id:
            return False
        self._by_id[event_id] = Announced(event_id, event_type, at)
        while len(self._by_id) > KEPT_EVENTS:
            del self._by_id[next(iter(self._by_id))]
        return True

    def ended(self, consumer: str, ends: Iterable[tuple[str, str]]) -> None:
        """Note how events ended for ``consumer``: pairs of event id and outcome. Those that are not
        on the board, or not any more, are passed over."""
        for event_id, outcome in ends:
            event = self._by_id.get(event_id)
            if event is not None:
                event.outcomes[consumer] = outcome
                event.attempts[consumer] = event.attempts.get(consumer, 0) + 1

    def retrying(self) -> int:
        """How many of the events on the board wait for another attempt somewhere."""
        return sum(RETRIED in event.outcomes.values() for event in self._by_id.values())
