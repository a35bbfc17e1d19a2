"""The network fails between workers and broker: cut, silent, slow, crowded, without a name."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import time
from collections.abc import AsyncIterator
from pathlib import Path

import aio_pika
import pytest
from pydantic import SecretStr

from rabbitflow.settings import Settings
from tests.faults.conftest import Note
from tests.harness.node import PrivateNode
from tests.harness.proxy import Proxy
from tests.harness.scene import Scene
from tests.harness.waiting import eventually
from tests.harness.workers import Worker

NOTHING_LOST = "nothing lost"


@pytest.fixture
async def proxy(node: PrivateNode) -> AsyncIterator[Proxy]:
    async with Proxy("127.0.0.1", node.port) as proxy:
        yield proxy


@pytest.fixture
async def behind(settings: Settings, proxy: Proxy, tmp_path: Path) -> AsyncIterator[Scene]:
    """A scene whose worker and announcer reach the broker by the proxy alone."""
    by_proxy = settings.model_copy(update={"url": SecretStr(proxy.url), "heartbeat_s": 2})
    with Worker(by_proxy, tmp_path) as worker:
        scene = Scene(settings, worker, announces=by_proxy)
        yield scene


async def test_connections_that_are_cut_are_replaced(
    behind: Scene, proxy: Proxy, note: Note
) -> None:
    await behind.begin()
    async with behind.announcer.running():
        for _ in range(3):
            await behind.confirmed(75)
            proxy.cut()
        recovery_s = await behind.consumes_again(time.time(), is_news=True)
    note("connections reset", NOTHING_LOST, await behind.account(), recovery_s)


@pytest.mark.slow
async def test_a_connection_that_falls_silent_is_given_up_after_its_heartbeats(
    behind: Scene, proxy: Proxy, note: Note
) -> None:
    await behind.begin(RABBITFLOW_HEARTBEAT_S="2")
    async with behind.announcer.running():
        await behind.confirmed(75)
        proxy.is_silent = True
        await eventually(
            lambda: behind.worker.said("payment lost its subscription"),
            within_s=30,
            what=behind.worker.log,
        )
        proxy.is_silent = False
        proxy.cut()
        recovery_s = await behind.consumes_again(time.time(), is_news=True)
    note("connection half-open", NOTHING_LOST, await behind.account(), recovery_s)


@pytest.mark.slow
async def test_a_broker_that_stops_confirming_loses_nothing(
    behind: Scene, proxy: Proxy, note: Note
) -> None:
    """What was not confirmed is published again, so it may come twice."""
    behind.announcer.settings = behind.announcer.settings.model_copy(
        update={"publish_timeout_s": 2.0}
    )
    await behind.begin()
    async with behind.announcer.running():
        await behind.confirmed(75)
        proxy.swallows_answers = True
        await eventually(lambda: behind.announcer.refused["PublishTimeout"] > 0)
        proxy.swallows_answers = False
        proxy.cut()
        recovery_s = await behind.consumes_again(time.time(), is_news=True)
    note("broker's answers swallowed", NOTHING_LOST, await behind.account(), recovery_s)
    assert behind.announcer.slowest_s < 4.0  # no hang; the machine may be busy


@pytest.mark.slow
async def test_a_slow_link_only_slows(behind: Scene, proxy: Proxy, note: Note) -> None:
    await behind.begin()
    proxy.delay_s = 0.1
    async with behind.announcer.running():
        await behind.confirmed(150)
    note("link with 200 ms there and back", NOTHING_LOST, await behind.account())


@pytest.mark.slow
async def test_two_hundred_connections_at_once_do_not_disturb(
    scene: Scene, node: PrivateNode, note: Note
) -> None:
    await scene.begin()
    async with scene.announcer.running():
        opened = await asyncio.gather(*[aio_pika.connect(node.url) for _ in range(200)])
        await scene.confirmed(75)
        await asyncio.gather(*[connection.close() for connection in opened])
    note("200 connections opened at once", NOTHING_LOST, await scene.account())


def may_mount() -> bool:
    """Whether a process of ours may have a file system view of its own."""
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        return False
    done = subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False)
    return done.returncode == 0


@pytest.mark.slow
@pytest.mark.skipif(not may_mount(), reason="a name is taken away in a mount namespace, by root")
async def test_a_name_that_stops_resolving_is_waited_for(
    node: PrivateNode, settings: Settings, tmp_path: Path, note: Note
) -> None:
    hosts = tmp_path / "hosts"
    known = f"{Path('/etc/hosts').read_text()}\n127.0.0.1 broker.example\n"
    hosts.write_text(known)
    named = settings.model_copy(
        update={"url": SecretStr(node.url.replace("127.0.0.1", "broker.example"))}
    )
    mounted = ("unshare", "-m", "sh", "-c", f'mount --bind {hosts} /etc/hosts && exec "$0" "$@"')
    with Worker(named, tmp_path, prefix=mounted) as worker:
        scene = Scene(settings, worker)
        await scene.begin()
        async with scene.announcer.running():
            hosts.write_text("")
            await asyncio.to_thread(node.ctl, "close_all_connections", "on purpose")
            await eventually(
                lambda: worker.said("no broker answers at"), within_s=20, what=worker.log
            )
            hosts.write_text(known)
            recovery_s = await scene.consumes_again(time.time(), is_news=True)
        note("name of the broker stops resolving", NOTHING_LOST, await scene.account(), recovery_s)
