"""pytest fixtures: ``pytest_plugins = ["rabbitflow.testing.plugin"]`` in a conftest.py."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

import pytest
import pytest_asyncio

from rabbitflow.consumer import Consumer
from rabbitflow.testing.flow import Flow


@pytest.fixture
def consumers() -> Sequence[Consumer]:
    """The consumers that ``flow`` runs: write a fixture of this name that returns yours."""
    return ()


@pytest_asyncio.fixture
async def flow(consumers: Sequence[Consumer]) -> AsyncIterator[Flow]:
    """A broker of the test's own, with ``consumers`` running on it."""
    async with Flow(*consumers) as flow:
        yield flow
