"""One session of development: a broker, the supervisor, the tap, and who shows what they do."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack
from datetime import datetime
from typing import Any, Protocol

from yarl import URL

from rabbitflow.dev.board import Board
from rabbitflow.dev.tap import Tap
from rabbitflow.fallback import broker_or_embedded
from rabbitflow.observe.state import ConsumerState
from rabbitflow.settings import Settings
from rabbitflow.worker.discovery import Discovery
from rabbitflow.worker.plan import Plan, Terms
from rabbitflow.worker.supervisor import Supervisor

LOOPBACK = ("localhost", "127.0.0.1", "::1")

States = Callable[[], Mapping[str, ConsumerState]]


class Show(Protocol):
    """What shows a session: a live view on a terminal, or lines of a log."""

    async def run(self, broker: str, states: States, board: Board) -> None:
        """Show until cancelled."""

    def announced(self, event_id: str, event_type: str) -> None:
        """An event was announced."""

    def ended(self, consumer: str, ends: Sequence[tuple[str, str]]) -> None:
        """Events ended for a consumer: pairs of event id and outcome."""


async def develop(plan: Plan, settings: Settings, show: Show) -> int:
    """Run everything until SIGINT or SIGTERM; return the exit code.

    The broker is that of ``settings`` where one answers, else an embedded one, on the port where
    publishers and workers in other terminals look for it, if that is free.

    Raises:
        ConfigurationError: nothing that can be run was found.
        AccessRefused: a broker answers, and refuses.
    """
    async with AsyncExitStack() as stack:
        found = await stack.enter_async_context(
            broker_or_embedded(settings, "rabbitflow dev", port=_local_port(settings))
        )
        board = Board()
        types: set[str] = set()

        def discovered(discovery: Discovery) -> None:
            for consumer in discovery.consumers:
                types.update(consumer.event_types)
            tap.ask_again()

        def ended(consumer: str, ends: Sequence[tuple[str, str]]) -> None:
            board.ended(consumer, ends)
            show.ended(consumer, ends)

        def announced(event_id: str, event_type: str, at: datetime) -> None:
            if board.announced(event_id, event_type, at):
                show.announced(event_id, event_type)

        def heard_types() -> set[str]:
            states = supervisor.states().values()
            return types | {event_type for state in states for event_type in state.published}

        supervisor = Supervisor(plan, Terms.of(found.settings), discovered, on_ended=ended)
        tap = Tap(found.settings, heard_types, announced)
        for work in (tap.listen(), show.run(found.description, supervisor.states, board)):
            _beside(stack, work)
        return await supervisor.run()


def _local_port(settings: Settings) -> int:
    url = URL(settings.broker_urls[0])
    return url.port or 5672 if url.host in LOOPBACK and url.scheme == "amqp" else 0


def _beside(stack: AsyncExitStack, work: Coroutine[Any, Any, None]) -> None:
    """Run ``work`` for as long as the session lasts."""
    task = asyncio.create_task(work)

    async def end() -> None:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        if not task.cancelled() and (error := task.exception()) is not None:
            raise error

    stack.push_async_callback(end)
