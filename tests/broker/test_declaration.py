"""A broker that keeps its connections and answers nothing holds no declaration up for ever."""

from __future__ import annotations

import pytest

from rabbitflow import TopologyMismatch, declaration
from rabbitflow.broker import ConnectionLost, close, connect, open_channel
from rabbitflow.settings import Settings
from rabbitflow.topology import Exchange, Topology, event_topology
from tests.broker.conftest import proxied
from tests.harness.broker import Probe
from tests.harness.proxy import Proxy


async def test_a_declaration_that_is_not_answered_ends(
    settings: Settings, proxy: Proxy, probe: Probe, monkeypatch: pytest.MonkeyPatch
) -> None:
    topology = event_topology("ORDER_PLACED", settings)
    probe.leaves((), ["ORDER_PLACED"])
    connection = await connect(proxied(settings, proxy), "test")
    try:
        channel = await open_channel(connection, settings, confirms=False)
        await declaration.declare_on(channel, topology)
        monkeypatch.setattr(declaration, "ANSWER_WITHIN_S", 0.3)
        proxy.mute()
        with pytest.raises(ConnectionLost):
            await declaration.declare_on(channel, topology)
    finally:
        await close(connection)


async def test_a_channel_that_is_for_more_says_what_differs(
    settings: Settings, probe: Probe
) -> None:
    topology = event_topology("ORDER_PLACED", settings)
    probe.leaves((), ["ORDER_PLACED"])
    connection = await connect(settings, "test")
    try:
        await declaration.declare(connection, topology, settings)
        other = Topology(exchanges=(Exchange(topology.exchanges[0].name, "direct"),))
        channel = await open_channel(connection, settings, confirms=False)
        with pytest.raises(TopologyMismatch, match="type = fanout, wanted direct"):
            await declaration.declare_on(channel, other)
    finally:
        await close(connection)
