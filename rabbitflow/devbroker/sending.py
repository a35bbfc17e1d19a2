"""Bytes on their way to one client: gathered for a turn of the event loop, and not without end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

MOST_UNSENT_BYTES = 1_048_576
"""With so much on its way to a client it gets no further deliveries, until it has read some."""


class Sending:
    """What is written to one transport.

    Args:
        transport: of the client.
        on_sent: called after something was written.
        on_congestion: called when the client becomes congested, or no longer is.
    """

    def __init__(
        self,
        transport: asyncio.Transport,
        on_sent: Callable[[], None],
        on_congestion: Callable[[bool], None],
    ) -> None:
        transport.set_write_buffer_limits(MOST_UNSENT_BYTES)
        self._transport = transport
        self._on_sent = on_sent
        self._on_congestion = on_congestion
        self._unsent: list[bytes] = []
        self._unsent_bytes = 0
        self._flush: asyncio.Handle | None = None
        self._is_paused = False
        self._is_congested = False

    def send(self, data: bytes) -> None:
        """Write bytes at the end of this turn of the event loop."""
        self._unsent.append(data)
        self._unsent_bytes += len(data)
        if self._flush is None:
            self._flush = asyncio.get_running_loop().call_soon(self.flush)
        if self._unsent_bytes > MOST_UNSENT_BYTES:
            self._check_congestion()

    def flush(self) -> None:
        """Write now what is due."""
        self._flush = None
        if not self._unsent or self._transport.is_closing():
            return
        data, self._unsent, self._unsent_bytes = b"".join(self._unsent), [], 0
        self._transport.write(data)
        self._on_sent()
        self._check_congestion()

    def pause(self, *, is_paused: bool) -> None:
        """The transport's buffer is full, or has room again."""
        self._is_paused = is_paused
        self._check_congestion()

    def stop(self) -> None:
        """The client is gone."""
        self._unsent.clear()
        if self._flush is not None:
            self._flush.cancel()

    def _check_congestion(self) -> None:
        is_congested = self._is_paused or self._unsent_bytes > MOST_UNSENT_BYTES
        if is_congested is not self._is_congested:
            self._is_congested = is_congested
            self._on_congestion(is_congested)
