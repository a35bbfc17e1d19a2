"""An embedded broker in the test's own process, with a time that only the test moves."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from rabbitflow.devbroker import DevBroker, VirtualClock
from tests.harness.amqp import Client, connected


@pytest.fixture
def clock() -> VirtualClock:
    """The time of messages."""
    return VirtualClock()


@pytest.fixture
async def broker(clock: VirtualClock) -> AsyncIterator[DevBroker]:
    """A broker that listens."""
    async with DevBroker(clock=clock) as broker:
        yield broker


@pytest.fixture
async def client(broker: DevBroker) -> AsyncIterator[Client]:
    """A plain client of it."""
    async with connected(broker.url) as client:
        yield client
