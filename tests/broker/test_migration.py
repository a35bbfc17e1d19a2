"""A queue's arguments change while publishers run, and no event is lost: not at any kill -9."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pika
import pytest

from rabbitflow import Publisher
from rabbitflow.broker import close, connect
from rabbitflow.control import Attendance, pause, resume
from rabbitflow.errors import BrokerUnavailable, ConfigurationError
from rabbitflow.inspection import difference
from rabbitflow.migration.consumer import Migrated, migrate
from rabbitflow.migration.queues import Progress
from rabbitflow.settings import Settings
from rabbitflow.topology import (
    EXCHANGE,
)
from tests.harness.broker import Probe
from tests.harness.migration import (
    account_of_kills,
    announcing,
    declare_otherwise,
    differs,
    run,
    wanted,
)
from tests.harness.waiting import eventually
from tests.harness.workers import Worker


@pytest.mark.only_on("rabbitmq", reason="what a kill -9 does to RabbitMQ's queues")
async def test_nothing_is_lost_when_it_is_killed_again_and_again_while_a_publisher_runs(
    settings: Settings, probe: Probe
) -> None:
    await account_of_kills(settings, probe, every=12)


async def test_events_keep_their_order_and_everything_they_carried(
    settings: Settings, probe: Probe
) -> None:
    declare_otherwise(probe, {"payment": {"x-delivery-limit": 20}})
    queue, exchange = probe.names.queue("payment"), probe.names.exchange("ORDER_PLACED")
    sent = [f"id-{number}" for number in range(1200)]
    for one in sent:
        properties = pika.BasicProperties(
            message_id=one,
            headers={"tenant": "a", "CC": ["elsewhere"], "x-delivery-count": 3},
            correlation_id="c-1",
            expiration="3600000",
            type="ORDER_PLACED",
        )
        probe.publish(exchange, "", b"\x00\xff", properties)
    await eventually(lambda: probe.depth(queue) == len(sent))
    assert (await run(settings)).queues == (queue,)
    headers, properties, body = probe.take(queue) or pytest.fail("nothing came back")
    assert not headers.pop("x-delivery-count", 0)
    assert headers == {"tenant": "a", EXCHANGE: exchange}
    assert properties.expiration == "3600000"
    assert properties.correlation_id == "c-1"
    assert properties.type == "ORDER_PLACED"
    assert properties.delivery_mode == 2
    assert body == b"\x00\xff"
    assert [properties.message_id, *probe.ids(queue)] == sent


async def test_a_log_keeps_its_events_their_order_and_what_they_carried(
    settings: Settings, probe: Probe
) -> None:
    log = probe.names.log("ORDER_PLACED")
    declare_otherwise(probe, {"events.ORDER_PLACED.log": {"x-max-age": "1D"}})
    before = settings.model_copy(update={"event_log_max_age": "1D"})
    async with announcing(before) as announced:
        await eventually(lambda: len(announced) > 20)
        done = await run(settings)
    assert done.queues == (log,)
    logged = [one for one in probe.ids(log, is_log=True) if one in set(announced)]
    # Those of the moments at which the logs changed over may be there twice, or change places.
    once = list(dict.fromkeys(logged))
    assert len(logged) < len(once) + 20
    assert set(once) == set(announced)
    assert all(abs(once.index(one) - place) < 20 for place, one in enumerate(announced))
    assert not await differs(settings)


async def test_where_nothing_differs_nothing_is_done(settings: Settings, probe: Probe) -> None:
    declare_otherwise(probe, {})
    steps: list[str] = []
    done = await run(settings, progress=Progress(steps.append))
    assert done == Migrated((), is_paused=False)
    assert not steps


async def test_all_arguments_that_differ_are_named_at_once(
    settings: Settings, probe: Probe
) -> None:
    other = {"x-delivery-limit": 20, "x-overflow": None, "x-max-length": 7}
    declare_otherwise(probe, {"payment": other})
    probe.delete_queue(probe.names.dead("payment"))
    connection = await connect(settings, "test")
    try:
        found = await difference(connection, wanted(settings), settings)
    finally:
        await close(connection)
    assert [missing.name for missing in found.missing] == [probe.names.dead("payment")]
    named = {one.argument: (one.current, one.wanted) for one in found.mismatches}
    assert named["x-delivery-limit"] == ("20", "50")
    assert named["x-overflow"] == ("none", "reject-publish")
    assert named["x-max-length"] == ("7", "none")
    assert {one.name for one in found.mismatches} == {probe.names.queue("payment")}


async def test_it_refuses_while_a_process_may_hold_events(settings: Settings, probe: Probe) -> None:
    declare_otherwise(probe, {"payment": {"x-delivery-limit": 20}})
    worker = await connect(settings, "worker")
    try:
        attendance = await Attendance.begin(worker, "payment", settings)
        with pytest.raises(BrokerUnavailable, match="1 processes of payment may hold events"):
            await run(settings)
        assert probe.depth(probe.names.migrating("payment")) == -1
        await attendance.end()
        assert (await run(settings)).queues
    finally:
        await close(worker)


async def test_two_migrations_of_one_consumer_do_not_run_at_once(
    settings: Settings, probe: Probe
) -> None:
    declare_otherwise(probe, {"payment": {"x-delivery-limit": 20}})
    first = asyncio.create_task(migrate("payment", wanted(settings), settings, settle_s=1.0))
    await eventually(lambda: probe.depth(probe.names.migrating("payment")) >= 0)
    with pytest.raises(BrokerUnavailable, match="another command is at work"):
        await run(settings)
    await first


async def test_a_queue_that_somebody_else_publishes_to_is_not_deleted(
    settings: Settings, probe: Probe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rabbitflow.migration.queues.STILL_ARRIVING_AFTER_S", 0.3)
    declare_otherwise(probe, {"payment": {"x-delivery-limit": 20}})
    probe.declare_exchange("REFUND_ASKED")
    queue = probe.names.queue("payment")
    probe.bind(queue, "REFUND_ASKED")
    stranger = settings.model_copy(update={"event_log": False})
    try:
        async with announcing(stranger, "REFUND_ASKED") as announced:
            with pytest.raises(BrokerUnavailable, match="messages keep coming into"):
                await run(settings)
            done = await run(settings, also_bound=(probe.names.exchange("REFUND_ASKED"),))
        assert done.queues
        await eventually(lambda: probe.depth(queue) >= len(announced))
        assert set(announced) <= set(probe.ids(queue))
    finally:
        probe.remove_event("REFUND_ASKED")


async def test_an_exchange_of_another_type_is_not_touched(settings: Settings, probe: Probe) -> None:
    probe.declare_exchange("ORDER_PLACED", "direct")
    with pytest.raises(ConfigurationError, match="an exchange can't be replaced"):
        await run(settings)


async def test_running_workers_leave_the_queue_before_it_is_replaced(
    settings: Settings, probe: Probe, worker: Worker
) -> None:
    worker.module(
        "payment",
        """
        payment = Consumer("payment", concurrency=2, retry=Retry.fixed(attempts=2, wait=2))

        @payment.on("ORDER_PLACED")
        async def charge(event: Event[dict]) -> None:
            ledger.write("payment", event.id)
        """,
    )
    worker.start(RABBITFLOW_QUEUE_TYPE="classic")
    await worker.ready("payment")
    async with announcing(settings) as announced:
        await eventually(lambda: len(worker.ledger.ids("payment")) > 20)
        done = await run(settings, pause=True)
        assert probe.names.queue("payment") in done.queues
        assert not done.is_paused
    # It was started with settings that are another queue's.
    await eventually(lambda: worker.said("x-queue-type = quorum, wanted classic"))
    worker.signal()
    worker.exit_code()
    worker.start()
    await worker.ready("payment", times=2)
    await eventually(lambda: set(announced) <= set(worker.ledger.ids("payment")))
    assert not await differs(settings)


async def test_a_paused_worker_holds_nothing_and_goes_on_when_resumed(
    settings: Settings, publisher: Publisher, probe: Probe, worker: Worker, tmp_path: Path
) -> None:
    worker.module(
        "payment",
        f"""
        payment = Consumer("payment", concurrency=1, prefetch=10)

        @payment.on("ORDER_PLACED")
        async def charge(event: Event[dict]) -> None:
            ledger.write("payment", event.id)
            while not Path({str(tmp_path / "go")!r}).exists():
                await asyncio.sleep(0.02)
        """,
    )
    worker.start()
    await worker.ready("payment")
    sent = {(await publisher.publish("ORDER_PLACED", {"number": n})).id for n in range(10)}
    await eventually(lambda: len(worker.ledger.ids("payment")) == 1)
    queue, workers = probe.names.queue("payment"), probe.names.workers("payment")
    await eventually(lambda: probe.consumers(workers) == 1)
    await pause("payment", settings)
    await eventually(lambda: worker.said("payment is paused by an operator"))
    assert probe.consumers(workers) == 1  # what has begun is still being handled
    (tmp_path / "go").touch()
    await eventually(lambda: probe.consumers(workers) == 0)
    await eventually(lambda: probe.depth(queue) == 9)
    await resume("payment", settings)
    await eventually(lambda: set(worker.ledger.ids("payment")) == sent)
