"""What a supervisor knows of a consumer at some moment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from rabbitflow.observe.metrics import Figures


@dataclass(slots=True)
class ConsumerState:
    """One consumer, as its supervisor knows it just now.

    Fields:
        is_up: whether all its processes consume and can settle.
        is_paused: by an operator or by its circuit breaker.
        is_breaker_open: or probing, in one of its processes.
        in_flight: deliveries not settled yet.
        handled: figures by event type.
        published: figures by event type, of what its handlers announced.
        messages: in its queues by state: ready, retry, dead; None where nobody counted yet.
        connected: whether its connections stand, by role: consume, publish.
        oldest_waiting_s: since the announcement of the oldest event that it has and has not begun.
        restarts: of its processes, by reason.
    """

    is_up: bool = False
    is_paused: bool = False
    is_breaker_open: bool = False
    in_flight: int = 0
    handled: Figures = field(default_factory=dict)
    published: Figures = field(default_factory=dict)
    messages: Mapping[str, int] = field(default_factory=dict)
    connected: Mapping[str, bool] = field(default_factory=dict)
    oldest_waiting_s: float = 0.0
    restarts: dict[str, int] = field(default_factory=dict)
