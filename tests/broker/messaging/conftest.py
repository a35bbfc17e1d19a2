"""A plain client for every test of messaging, on each broker."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.harness.amqp import Client, connected


@pytest.fixture
async def client(amqp_url: str) -> AsyncIterator[Client]:
    """A plain client."""
    async with connected(amqp_url) as client:
        yield client


@pytest.fixture
async def other(amqp_url: str) -> AsyncIterator[Client]:
    """Another one, on a connection of its own."""
    async with connected(amqp_url) as client:
        yield client


@pytest.fixture(params=["classic", "quorum"])
def kind(request: pytest.FixtureRequest) -> str:
    """The type of a queue, where both types do the same."""
    kind: str = request.param
    return kind
