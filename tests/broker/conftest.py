"""What tests of messaging share."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from urllib.parse import urlsplit

import pytest

from rabbitflow import fastpath
from rabbitflow.settings import Settings, load_settings
from tests.harness.proxy import Proxy


@pytest.fixture(params=["fast", "public"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Which way connections of this process go."""
    monkeypatch.setenv("RABBITFLOW_FAST", "1" if request.param == "fast" else "0")
    fastpath.is_on.cache_clear()
    yield request.param
    fastpath.is_on.cache_clear()


@pytest.fixture
async def proxy(amqp_url: str) -> AsyncIterator[Proxy]:
    """A way to the broker that can be broken."""
    broker = urlsplit(amqp_url)
    async with Proxy(broker.hostname or "localhost", broker.port or 5672) as proxy:
        yield proxy


def proxied(settings: Settings, proxy: Proxy, **changed: object) -> Settings:
    """The settings of a client that goes this way."""
    return settings.model_copy(update={"url": load_settings(url=proxy.url).url, **changed})
