"""Every delivery reaches a worker, in the order they came, however many workers wait."""

from __future__ import annotations

import asyncio
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from rabbitflow.worker.inbox import Inbox


@given(
    workers=st.integers(1, 4),
    bursts=st.lists(st.tuples(st.integers(1, 6), st.integers(0, 4)), max_size=10),
    waits=st.lists(st.integers(0, 3), min_size=1, max_size=7),
)
def test_every_delivery_is_taken_once_and_in_order(
    workers: int, bursts: list[tuple[int, int]], waits: list[int]
) -> None:
    async def scenario() -> None:
        inbox = Inbox(asyncio.get_running_loop())
        taken: list[int] = []

        async def work() -> None:
            while True:
                delivery: Any = await inbox.take()
                taken.append(delivery)
                for _ in range(waits[delivery % len(waits)]):
                    await asyncio.sleep(0)

        tasks = [asyncio.create_task(work()) for _ in range(workers)]
        put = 0
        for size, turns in bursts:
            for _ in range(size):
                inbox.put(put)  # type: ignore[arg-type]
                put += 1
            for _ in range(turns):
                await asyncio.sleep(0)
        for _ in range(10 + 5 * put):
            await asyncio.sleep(0)
        assert taken == list(range(put))
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(scenario())


async def test_a_handler_that_waits_does_not_hold_its_neighbours_back() -> None:
    inbox = Inbox(asyncio.get_running_loop())
    begun: list[Any] = []

    async def work() -> None:
        begun.append(await inbox.take())
        await asyncio.Event().wait()

    tasks = [asyncio.create_task(work()) for _ in range(3)]
    await asyncio.sleep(0)
    for delivery in ("a", "b", "c"):
        inbox.put(delivery)  # type: ignore[arg-type]
    for _ in range(4):
        await asyncio.sleep(0)
    assert begun == ["a", "b", "c"]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
