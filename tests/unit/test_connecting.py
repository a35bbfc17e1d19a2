"""A connection that can't be made leaves nothing behind, and a cancellation is never lost in it."""

from __future__ import annotations

import asyncio
import contextlib
import gc

import pytest

from rabbitflow import BrokerUnavailable
from rabbitflow.broker import ConnectionLost, connect, lost_connections
from rabbitflow.settings import load_settings
from tests.harness.node import free_port


async def test_a_connection_that_fails_leaves_no_task() -> None:
    settings = load_settings(url=f"amqp://guest:guest@127.0.0.1:{free_port()}/")
    with pytest.raises(BrokerUnavailable):
        await connect(settings, "nobody is there")
    gc.collect()
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_a_cancellation_that_the_client_takes_for_an_end_is_not_lost() -> None:
    async def close_as_the_client_does() -> None:
        with lost_connections():
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                return

    task = asyncio.create_task(close_as_the_client_does())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_time_out_that_the_client_takes_for_an_end_is_over() -> None:
    with lost_connections():
        async with asyncio.timeout(0.001):
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.Event().wait()
    task = asyncio.current_task()
    assert task is not None
    assert not task.cancelling()


@pytest.mark.parametrize(
    ("raised", "told"), [(Exception(), ConnectionLost), (KeyError(), KeyError)]
)
async def test_what_the_client_says_of_a_connection_that_we_close_is_a_lost_one(
    raised: Exception, told: type[Exception]
) -> None:
    """It ends the calls under way with a bare Exception; a kind of its own is another's."""
    with pytest.raises(told), lost_connections():
        raise raised
