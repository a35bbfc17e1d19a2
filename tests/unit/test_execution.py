"""A handler runs as if it were awaited under a timer, whether it waits, fails or never returns."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from rabbitflow import Event
from rabbitflow.errors import HandlerExit, HandlerTimeout
from rabbitflow.signature import resolve
from rabbitflow.worker.execution import Execution

EVENT: Event[Any] = Event(type="A", data={})


@pytest.fixture
async def execution() -> AsyncIterator[Execution]:
    hung: list[bool] = []
    running = Execution(2, lambda: hung.append(True), cleaning_up_s=0.02)
    running.hung = hung  # type: ignore[attr-defined]
    yield running
    running.close()


async def run(execution: Execution, handler: Callable[..., Any], timeout_s: float = 5.0) -> None:
    await execution.run(resolve(handler), timeout_s, EVENT, None)


async def test_a_handler_that_waits_several_times_gets_what_it_waited_for(
    execution: Execution,
) -> None:
    loop = asyncio.get_running_loop()
    got: list[Any] = []

    async def handler(event: Event) -> None:
        for answer in ("a", "b"):
            future = loop.create_future()
            loop.call_soon(future.set_result, answer)
            got.append(await future)
            await asyncio.sleep(0)
        async with asyncio.TaskGroup() as group:
            group.create_task(asyncio.sleep(0))

    await run(execution, handler)
    assert got == ["a", "b"]


@pytest.mark.parametrize("turns", [0, 1, 2])
async def test_what_a_handler_raises_comes_out_whenever_it_raises(
    execution: Execution, turns: int
) -> None:
    async def handler(event: Event) -> None:
        for _ in range(turns):
            await asyncio.sleep(0)
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        await run(execution, handler)


async def test_an_error_in_what_it_waits_for_is_raised_where_it_waits(
    execution: Execution,
) -> None:
    caught: list[str] = []

    async def handler(event: Event) -> None:
        future = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_soon(future.set_exception, OSError("down"))
        try:
            await future
        except OSError as error:
            caught.append(str(error))

    await run(execution, handler)
    assert caught == ["down"]


async def test_a_handler_that_waits_too_long_is_ended_and_may_clean_up(
    execution: Execution,
) -> None:
    cleaned: list[bool] = []

    async def handler(event: Event) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            cleaned.append(True)

    with pytest.raises(HandlerTimeout):
        await run(execution, handler, 0.01)
    assert cleaned == [True]
    task = asyncio.current_task()
    assert task is not None
    assert not task.cancelling()


async def test_a_handler_that_goes_on_after_it_was_cancelled_is_left_where_it_is(
    execution: Execution,
) -> None:
    ended: list[str] = []

    async def handler(event: Event) -> None:
        try:
            while True:
                try:
                    await asyncio.Event().wait()
                except asyncio.CancelledError:
                    ended.append("cancelled")
        finally:
            ended.append("closed")

    with pytest.raises(HandlerTimeout):
        await run(execution, handler, 0.01)
    assert ended == ["cancelled", "closed"]
    assert not execution.hung  # type: ignore[attr-defined]
    task = asyncio.current_task()
    assert task is not None
    assert not task.cancelling()


async def test_a_handler_that_nothing_ends_has_its_process_replaced(execution: Execution) -> None:
    is_released = False

    async def handler(event: Event) -> None:
        while not is_released:
            try:
                await asyncio.Event().wait()
            except BaseException:
                continue

    with pytest.raises(HandlerTimeout):
        await run(execution, handler, 0.01)
    assert execution.hung  # type: ignore[attr-defined]
    is_released = True


async def test_a_handler_that_needs_a_moment_to_clean_up_has_it(execution: Execution) -> None:
    cleaned: list[bool] = []

    async def handler(event: Event) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.001)
            cleaned.append(True)

    with pytest.raises(HandlerTimeout):
        await run(execution, handler, 0.01)
    assert cleaned == [True]


async def test_an_error_raised_while_cleaning_up_ends_the_handler(execution: Execution) -> None:
    async def handler(event: Event) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            raise KeyError("lost")

    with pytest.raises(KeyError):
        await run(execution, handler, 0.01)


async def test_a_time_out_of_the_handler_itself_is_not_ours(execution: Execution) -> None:
    async def handler(event: Event) -> None:
        async with asyncio.timeout(0.001):
            await asyncio.Event().wait()

    with pytest.raises(TimeoutError) as raised:
        await run(execution, handler)
    assert not isinstance(raised.value, HandlerTimeout)


async def test_a_cancelled_worker_cancels_the_handler_it_runs(execution: Execution) -> None:
    ended: list[bool] = []

    async def handler(event: Event) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            ended.append(True)
            raise

    task = asyncio.create_task(run(execution, handler))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended == [True]


@pytest.mark.parametrize("turns", [0, 1])
async def test_a_handler_that_exits_or_cancels_itself_ends_itself_alone(
    execution: Execution, turns: int
) -> None:
    async def leaves(event: Event) -> None:
        for _ in range(turns):
            await asyncio.sleep(0)
        raise SystemExit(3)

    async def cancels(event: Event) -> None:
        for _ in range(turns):
            await asyncio.sleep(0)
        raise asyncio.CancelledError

    for handler in (leaves, cancels):
        with pytest.raises(HandlerExit):
            await run(execution, handler)


async def test_plain_functions_run_side_by_side_in_as_many_threads_as_allowed(
    execution: Execution,
) -> None:
    meeting = threading.Barrier(2, timeout=5)
    names: set[str] = set()

    def handler(event: Event) -> None:
        names.add(threading.current_thread().name)
        meeting.wait()

    async with asyncio.TaskGroup() as group:
        for _ in range(8):
            group.create_task(run(execution, handler))
    assert len(names) == 2


async def test_what_a_plain_function_raises_comes_out(execution: Execution) -> None:
    def raises(event: Event) -> None:
        raise KeyError("mine")

    def leaves(event: Event) -> None:
        raise SystemExit(3)

    def stops(event: Event) -> None:
        raise StopIteration

    for handler, expected in ((raises, KeyError), (leaves, HandlerExit), (stops, RuntimeError)):
        with pytest.raises(expected):
            await run(execution, handler)


async def test_a_hung_thread_is_reported_and_what_it_brings_late_is_dropped(
    execution: Execution,
) -> None:
    released = threading.Event()

    def handler(event: Event) -> None:
        released.wait(5)
        raise KeyError("late")

    with pytest.raises(HandlerTimeout):
        await run(execution, handler, 0.01)
    assert execution.hung  # type: ignore[attr-defined]
    released.set()
    done: list[bool] = []

    def after(event: Event) -> None:
        done.append(True)

    await run(execution, after)
    assert done == [True]
