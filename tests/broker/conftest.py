"""What tests of messaging share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from rabbitflow import fastpath


@pytest.fixture(params=["fast", "public"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Which way connections of this process go."""
    monkeypatch.setenv("RABBITFLOW_FAST", "1" if request.param == "fast" else "0")
    fastpath.is_on.cache_clear()
    yield request.param
    fastpath.is_on.cache_clear()
