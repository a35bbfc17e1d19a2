"""What holds a consumer back: the gate, the breaker, the rate, a pause, caution after a crash."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rabbitflow import Breaker, Consumer
from rabbitflow.breaker import BreakerState, Circuit
from rabbitflow.rate import Pacer, Rate
from rabbitflow.worker.acks import Acks
from rabbitflow.worker.gate import Gate
from rabbitflow.worker.intake import Intake
from tests.harness.waiting import eventually


async def test_one_alone_waits_for_the_others_and_keeps_them_out() -> None:
    gate = Gate()
    seen: list[str] = []
    gate.enter()

    async def alone() -> None:
        async with gate.alone():
            seen.append(f"alone with {gate.inside}")

    async def shared() -> None:
        await gate.opened()
        gate.enter()
        seen.append("shared")
        gate.leave()

    first = asyncio.create_task(alone())
    await eventually(lambda: not gate.is_open)
    second = asyncio.create_task(shared())
    gate.leave()
    await asyncio.gather(first, second)
    assert seen == ["alone with 1", "shared"]


async def test_a_gate_opens_again_when_the_one_inside_fails() -> None:
    gate = Gate()
    with pytest.raises(ValueError, match="inside"):
        async with gate.alone():
            raise ValueError("inside")
    assert gate.is_open
    assert gate.emptied.is_set()


def test_the_breaker_opens_when_enough_of_the_last_outcomes_failed() -> None:
    circuit = Circuit(Breaker(failure_rate=0.5, window=4, probe_after=5))
    for failed in (True, True, False):
        circuit.record(failed=failed, now=0)
    assert circuit.state(0) is BreakerState.CLOSED
    circuit.record(failed=False, now=0)
    assert circuit.state(0) is BreakerState.OPEN


def test_probes_come_at_growing_intervals_until_one_succeeds() -> None:
    circuit = Circuit(Breaker(window=1, probe_after=5, cap=15))
    circuit.record(failed=True, now=0)
    assert circuit.state(4.9) is BreakerState.OPEN
    assert circuit.state(5) is BreakerState.PROBING
    circuit.record(failed=True, now=5)
    assert circuit.probes_at == 15
    circuit.record(failed=True, now=15)
    assert circuit.probes_at == 30
    circuit.record(failed=True, now=30)
    assert circuit.probes_at == 45
    circuit.record(failed=False, now=45)
    assert circuit.state(45) is BreakerState.CLOSED


def test_outcomes_of_events_that_began_before_change_nothing_while_open() -> None:
    circuit = Circuit(Breaker(window=1, probe_after=5))
    circuit.record(failed=True, now=0)
    circuit.record(failed=False, now=1)
    assert circuit.state(1) is BreakerState.OPEN


@given(st.integers(1, 500), st.lists(st.floats(0, 0.5), min_size=1, max_size=200))
def test_a_rate_is_never_exceeded_beyond_its_small_burst(per_s: int, gaps: list[float]) -> None:
    pacer = Pacer(Rate(per_s, 1.0))
    now, starts = 0.0, []
    for gap in gaps:
        now += gap
        now += pacer.reserve(now)
        starts.append(now)
    span = starts[-1] - starts[0]
    assert len(starts) <= per_s * (span + 0.1) + 2


@pytest.mark.parametrize("text", ["", "50", "0/s", "50/day", "-1/s"])
def test_what_is_no_rate_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no rate"):
        Rate.parse(text)


def acks() -> Acks:
    return Acks(lambda tag, multiple: None, asyncio.get_running_loop())


def intake(**settings: object) -> Intake:
    given = {"is_cautious": False, "breaker": None, "rate": None, **settings}
    return Intake(12, **given)  # type: ignore[arg-type]


async def test_after_a_crash_one_event_is_taken_until_one_came_that_was_never_given_back() -> None:
    cautious = intake(is_cautious=True)
    assert cautious.prefetch == 1
    cautious.trust()
    assert cautious.changed.is_set()
    assert cautious.prefetch == 12


async def test_a_paused_consumer_takes_nothing_and_begins_nothing() -> None:
    held = intake()
    held.pause(True)
    assert held.prefetch == 0
    waiting = asyncio.create_task(held.admit(acks()))
    await asyncio.sleep(0)
    assert not waiting.done()
    held.pause(False)
    await waiting
    assert held.prefetch == 12


async def test_what_is_given_up_does_not_wait_for_a_pause_to_end() -> None:
    held, theirs = intake(), acks()
    held.pause(True)
    waiting = asyncio.create_task(held.admit(theirs))
    await asyncio.sleep(0)
    theirs.give_up()
    held.wake()
    await waiting


async def test_a_breaker_that_probes_seldom_asks_for_no_events_until_then() -> None:
    held = intake(breaker=Breaker(window=1, probe_after=1.5))
    held.record(failed=True)
    assert held.changed.is_set()
    assert held.prefetch == 0
    held.close()


async def test_one_that_probes_often_asks_once_and_keeps_an_event_for_the_next_probe() -> None:
    held = intake(breaker=Breaker(window=1, probe_after=0.02, cap=0.02))
    held.record(failed=True)
    assert held.changed.is_set()
    held.changed.clear()
    for _ in range(3):
        assert held.prefetch == 1
        await held.admit(acks())
        held.record(failed=True)
    assert not held.changed.is_set()
    held.close()


async def test_events_pass_without_a_look_unless_something_holds_them_back() -> None:
    held = intake(breaker=Breaker(window=1, probe_after=0.02))
    assert held.is_free
    held.record(failed=True)
    assert not held.is_free
    await held.admit(acks())
    held.record(failed=False)
    assert held.is_free
    held.pause(True)
    assert not held.is_free
    held.pause(False)
    assert held.is_free


def test_what_a_consumer_has_that_names_none_opens_when_a_hundred_failed_in_a_row() -> None:
    breaker = Consumer("payment").breaker
    assert breaker is not None
    circuit = Circuit(breaker)
    for failed in (*[True] * 99, False, *[True] * 99):
        circuit.record(failed=failed, now=0)
        assert not circuit.is_open
    circuit.record(failed=True, now=0)
    assert circuit.is_open
    for probe in range(20):
        at = circuit.probes_at
        assert at == pytest.approx((probe + 1) * 0.1)
        circuit.record(failed=True, now=at)
    circuit.record(failed=False, now=circuit.probes_at)
    assert not circuit.is_open
    assert Consumer("payment", breaker=None).breaker is None


async def test_an_open_breaker_lets_one_event_through_at_a_time() -> None:
    held = intake(breaker=Breaker(window=1, probe_after=0.05))
    held.record(failed=True)
    waiting = [asyncio.create_task(held.admit(acks())) for _ in range(3)]
    await eventually(lambda: sum(task.done() for task in waiting) == 1)
    assert held.prefetch == 1
    held.record(failed=False)
    await asyncio.gather(*waiting)
    assert held.prefetch == 12


async def test_a_refused_event_says_nothing_of_the_service() -> None:
    held = intake(breaker=Breaker(window=1))
    held.record(failed=None)
    assert held.breaker_state is BreakerState.CLOSED
