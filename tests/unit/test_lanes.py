"""Lanes: of each key one at a time, in order, whatever fails, waits or goes away."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from rabbitflow.devbroker import VirtualClock
from rabbitflow.ordering import LONGEST_WAIT_S
from rabbitflow.testing.clock import TestTime
from rabbitflow.topology import ORDERED_BY
from rabbitflow.wire import Content
from rabbitflow.worker.acks import Acks
from rabbitflow.worker.delivery import Delivery
from rabbitflow.worker.lanes import Lanes

NOW = datetime.now(UTC)


def acks() -> Acks:
    return Acks(lambda tag, multiple: None, asyncio.get_running_loop())


def delivery(tag: int, key: str, of: Acks) -> Delivery:
    content = Content(2, None, None, {ORDERED_BY: key}, f"id-{tag}", "ORDER_PLACED")
    return Delivery(tag, False, "", b"", content, b"{}", of)


class Here:
    """Counts what is in hand, as the crew does."""

    def __init__(self) -> None:
        self.clock = VirtualClock()
        self.unfinished = 0
        self.lanes = Lanes(asyncio.get_running_loop(), TestTime(self.clock), self.count)

    def count(self, more: int) -> None:
        self.unfinished += more

    def put(self, *deliveries: Delivery) -> None:
        for one in deliveries:
            self.unfinished += 1
            self.lanes.put(one)


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def next_of(here: Here) -> Delivery | None:
    """What this task gets when it comes now; None where nothing is free."""
    try:
        async with asyncio.timeout(0.01):
            return await here.lanes.take()
    except TimeoutError:
        return None


@given(
    keys=st.lists(st.sampled_from("abc"), min_size=1, max_size=40),
    failures=st.dictionaries(st.integers(0, 39), st.integers(1, 2), max_size=10),
    workers=st.integers(1, 5),
    waits=st.lists(st.integers(0, 3), min_size=1, max_size=7),
)
def test_one_of_a_key_at_a_time_and_in_order_whatever_fails(
    keys: list[str], failures: dict[int, int], workers: int, waits: list[int]
) -> None:
    async def scenario() -> None:
        here = Here()
        running: set[str] = set()
        ended: defaultdict[str, list[int]] = defaultdict(list)

        async def work() -> None:
            while True:
                taken = await here.lanes.take()
                key = str(taken.headers[ORDERED_BY])
                assert key not in running
                running.add(key)
                for _ in range(waits[taken.tag % len(waits)]):
                    await asyncio.sleep(0)
                running.discard(key)
                is_again = taken.attempt <= failures.get(taken.tag, 0)
                if not is_again or not here.lanes.postpone(taken, 5.0, NOW):
                    ended[key].append(taken.tag)
                here.unfinished -= 1

        tasks = [asyncio.create_task(work()) for _ in range(workers)]
        of = acks()
        here.put(*(delivery(number, key, of) for number, key in enumerate(keys)))
        for _ in range(3 * len(keys) + 3):
            await turns(12)
            here.clock.advance(5.0)
        for task in tasks:
            assert not task.done() or task.result()
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for key in "abc":
            assert ended[key] == [n for n, each in enumerate(keys) if each == key]
        assert here.unfinished == 0
        assert here.lanes.waiting == 0

    asyncio.run(scenario())


async def test_a_waiting_retry_holds_its_own_key_back_and_no_other() -> None:
    here, of = Here(), acks()
    here.put(delivery(1, "a", of), delivery(2, "a", of), delivery(3, "b", of))
    first = await here.lanes.take()
    assert here.lanes.postpone(first, 5.0, NOW)
    here.unfinished -= 1
    assert (await here.lanes.take()).tag == 3
    here.unfinished -= 1
    assert await next_of(here) is None
    assert (here.unfinished, here.lanes.waiting, here.lanes.in_hand(of)) == (2, 1, 2)
    here.clock.advance(5.0)
    again = await here.lanes.take()
    assert (again.tag, again.attempt) == (1, 2)
    assert again.first_failed_at(NOW) == NOW


async def test_an_event_is_not_waited_for_longer_than_the_broker_waits_for_its_ack() -> None:
    here, of = Here(), acks()
    here.put(delivery(1, "a", of))
    first = await here.lanes.take()
    assert here.lanes.postpone(first, 10 * LONGEST_WAIT_S, NOW)
    here.clock.advance(LONGEST_WAIT_S)
    again = await here.lanes.take()
    assert not here.lanes.postpone(again, 1.0, NOW)


async def test_who_leaves_gives_back_what_waits_and_what_is_behind_it() -> None:
    here, leaving, other = Here(), acks(), acks()
    here.put(delivery(1, "a", leaving), delivery(2, "a", leaving), delivery(3, "b", leaving))
    here.put(delivery(1, "c", other))
    first = await here.lanes.take()
    here.lanes.postpone(first, 5.0, NOW)
    here.unfinished -= 1
    here.lanes.leave(leaving)
    assert here.lanes.gives_back(leaving)
    assert here.lanes.in_hand(leaving) == 1
    # It was on its way when the others were given back, and may not overtake them.
    here.put(delivery(4, "a", leaving))
    assert here.lanes.in_hand(leaving) == 1
    assert here.unfinished == 2
    taken = [await here.lanes.take() for _ in range(2)]
    here.unfinished -= 2
    assert [one.headers[ORDERED_BY] for one in taken] == ["b", "c"]
    here.clock.advance(60.0)
    assert await next_of(here) is None
    await here.lanes.settled(leaving)
    assert here.unfinished == 0


async def test_what_fails_while_its_subscription_leaves_is_not_waited_for() -> None:
    here, of = Here(), acks()
    here.put(delivery(1, "a", of), delivery(2, "a", of))
    first = await here.lanes.take()
    here.lanes.leave(of)
    settled = asyncio.create_task(here.lanes.settled(of))
    await turns()
    assert not settled.done()
    assert here.lanes.postpone(first, 5.0, NOW)
    here.unfinished -= 1
    await settled
    assert here.unfinished == 0


async def test_a_redelivery_begins_when_the_run_of_before_the_loss_has_ended() -> None:
    here, lost, anew = Here(), acks(), acks()
    here.put(delivery(1, "a", lost), delivery(2, "a", lost))
    running = await here.lanes.take()
    lost.close()
    here.lanes.forget(lost)
    here.put(delivery(1, "a", anew), delivery(2, "a", anew))
    assert running.tag == 1
    helper = asyncio.create_task(here.lanes.take())
    await turns()
    assert not helper.done()
    stale = await here.lanes.take()
    assert (stale.tag, stale.acks.is_given_up) == (2, True)
    taken = await here.lanes.take()
    assert (taken.tag, taken.acks) == (1, anew)
    helper.cancel()


async def test_a_retry_that_waits_ends_with_its_subscription() -> None:
    here, lost, anew = Here(), acks(), acks()
    here.put(delivery(1, "a", lost))
    here.lanes.postpone(await here.lanes.take(), 300.0, NOW)
    here.unfinished -= 1
    lost.close()
    here.lanes.forget(lost)
    assert here.unfinished == 0
    here.put(delivery(1, "a", anew))
    again = await here.lanes.take()
    assert (again.acks, again.attempt) == (anew, 1)
