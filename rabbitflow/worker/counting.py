"""Seeing to it that somebody counts what waits for the consumers, also for those that are down.

A child counts for its own consumer. Where one is down for longer, a process of
:mod:`rabbitflow.worker.backlog` counts until all are back: the supervisor itself would need the
client library and every setting for it, for good.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rabbitflow.worker.plan import Plan
from rabbitflow.worker.slot import Slot

LOOK_EVERY_S = 0.5
PATIENCE_S = 8.0
"""A child that is started again counts by itself before that."""
KEPT_S = 12.0
"""How long the last figures of a child stand in for those to come: a series that is away for a
moment starts every alert on it anew."""
NEEDED_FOR_S = 30.0
"""How long the process stays after the last consumer is back: who died once may die again."""

logger = logging.getLogger(__name__)


class Counting:
    """Knows the backlog of the consumers whose children do not tell it.

    Args:
        slots: returns the places of the children.
        settings: returns the settings as a child is told them.
        plan: how the process logs.

    Attributes:
        messages: by consumer, then by state. It is replaced and never changed, so any thread may
            read it.
    """

    def __init__(
        self,
        slots: Callable[[], Sequence[Slot]],
        settings: Callable[[], Mapping[str, Any]],
        plan: Plan,
    ) -> None:
        self.messages: Mapping[str, Mapping[str, int]] = {}
        self._slots = slots
        self._settings = settings
        self._plan = plan
        self._kept: dict[str, tuple[Mapping[str, int], float]] = {}
        self._counted: Mapping[str, Mapping[str, int]] = {}
        self._down_since: dict[str, float] = {}
        self._needed_at = float("-inf")

    async def run(self) -> None:
        """See to it until cancelled."""
        while True:
            self._look()
            if self._is_needed():
                await self._count()
            await asyncio.sleep(LOOK_EVERY_S)

    def _look(self) -> None:
        """Note what the children tell, and who is down."""
        now = time.monotonic()
        counting = [slot for slot in self._slots() if slot.counts_backlog]
        for slot in counting:
            if slot.beat.messages:
                self._kept[slot.found.name] = slot.beat.messages, now
        self._down_since = {
            # One that is refused is not started again.
            slot.found.name: float("-inf")
            if slot.is_refused
            else self._down_since.get(slot.found.name, now)
            for slot in counting
            if slot.is_down
        }
        if any(now - since >= PATIENCE_S for since in self._down_since.values()):
            self._needed_at = now
        kept = {name: messages for name, (messages, at) in self._kept.items() if now - at < KEPT_S}
        self.messages = kept | dict(self._counted)

    def _is_needed(self) -> bool:
        return time.monotonic() - self._needed_at < NEEDED_FOR_S

    async def _count(self) -> None:
        """Run the process until nobody needs it, or it ends, or the consumers are others."""
        found = {slot.found.name: slot.found for slot in self._slots()}
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "rabbitflow.worker.backlog",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            process_group=0,
        )
        listening = asyncio.create_task(self._listen(process))
        try:
            told = {
                "consumers": [
                    [name, one.retry_buckets_s, one.partitions] for name, one in found.items()
                ],
                "settings": self._settings(),
                "log_format": self._plan.log_format,
                "log_level": self._plan.log_level,
            }
            assert process.stdin is not None
            process.stdin.write(json.dumps(told).encode() + b"\n")
            while self._is_needed() and found.keys() >= self._down_since.keys():
                await asyncio.wait((listening,), timeout=LOOK_EVERY_S)
                self._look()
                if listening.done():
                    listening.result()
                    logger.warning("the process that counts what waits ended; it is started again")
                    break
        finally:
            listening.cancel()
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
            await asyncio.gather(listening, return_exceptions=True)
            self._counted = {}
            self._look()

    async def _listen(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        async for line in process.stdout:
            self._counted = json.loads(line)
