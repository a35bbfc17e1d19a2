"""A gate that lets many through together, or one alone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Gate:
    """Shared passage by default; exclusive for a delivery that may kill its process.

    Shared passage costs no await: look at :attr:`is_open`, then :meth:`enter`, later :meth:`leave`.
    :attr:`emptied` is set while nobody is inside.
    """

    def __init__(self) -> None:
        self.inside = 0
        self._one_at_a_time = asyncio.Lock()
        self._open = asyncio.Event()
        self._open.set()
        self.emptied = asyncio.Event()
        self.emptied.set()

    @property
    def is_open(self) -> bool:
        """Whether :meth:`enter` may be called."""
        return self._open.is_set()

    async def opened(self) -> None:
        """Wait until it is open."""
        while not self._open.is_set():
            await self._open.wait()

    def enter(self) -> None:
        """Pass together with others."""
        self.inside += 1
        self.emptied.clear()

    def leave(self) -> None:
        """Come out again."""
        self.inside -= 1
        if not self.inside:
            self.emptied.set()

    @asynccontextmanager
    async def alone(self) -> AsyncIterator[None]:
        """Wait until everybody is out, keep the others out, and pass alone."""
        async with self._one_at_a_time:
            self._open.clear()
            try:
                await self.emptied.wait()
                self.enter()
                try:
                    yield
                finally:
                    self.leave()
            finally:
                self._open.set()
