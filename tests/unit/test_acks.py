"""Coalesced acks never cover an unfinished delivery, and cover each finished one exactly once."""

from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from rabbitflow.worker.acks import Acks


class Turns:
    """An event loop of which the test turns the handle."""

    def __init__(self) -> None:
        self._soon: list[asyncio.Handle] = []
        self._later: list[asyncio.TimerHandle] = []
        self._loop = asyncio.new_event_loop()
        self._loop.close()

    def call_soon(self, callback, *args):  # type: ignore[no-untyped-def]
        handle = asyncio.Handle(callback, args, self._loop)
        self._soon.append(handle)
        return handle

    def call_later(self, delay_s, callback, *args):  # type: ignore[no-untyped-def]
        handle = asyncio.TimerHandle(delay_s, callback, args, self._loop)
        self._later.append(handle)
        return handle

    def turn(self) -> None:
        """Run what was to run at once."""
        due, self._soon = self._soon, []
        for handle in due:
            if not handle.cancelled():
                handle._run()

    def wait(self) -> None:
        """Run what was to run later."""
        self.turn()
        due, self._later = self._later, []
        for handle in due:
            if not handle.cancelled():
                handle._run()


class AckingChannel(RuleBasedStateMachine):
    """RabbitMQ's side: which tags are open, and what it makes of an ack."""

    def __init__(self) -> None:
        super().__init__()
        self.turns = Turns()
        self.delivered = 0
        self.open: set[int] = set()
        self.unfinished: set[int] = set()
        self.acks = Acks(self.on_ack, self.turns)  # type: ignore[arg-type]

    def on_ack(self, tag: int, multiple: bool) -> None:
        assert tag in self.open, f"unknown delivery tag {tag}: the broker closes the channel"
        covered = {other for other in self.open if other <= tag} if multiple else {tag}
        assert not covered & self.unfinished, f"{covered & self.unfinished} were not finished"
        self.open -= covered

    @rule(count=st.integers(1, 5))
    def deliver(self, count: int) -> None:
        for _ in range(count):
            self.delivered += 1
            self.open.add(self.delivered)
            self.unfinished.add(self.delivered)

    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        if self.unfinished:
            tag = data.draw(st.sampled_from(sorted(self.unfinished)))
            self.unfinished.discard(tag)
            self.acks.finish(tag)

    @rule()
    def turn(self) -> None:
        self.turns.turn()

    @rule()
    def wait(self) -> None:
        self.turns.wait()
        assert self.open == self.unfinished, "a finished delivery was not acked in time"

    @rule()
    def flush(self) -> None:
        self.acks.flush()
        assert self.open == self.unfinished

    @invariant()
    def nothing_unfinished_is_acked(self) -> None:
        assert self.unfinished <= self.open


TestAckingChannel = AckingChannel.TestCase


@given(st.permutations(range(1, 40)))
def test_a_run_that_finished_together_is_acked_in_one_frame(order: list[int]) -> None:
    frames: list[tuple[int, bool]] = []
    turns = Turns()
    acks = Acks(lambda tag, multiple: frames.append((tag, multiple)), turns)  # type: ignore[arg-type]
    for tag in order:
        acks.finish(tag)
    turns.turn()
    assert frames == [(39, True)]


def test_a_closed_channel_is_sent_nothing_more() -> None:
    turns = Turns()
    acks = Acks(lambda tag, multiple: (_ for _ in ()).throw(AssertionError), turns)  # type: ignore[arg-type]
    acks.finish(1)
    acks.close()
    acks.finish(2)
    turns.wait()
    assert acks.is_closed
