"""Acks of one channel, coalesced: one frame settles the whole run of finished deliveries."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

STRAGGLERS_AFTER_S = 0.002

SendAck = Callable[[int, bool], None]


class Acks:
    """Collects finished delivery tags and acks them, many in one frame.

    Delivery tags of a channel count up from 1. ``basic.ack`` with ``multiple`` covers every tag up
    to the one given, so it is only ever sent for the longest run of finished tags from the start.
    A finished tag behind an unfinished one is acked alone a little later, so that one slow handler
    does not keep the prefetch window full.

    Args:
        send: writes ``basic.ack(tag, multiple)`` to the channel.
        loop: flushes run on it: at the end of the turn in which a delivery finished.

    Attributes:
        is_given_up: whether none of its deliveries is to be begun any more.
    """

    def __init__(self, send: SendAck, loop: asyncio.AbstractEventLoop) -> None:
        self._send = send
        self._loop = loop
        self._run_end = 0
        self._finished: set[int] = set()
        self._acked_alone: set[int] = set()
        self._flush: asyncio.Handle | None = None
        self._stragglers: asyncio.TimerHandle | None = None
        self._closed = False
        self._is_held = False
        self.is_given_up = False

    @property
    def is_closed(self) -> bool:
        """Whether the channel is gone, and every delivery that was not acked the broker's again."""
        return self._closed

    def finish(self, tag: int) -> None:
        """Note that a delivery is settled. The ack goes out within this turn of the loop."""
        if self._closed:
            return
        self._finished.add(tag)
        if self._flush is None:
            self._flush = self._loop.call_soon(self._flush_run)

    def hold(self) -> None:
        """Send no ack until :meth:`flush`, so that the broker hands out no more than it has."""
        self._is_held = True

    def give_up(self) -> None:
        """Let no further delivery begin. What has begun is still settled."""
        self.is_given_up = True

    def flush(self) -> None:
        """Send every ack that is due, now."""
        self._is_held = False
        self._flush_run()
        self._flush_stragglers()

    def close(self) -> None:
        """Forget what is not sent: the channel is gone, and its deliveries come again."""
        self._closed = self.is_given_up = True
        self._finished.clear()
        for handle in (self._flush, self._stragglers):
            if handle is not None:
                handle.cancel()

    def _flush_run(self) -> None:
        self._flush = None
        if self._is_held:
            return
        finished, alone = self._finished, self._acked_alone
        end = self._run_end
        newest, due = 0, 0
        while (end + 1) in finished:
            end += 1
            finished.discard(end)
            if end in alone:
                alone.discard(end)
            else:
                newest, due = end, due + 1
        self._run_end = end
        if due:
            # The tag sent must be one that is still open: RabbitMQ answers 406 to a second ack.
            self._send(newest, due > 1)
        if len(finished) > len(alone) and self._stragglers is None and not self._closed:
            self._stragglers = self._loop.call_later(STRAGGLERS_AFTER_S, self._flush_stragglers)

    def _flush_stragglers(self) -> None:
        if self._stragglers is not None:
            self._stragglers.cancel()
            self._stragglers = None
        if self._is_held:
            return
        for tag in sorted(self._finished - self._acked_alone):
            self._acked_alone.add(tag)
            self._send(tag, False)
