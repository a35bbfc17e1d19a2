"""What the broker has done, in figures, and waiting until it has done something."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(slots=True)
class Counters:
    """Figures since the broker was made. They only grow.

    Fields:
        connections: that were opened.
        published: messages that an exchange was given, dead letters not counted.
        unroutable: of these, those that no queue took.
        refused: of these, those that a full queue refused.
        delivered: messages handed to consumers, and by basic.get.
        acked: deliveries that were settled by an ack.
        returned: deliveries that came back to their queue.
        dead_lettered: messages that a dead-letter exchange passed on.
        died: messages that left a queue unhandled, by reason.
    """

    connections: int = 0
    published: int = 0
    unroutable: int = 0
    refused: int = 0
    delivered: int = 0
    acked: int = 0
    returned: int = 0
    dead_lettered: int = 0
    died: Counter[str] = field(default_factory=Counter)


class Activity:
    """Counters, and who waits for them to change."""

    def __init__(self) -> None:
        self.counters = Counters()
        self._waiting: list[asyncio.Future[None]] = []

    def touch(self) -> None:
        """Let everybody who waits look again."""
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            if not future.done():
                future.set_result(None)

    async def until(self, condition: Callable[[], bool], within_s: float) -> None:
        """Return when ``condition`` holds; it is asked again after everything that happens.

        Raises:
            TimeoutError: not within ``within_s`` seconds of real time.
        """
        async with asyncio.timeout(within_s):
            while not condition():
                future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                self._waiting.append(future)
                await future
