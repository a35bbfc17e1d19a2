"""Tells readers that wait at the end of the store that there may be more."""

from __future__ import annotations

import asyncio


class Bell:
    """Rung after a commit. Who looks at ``rings`` before reading misses none while it reads."""

    def __init__(self) -> None:
        self.rings = 0
        self._waiting: set[asyncio.Future[None]] = set()

    def ring(self) -> None:
        """Wake everybody who waits. Call it on the event loop."""
        self.rings += 1
        for waiting in self._waiting:
            if not waiting.done():
                waiting.set_result(None)

    async def wait(self, heard: int, timeout_s: float) -> None:
        """Return when it has rung since ``heard`` rings, or after ``timeout_s`` seconds."""
        if self.rings != heard:
            return
        waiting = asyncio.get_running_loop().create_future()
        self._waiting.add(waiting)
        try:
            await asyncio.wait([waiting], timeout=timeout_s)
        finally:
            self._waiting.discard(waiting)
