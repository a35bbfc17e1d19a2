"""The live view of ``rabbitflow dev``: consumers, the latest events, the log."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Column, Table
from rich.text import Text

from rabbitflow.dev.board import Announced
from rabbitflow.observe.metrics import DEAD_LETTERED, DUPLICATE, RETRIED, SUCCEEDED
from rabbitflow.observe.state import ConsumerState

_MARKS = {
    SUCCEEDED: ("✓", "green"),
    RETRIED: ("↻", "yellow"),
    DEAD_LETTERED: ("✗", "red"),
    DUPLICATE: ("=", "cyan"),
}
_LOG_LINES = 8


def screen(
    broker: str,
    states: Mapping[str, ConsumerState],
    events: list[Announced],
    log: Iterable[str],
    height: int,
) -> RenderableType:
    """Return everything that fits on ``height`` lines."""
    lines = list(log)[-_LOG_LINES:]
    room = height - len(states) - len(lines) - 12
    return Group(
        Text(broker, style="dim", overflow="ellipsis", no_wrap=True),
        _consumers(states),
        _events(events[-max(3, room) :]),
        Panel("\n".join(lines) or "nothing yet", title="log", title_align="left", style="dim"),
    )


def _consumers(states: Mapping[str, ConsumerState]) -> Table:
    numbers = ("handled", "retried", "dead", "in hand", "waiting", "for retry", "dead letters")
    table = Table(
        "consumer",
        "",
        *(Column(number, justify="right") for number in numbers),
        expand=True,
        title="consumers",
        title_justify="left",
    )
    for name, state in states.items():
        outcomes = [figures["outcomes"] for figures in state.handled.values()]
        messages = state.messages
        table.add_row(
            name,
            _condition(state),
            *(
                str(sum(outcome.get(kind, 0) for outcome in outcomes))
                for kind in (SUCCEEDED, RETRIED, DEAD_LETTERED)
            ),
            str(state.in_flight),
            *(str(messages.get(kind, "")) for kind in ("ready", "retry", "dead")),
        )
    return table


def _condition(state: ConsumerState) -> Text:
    if state.is_breaker_open:
        return Text("breaker open", style="yellow")
    if state.is_paused:
        return Text("paused", style="yellow")
    return Text("up", style="green") if state.is_up else Text("down", style="red")


def _events(events: list[Announced]) -> Table:
    table = Table(
        "announced", "event", "id", "what each made of it", expand=True, title="events",
        title_justify="left",
    )  # fmt: skip
    for event in reversed(events):
        table.add_row(f"{event.at:%H:%M:%S}", event.type, event.id[-12:], _outcomes(event))
    return table


def _outcomes(event: Announced) -> Text:
    text = Text()
    for consumer, outcome in event.outcomes.items():
        mark, style = _MARKS.get(outcome, (outcome, ""))
        times = event.attempts[consumer]
        text.append(f"{consumer} {mark}{times if times > 1 else ''}  ", style=style)
    return text or Text("nobody yet", style="dim")
