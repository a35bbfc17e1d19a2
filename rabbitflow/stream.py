"""The stream a client library reads, from which frames of claimed channels are taken."""

from __future__ import annotations

import asyncio
from typing import Final, Protocol

from rabbitflow.wire import (
    BODY,
    FRAME_BYTES,
    FRAME_END,
    FRAME_HEADER,
    FRAME_HEADER_BYTES,
    HEADER,
    HEARTBEAT,
    HEARTBEAT_FRAME,
    METHOD,
)

SIGN_OF_LIFE_EVERY_S: Final = 1.0
_LIMIT_BYTES: Final = 2**18


class Taker(Protocol):
    """Takes frames of one channel out of the stream."""

    def take(self, kind: int, data: bytes, start: int, end: int) -> bool:
        """Take the frame whose payload is ``data[start:end]``; False leaves it to aiormq."""
        ...


class Stream(asyncio.StreamReader):
    """The stream aiormq reads, less the frames that takers took."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(_LIMIT_BYTES, loop)
        self.takers: dict[int, Taker] = {}
        self._time = loop.time
        self._begun = b""
        self._is_plain = False
        self._reported_at = 0.0

    def feed_data(self, data: bytes) -> None:  # type: ignore[override]
        """Take what belongs to takers, and hand on the rest, as bytes arrive."""
        if self._is_plain:
            super().feed_data(data)
            return
        if self._begun:
            data = self._begun + data
        at = left = 0
        have = len(data)
        takers, unpack = self.takers, FRAME_HEADER.unpack_from
        passed: list[bytes] = []
        took = False
        while have - at >= FRAME_BYTES:
            kind, channel, size = unpack(data, at)
            end = at + size + FRAME_BYTES
            if kind not in (METHOD, HEADER, BODY, HEARTBEAT):
                self._is_plain = True
                break
            if end > have:
                break
            if data[end - 1] != FRAME_END:
                self._is_plain = True
                break
            taker = takers.get(channel)
            if taker is not None and taker.take(kind, data, at + FRAME_HEADER_BYTES, end - 1):
                took = True
                if left < at:
                    passed.append(data[left:at])
                left = end
            at = end
        if self._is_plain:
            at = have
        if left < at:
            passed.append(data[left:at])
        self._begun = data[at:]
        if took:
            self._report()
        for piece in passed:
            super().feed_data(piece)

    def feed_eof(self) -> None:
        """Hand on what had begun, so that the end is reported as on any stream."""
        if self._begun:
            begun, self._begun = self._begun, b""
            super().feed_data(begun)
        super().feed_eof()

    def _report(self) -> None:
        now = self._time()
        if now - self._reported_at > SIGN_OF_LIFE_EVERY_S:
            self._reported_at = now
            super().feed_data(HEARTBEAT_FRAME)


def release(takers: dict[int, Taker], number: int, taker: Taker) -> None:
    """Let a channel go that ``taker`` claimed."""
    # The number may belong to a new channel by now.
    if takers.get(number) is taker:
        del takers[number]
