"""Events on their way over one channel: many sent, few waited for, none forgotten."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from pamqp.commands import Basic

from rabbitflow.claims import Confirms
from rabbitflow.errors import PublishTimeout
from rabbitflow.event import Event

Confirmed = Callable[[Event[Any], float], None]

_TURN_EVERY_S = 0.001


class Pipeline:
    """Sends without waiting for each confirm, at most ``window`` events ahead of the broker.

    It knows two ends of an event, confirmed or not. What was not (returned, refused, or the channel
    went) is :meth:`taken back <take_back>`, for the caller to publish again with more care.

    Args:
        confirms: where to send; it lives as long as its channel.
        window: how many events may be unconfirmed.
        timeout_s: how long an event may be unconfirmed, in seconds.
        confirmed: told of each event that is safe, and how long that took; in a coroutine of ours.
    """

    def __init__(
        self, confirms: Confirms, window: int, timeout_s: float, confirmed: Confirmed
    ) -> None:
        self._confirms = confirms
        self._window = max(1, window)
        self._timeout_s = timeout_s
        self._confirmed = confirmed
        self._unconfirmed: dict[int, tuple[Event[Any], float]] = {}
        self._safe: list[tuple[Event[Any], float]] = []
        self._failed: dict[int, Event[Any]] = {}
        self._number = 0
        self._moved: asyncio.Future[None] | None = None
        self._moves_at = 0
        self._turned_at = self._heard_at = time.perf_counter()

    @property
    def silent_s(self) -> float:
        """How long ago the broker last confirmed an event here, or this began, in seconds."""
        return time.perf_counter() - self._heard_at

    @property
    def is_whole(self) -> bool:
        """Whether more may be sent: the channel stands, and nothing has failed."""
        return self._confirms.is_open and not self._failed

    async def send(
        self, event: Event[Any], exchange: str, body: bytes, properties: Basic.Properties
    ) -> bool:
        """Send one event, and return at once while there is room in the window.

        Returns:
            Whether it was sent: False where the channel is gone.

        Raises:
            PublishTimeout: the window is full and its oldest event was not confirmed in time.
        """
        await self._make_room()
        if not self._confirms.is_open:
            return False
        self._number = number = self._number + 1
        self._unconfirmed[number] = event, time.perf_counter()
        self._confirms.send(exchange, "", body, properties, partial(self._settle, number))
        return True

    async def finish(self) -> None:
        """Return when nothing is on its way any more.

        Raises:
            PublishTimeout: an event was not confirmed in time.
        """
        await self._until_left(0)

    def take_back(self) -> list[Event[Any]]:
        """Return what was not confirmed, in the order sent, and forget it."""
        lost = {**self._failed, **{n: event for n, (event, _) in self._unconfirmed.items()}}
        self._failed, self._unconfirmed = {}, {}
        return [lost[number] for number in sorted(lost)]

    async def _make_room(self) -> None:
        if len(self._unconfirmed) >= self._window:
            # Half of it at a time: one wake-up serves many events, and the broker is never idle.
            await self._until_left(self._window // 2)
        elif self._confirms.is_full:
            await self._confirms.drain()
        elif time.perf_counter() - self._turned_at > _TURN_EVERY_S:
            # A slow source of events must not keep those that are written already.
            await asyncio.sleep(0)
        else:
            return
        self._turned_at = time.perf_counter()
        self._tell()

    async def _until_left(self, count: int) -> None:
        while len(self._unconfirmed) > count and self._confirms.is_open:
            event, sent_at = next(iter(self._unconfirmed.values()))
            left_s = sent_at + self._timeout_s - time.perf_counter()
            if left_s <= 0:
                self._tell()
                raise PublishTimeout(
                    f"the broker confirmed {event.type} {event.id} not within"
                    f" {self._timeout_s:g} s (is a memory or disk alarm raised there?);"
                    " it may still be delivered"
                )
            self._moves_at = count
            self._moved = asyncio.get_running_loop().create_future()
            await asyncio.wait((self._moved,), timeout=left_s)
        self._tell()

    def _settle(self, number: int, error: BaseException | None) -> None:
        sent = self._unconfirmed.pop(number, None)
        if sent is None:
            return
        if error is None:
            event, sent_at = sent
            self._heard_at = now = time.perf_counter()
            self._safe.append((event, now - sent_at))
        else:
            self._failed[number] = sent[0]
        moved = self._moved
        if moved is not None and len(self._unconfirmed) <= self._moves_at and not moved.done():
            moved.set_result(None)

    def _tell(self) -> None:
        safe, self._safe = self._safe, []
        for event, took_s in safe:
            self._confirmed(event, took_s)
