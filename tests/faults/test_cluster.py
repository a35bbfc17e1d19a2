"""A cluster of three nodes loses its leader, its majority, and a node that comes back."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Iterator

import pytest

from rabbitflow.settings import Settings
from tests.faults.conftest import Note
from tests.harness.node import PrivateNode, answers_amqp, server_binary
from tests.harness.scene import Scene
from tests.harness.waiting import eventually

pytestmark = pytest.mark.slow

Cluster = dict[str, PrivateNode]


@pytest.fixture(scope="module")
def nodes() -> Iterator[Cluster]:
    if server_binary() is None:
        pytest.skip("faults need a broker of their own: apt-get install rabbitmq-server")
    first = PrivateNode("c1")
    nodes = [first]
    try:
        first.start()
        for name in ("c2", "c3"):
            nodes.append(PrivateNode(name, joins=first))
            nodes[-1].start()
        yield {node.name: node for node in nodes}
    finally:
        for node in reversed(nodes):
            node.remove()


@pytest.fixture
def cluster(nodes: Cluster) -> Cluster:
    """Three nodes that stand."""
    for node in nodes.values():
        if not answers_amqp("127.0.0.1", node.port):
            node.stop()
            node.start()
    return nodes


@pytest.fixture
def amqp_url(cluster: Cluster) -> str:
    """The URL of every node: a client goes on with another when its own is gone."""
    return " ".join(node.url for node in cluster.values())


def leader_of(cluster: Cluster, queue: str) -> PrivateNode | None:
    """The node of ``cluster`` that leads a quorum queue, as its first node knows it."""
    ask = next(iter(cluster.values()))
    lines = ask.ctl("list_queues", "name", "leader", "--no-table-headers").splitlines()
    leaders = dict(line.split("\t") for line in lines if "\t" in line)
    return cluster.get(leaders.get(queue, ""))


async def test_a_leader_that_is_killed_is_replaced(
    scene: Scene, cluster: Cluster, settings: Settings, note: Note
) -> None:
    await scene.begin()
    leader = await asyncio.to_thread(leader_of, cluster, f"{settings.namespace}.rating")
    assert leader is not None
    async with scene.announcer.running():
        await asyncio.to_thread(leader.kill)
        killed_at = time.time()
        recovery_s = await scene.consumes_again(killed_at, is_news=True)
        await scene.confirmed(75)
        await asyncio.to_thread(leader.start)
    note("cluster: leader kill -9", "nothing lost", await scene.account(), recovery_s)


async def test_without_a_majority_nothing_is_confirmed_and_nothing_lost(
    scene: Scene, cluster: Cluster, note: Note
) -> None:
    scene.announcer.settings = scene.settings.model_copy(update={"publish_timeout_s": 2.0})
    await scene.begin()
    gone = list(cluster.values())[1:]
    async with scene.announcer.running():
        for node in gone:
            await asyncio.to_thread(node.kill)
        await eventually(lambda: sum(scene.announcer.refused.values()) > 0, within_s=30)
        # Both at once: neither is whole without the other.
        await asyncio.gather(*[asyncio.to_thread(node.start) for node in gone])
        recovery_s = await scene.consumes_again(time.time(), is_news=True, within_s=60)
    account = await scene.account()
    note("cluster: two of three nodes gone", "error, then nothing lost", account, recovery_s)


async def test_a_node_that_was_cut_off_and_comes_back_loses_nothing(
    scene: Scene, cluster: Cluster, settings: Settings, note: Note
) -> None:
    """A node that stands still is cut off for the others: they elect a leader among themselves."""
    await scene.begin(None, RABBITFLOW_HEARTBEAT_S="2")
    scene.announcer.settings = scene.settings.model_copy(update={"heartbeat_s": 2})
    leader = await asyncio.to_thread(leader_of, cluster, f"{settings.namespace}.rating")
    assert leader is not None
    others = {name: node for name, node in cluster.items() if node is not leader}
    async with scene.announcer.running():
        os.kill(leader.pid, signal.SIGSTOP)
        cut_off_at = time.time()
        try:
            await eventually(
                lambda: leader_of(others, f"{settings.namespace}.rating") in others.values(),
                within_s=60,
                what="the others elect a leader",
            )
        finally:
            os.kill(leader.pid, signal.SIGCONT)
        recovery_s = await scene.consumes_again(cut_off_at, is_news=True, within_s=60)
    account = await scene.account()
    note("cluster: partition healed", "nothing lost", account, recovery_s)
