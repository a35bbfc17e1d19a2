"""Showing a session: live on a terminal, or as lines of a log where there is none."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TextIO

from rich.console import Console
from rich.live import Live

from rabbitflow.dev.board import Board
from rabbitflow.dev.session import States
from rabbitflow.dev.view import screen

DRAW_EVERY_S = 0.25
KEPT_LINES = 200

logger = logging.getLogger(__name__)


class LogLines:
    """Says in the log what happens; for a pipe, a file, or a terminal of few abilities."""

    async def run(self, broker: str, states: States, board: Board) -> None:
        """Say which broker it is."""
        logger.info("broker: %s", broker)

    def announced(self, event_id: str, event_type: str) -> None:
        """Say that an event was announced."""
        logger.info("%s %s announced", event_type, event_id)

    def ended(self, consumer: str, ends: Sequence[tuple[str, str]]) -> None:
        """Say how events ended."""
        for event_id, outcome in ends:
            logger.info("%s %s %s", consumer, outcome.replace("_", "-"), event_id)


class LiveView:
    """Draws the session on a terminal. What processes print is caught and shown in its place, for
    a child's line would tear the picture apart."""

    def __init__(self) -> None:
        self._lines: deque[str] = deque(maxlen=KEPT_LINES)

    async def run(self, broker: str, states: States, board: Board) -> None:
        """Draw until cancelled; then give the terminal back, with the last lines of the log."""
        with _caught_output() as (terminal, caught):
            reading = asyncio.create_task(self._read(caught))
            console = Console(file=terminal)
            try:
                with Live(console=console, screen=True, auto_refresh=False) as live:
                    while True:
                        picture = screen(
                            broker, states(), board.events, self._lines, console.height
                        )
                        live.update(picture, refresh=True)
                        await asyncio.sleep(DRAW_EVERY_S)
            finally:
                reading.cancel()
                await asyncio.gather(reading, return_exceptions=True)
                print(*self._lines, sep="\n", file=terminal, flush=True)

    def announced(self, event_id: str, event_type: str) -> None:
        """Nothing to do: the board is drawn."""

    def ended(self, consumer: str, ends: Sequence[tuple[str, str]]) -> None:
        """Nothing to do: the board is drawn."""

    async def _read(self, caught: int) -> None:
        reader = asyncio.StreamReader()
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(caught, "rb", buffering=0)
        )
        try:
            async for line in reader:
                self._lines.append(line.decode(errors="replace").rstrip())
        finally:
            transport.close()


@contextmanager
def _caught_output() -> Iterator[tuple[TextIO, int]]:
    """Turn standard output and error, also those of children to come, into a pipe; give back a
    file on the terminal, and the end to read from."""
    kept = [os.dup(number) for number in (1, 2)]
    reading, writing = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    for number in (1, 2):
        os.dup2(writing, number)
    os.close(writing)
    with os.fdopen(os.dup(kept[0]), "w", encoding="utf-8") as terminal:
        try:
            yield terminal, reading
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for number, old in zip((1, 2), kept, strict=True):
                os.dup2(old, number)
                os.close(old)
