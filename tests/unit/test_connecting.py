"""A connection that can't be made leaves nothing behind."""

from __future__ import annotations

import asyncio
import gc

import pytest

from rabbitflow import BrokerUnavailable
from rabbitflow.broker import connect
from rabbitflow.settings import load_settings
from tests.harness.node import free_port


async def test_a_connection_that_fails_leaves_no_task() -> None:
    settings = load_settings(url=f"amqp://guest:guest@127.0.0.1:{free_port()}/")
    with pytest.raises(BrokerUnavailable):
        await connect(settings, "nobody is there")
    gc.collect()
    assert asyncio.all_tasks() == {asyncio.current_task()}
