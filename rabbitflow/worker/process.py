"""A child process as its supervisor sees it: started, heard, told to stop, ended."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from rabbitflow.observe.metrics import Figures
from rabbitflow.worker.forking import END_UNSEEN
from rabbitflow.worker.starting import Process, Starter

EXIT_CONFIGURATION = 78
"""EX_CONFIG of sysexits.h: starting again won't help, so nobody should."""
EXIT_REPLACE = 75
"""EX_TEMPFAIL: a thread hangs for good, and a fresh process is wanted at once."""
EXIT_BROKER_LOST = 69
"""EX_UNAVAILABLE: the broker could not be reached for too long."""
ORDERLY_EXITS = frozenset({0, EXIT_CONFIGURATION, EXIT_REPLACE, EXIT_BROKER_LOST})

LINE_LIMIT_BYTES = 16 * 1024 * 1024
START_TIMEOUT_S = 60.0
LAST_WORDS_WITHIN_S = 1.0


@dataclass(frozen=True, slots=True)
class Order:
    """What a child is told at its start: by its socket and never by argv, where ``ps`` shows it.

    Fields:
        module: which to import.
        consumer: which of its consumers to run.
        settings: as JSON, with the broker's URL.
        strikes: events that killed a process they ran alone in.
        note: the file in which it notes the event that runs alone.
        after_crash: whether the child before it died.
        concurrency: in place of the consumer's own.
        tells_events: whether it tells how each event ended, for somebody who looks on.
        counts_backlog: whether it asks the broker how many messages wait in its queues.
    """

    module: str
    consumer: str
    settings: dict[str, Any]
    strikes: dict[str, list[Any]] = field(default_factory=dict)
    note: str | None = None
    after_crash: bool = False
    concurrency: int | None = None
    tells_events: bool = False
    counts_backlog: bool = False
    log_format: str = "text"
    log_level: str = "INFO"


@dataclass(frozen=True, slots=True)
class Beat:
    """A sign of life of a child, with what it has to tell.

    Fields:
        is_ready: whether the broker hands it events and it can settle them.
        is_paused: whether an operator or its breaker holds it back.
        is_breaker_open: whether its breaker is open, or lets one event through to probe.
        in_flight: deliveries in it that are not settled.
        handled: figures of its handlers, counted since its start.
        published: figures of what they announced.
        oldest_waiting_s: since the announcement of the oldest event in it that has not begun.
        connected: whether its connections stand, by role.
        ended: event id and outcome of each event since the last one, where somebody looks on.
        messages: in its queues, by state: ready, retry, dead; empty where it did not ask, or could
            not.
    """

    is_ready: bool = False
    is_paused: bool = False
    is_breaker_open: bool = False
    in_flight: int = 0
    handled: Figures = field(default_factory=dict)
    published: Figures = field(default_factory=dict)
    oldest_waiting_s: float = 0.0
    connected: dict[str, bool] = field(default_factory=dict)
    ended: list[tuple[str, str]] = field(default_factory=list)
    messages: dict[str, int] = field(default_factory=dict)


OnEnded = Callable[[Sequence[tuple[str, str]]], object]


class Child:
    """One running child. The socket to it is also its life line: when it closes, the child stops,
    so that a supervisor that is killed leaves nobody behind."""

    def __init__(self, process: Process, on_ended: OnEnded | None) -> None:
        self.process = process
        self.beat = Beat()
        self.has_beaten = False
        self.was_ready = False
        self.heard_at = time.monotonic()
        self.failure: str | None = None
        self.killed_because: str | None = None
        self._told_status = END_UNSEEN
        self._on_ended = on_ended
        self._writer: asyncio.StreamWriter | None = None
        self._listening: asyncio.Task[None] | None = None

    @classmethod
    async def start(cls, order: Order, starter: Starter, on_ended: OnEnded | None = None) -> Child:
        """Start a child and give it its order.

        Args:
            order: what it is told.
            starter: what gives it a process.
            on_ended: called with how its events ended.

        Raises:
            OSError: the system gives no process.
        """
        process, line = await starter.start(order.consumer)
        child = cls(process, on_ended)
        reader, child._writer = await asyncio.open_connection(sock=line, limit=LINE_LIMIT_BYTES)
        with contextlib.suppress(ConnectionError):
            # A child that died at once closes its end; its exit status says more.
            child._writer.write(json.dumps(_as_dict(order)).encode() + b"\n")
            await child._writer.drain()
        child._listening = asyncio.create_task(child._listen(reader))
        return child

    async def wait(self) -> int:
        """Return the exit status once the child has ended; negative for a signal."""
        status = await self.process.wait()
        if self._listening is not None:
            # Whoever it forked itself, and left behind, may hold its end of the line open.
            await asyncio.wait({self._listening}, timeout=LAST_WORDS_WITHIN_S)
        if self._writer is not None:
            self._writer.close()
            with contextlib.suppress(ConnectionError):
                await self._writer.wait_closed()
        if self._listening is not None:
            await self._listening
        return self._told_status if status == END_UNSEEN else status

    def overdue_s(self, stall_timeout_s: float) -> float:
        """How long it has been silent beyond what it may be, in seconds; below 0 while it is well.
        Before its first sign of life it may take its time to import the modules."""
        if self.process.returncode is not None:
            return -stall_timeout_s
        limit_s = stall_timeout_s if self.has_beaten else max(START_TIMEOUT_S, stall_timeout_s)
        return time.monotonic() - self.heard_at - limit_s

    def terminate(self) -> None:
        """Ask it to finish and stop; asked twice, it stops at once."""
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGTERM)

    def kill(self, because: str) -> None:
        """End it without asking."""
        self.killed_because = because
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        with contextlib.suppress(ConnectionError):
            async for line in reader:
                try:
                    report = json.loads(line)
                except ValueError:
                    continue  # its end cut it short
                if "status" in report:
                    self.failure, self._told_status = report["failure"], report["status"]
                else:
                    self.beat = Beat(**report)
                    self.has_beaten = True
                    self.was_ready = self.was_ready or self.beat.is_ready
                    self.heard_at = time.monotonic()
                    if self._on_ended is not None and self.beat.ended:
                        self._on_ended(self.beat.ended)


def ended(status: int) -> str:
    """Say how a process ended, from its exit status."""
    if status == END_UNSEEN:
        return "nobody saw how"
    if status >= 0:
        return f"exit code {status}"
    try:
        return f"signal {-status} ({signal.Signals(-status).name})"
    except ValueError:
        return f"signal {-status}"


def _as_dict(order: Order) -> dict[str, Any]:
    return {name: getattr(order, name) for name in order.__slots__}
