"""A worker under a service manager: it says what is true, and is stopped without loss."""

from __future__ import annotations

import asyncio
import secrets
import signal
import time
from collections.abc import Iterator
from itertools import pairwise

import pytest

from rabbitflow import Publisher
from tests.harness.broker import Probe
from tests.harness.manager import Manager
from tests.harness.waiting import eventually
from tests.harness.workers import Worker

REACTS = """
    {name} = Consumer("{name}", concurrency=2)
    @{name}.on("ORDER_PLACED")
    async def react(event: Event) -> None:
        {before}
        ledger.write("{name}", event.id)
"""


def reacts(name: str, before: str = "pass") -> str:
    return REACTS.format(name=name, before=before)


@pytest.fixture
def manager(worker: Worker) -> Iterator[Manager]:
    with Manager(worker) as manager:
        yield manager


async def test_ready_is_said_when_every_consumer_is_registered_at_the_broker(
    worker: Worker, probe: Probe, publisher: Publisher
) -> None:
    for name in ("payment", "email"):
        worker.module(name, reacts(name, "assert not os.environ.keys() & {'NOTIFY_SOCKET'}"))
    with Manager(worker, f"@rabbitflow-{secrets.token_hex(4)}") as manager:
        await manager.start().ready()
        names = probe.names
        assert [probe.consumers(names.queue(name)) for name in ("payment", "email")] == [1, 1]
        assert manager.said("READY")[0].fields["STATUS"].startswith("2 of 2 consumers ready; ")
        event = await publisher.publish("ORDER_PLACED", {})
        # Only the supervisor speaks to the manager: its children don't even know the way.
        await eventually(lambda: worker.ledger.ids("payment") == [event.id])
        await eventually(lambda: "0 in flight, 2 handled" in manager.status())
        assert await manager.stop() == 0
        assert {message.pid for message in manager.messages} == {worker.pid}
        assert manager.said("STOPPING")


async def test_a_reload_begins_and_ends_in_the_managers_eyes(
    worker: Worker, manager: Manager
) -> None:
    worker.module("payment", reacts("payment"))
    await manager.start().ready()
    before = worker.child("payment").pid
    worker.signal(signal.SIGHUP)
    await manager.ready(times=2)
    [reloading] = manager.said("RELOADING")
    again = manager.said("READY")[1]
    # The same clock as the manager's own.
    assert abs(int(reloading.fields["MONOTONIC_USEC"]) / 1e6 - reloading.at) < 1.0
    assert reloading.at < again.at
    assert worker.child("payment").pid != before
    assert await manager.stop() == 0


async def test_a_reload_into_broken_code_changes_nothing(
    worker: Worker, manager: Manager, publisher: Publisher
) -> None:
    worker.module("payment", reacts("payment"))
    await manager.start().ready()
    before = worker.child("payment").pid
    worker.module("payment", "raise RuntimeError('half a deploy')")
    worker.signal(signal.SIGHUP)
    await manager.ready(times=2)
    assert worker.said("not reloaded, and everything runs on as before: services.payment")
    assert worker.child("payment").pid == before
    event = await publisher.publish("ORDER_PLACED", {})
    await eventually(lambda: worker.ledger.ids("payment") == [event.id])
    worker.module("payment", reacts("payment"))
    worker.signal(signal.SIGHUP)
    await manager.ready(times=3)
    assert worker.child("payment").pid != before


async def test_a_drain_asks_for_the_time_it_needs_and_no_handler_is_cut_short(
    worker: Worker, publisher: Publisher
) -> None:
    wait = "while not Path('go').exists(): await asyncio.sleep(0.05)"
    worker.module("payment", reacts("payment", wait))
    with Manager(worker, stop_timeout_s=0.5) as manager:
        await manager.start().ready()
        event = await publisher.publish("ORDER_PLACED", {})
        await eventually(lambda: "1 in flight, 0 handled" in manager.status())
        stopping = asyncio.create_task(manager.stop())
        [said] = await eventually(lambda: manager.said("STOPPING"))
        await eventually(lambda: time.monotonic() > said.at + 1.0)
        assert not stopping.done()
        (worker.directory / "go").touch()
        assert await stopping == 0
        assert worker.ledger.ids("payment") == [event.id]
        assert manager.said("EXTEND_TIMEOUT_USEC")


async def test_a_stuck_supervisor_is_killed_and_loses_nothing(
    worker: Worker, publisher: Publisher
) -> None:
    worker.module("payment", reacts("payment", "await asyncio.sleep(0.05)"))
    with Manager(worker, watchdog_s=2.0) as manager:
        await manager.start().ready()
        await eventually(lambda: manager.said("WATCHDOG"))
        worker.signal(signal.SIGSTOP)
        ids = {(await publisher.publish("ORDER_PLACED", {})).id for _ in range(40)}
        await manager.abort_when_silent()
        assert worker.exit_code() == -signal.SIGABRT
        await manager.start().ready()
        await eventually(lambda: set(worker.ledger.ids("payment")) == ids)
        assert await manager.stop() == 0


async def test_a_stuck_child_is_replaced_while_the_watchdog_is_answered(
    worker: Worker, publisher: Publisher
) -> None:
    once = "Path('stuck').exists() or (Path('stuck').touch(), time.sleep(3600))"
    worker.module("payment", reacts("payment", once))
    worker.module("email", reacts("email"))
    with Manager(worker, watchdog_s=6.0) as manager:
        await manager.start(RABBITFLOW_STALL_TIMEOUT_S="2").ready()
        supervisor, email = worker.pid, worker.child("email").pid
        event = await publisher.publish("ORDER_PLACED", {})
        await eventually(lambda: worker.ledger.ids("payment") == [event.id], within_s=20)
        assert (worker.pid, worker.child("email").pid) == (supervisor, email)
        signs = [message.at for message in manager.said("WATCHDOG")]
        gaps = [after - before for before, after in pairwise(signs)]
        assert max(gaps) < 6.0
        assert await manager.stop() == 0


async def test_a_refused_consumer_is_named_and_holds_nobody_back(
    worker: Worker, probe: Probe, manager: Manager
) -> None:
    # Its queue stands with other arguments.
    probe.declare_queue(probe.names.queue("rating"))
    worker.module("rating", reacts("rating"))
    worker.module("payment", reacts("payment"))
    worker.module("broken", "raise RuntimeError('no such table')")
    await manager.start().ready()
    await eventually(lambda: "refused: rating" in manager.status())
    assert "not imported: services.broken" in manager.status()
    assert await manager.stop() == 0


async def test_what_no_restart_mends_ends_with_the_code_that_prevents_one(
    worker: Worker, probe: Probe, manager: Manager
) -> None:
    probe.declare_queue(probe.names.queue("rating"))
    worker.module("rating", reacts("rating"))
    manager.start()
    assert worker.exit_code() == 78
    assert not manager.said("READY")
