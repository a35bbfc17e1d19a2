"""A publish returns when the broker has the event safe, and fails in bounded time with a reason."""

from __future__ import annotations

import asyncio
import json
import os
import threading
import time
from urllib.parse import urlsplit

import pytest

from rabbitflow import (
    AccessRefused,
    BrokerUnavailable,
    Event,
    EventError,
    Publisher,
    PublishRefused,
    PublishTimeout,
    SyncPublisher,
    TopologyMismatch,
    Unroutable,
)
from rabbitflow.settings import Settings, load_settings
from tests.broker.conftest import proxied
from tests.harness.broker import Probe
from tests.harness.proxy import Proxy
from tests.harness.waiting import eventually


async def test_another_client_gets_our_events_as_plain_json(
    publisher: Publisher, probe: Probe
) -> None:
    probe.declare_exchange("ORDER_PLACED")
    tap = probe.tap("ORDER_PLACED")
    event = await publisher.publish("ORDER_PLACED", {"amount": 1500}, correlation_id="c-1")
    await eventually(lambda: probe.depth(tap) == 1)
    message = probe.take(tap)
    assert message is not None
    _, properties, body = message
    assert json.loads(body) == {
        "id": event.id,
        "type": "ORDER_PLACED",
        "timestamp": event.timestamp.isoformat().replace("+00:00", "Z"),
        "data": {"amount": 1500},
        "correlation_id": "c-1",
    }
    assert properties.message_id == event.id
    assert properties.type == "ORDER_PLACED"
    assert properties.content_type == "application/json"
    assert properties.delivery_mode == 2
    assert properties.correlation_id == "c-1"
    assert properties.timestamp == int(event.timestamp.timestamp())


async def test_an_event_nobody_listens_to_is_kept_in_the_log(publisher: Publisher) -> None:
    await publisher.publish("ORDER_PLACED", {})


async def test_without_a_log_an_event_nobody_listens_to_is_unroutable(
    settings: Settings, probe: Probe
) -> None:
    async with Publisher(settings=settings.model_copy(update={"event_log": False})) as publisher:
        with pytest.raises(Unroutable, match="nobody listens to ORDER_PLACED"):
            await publisher.publish("ORDER_PLACED", {})


async def test_without_declaring_a_missing_exchange_is_said(
    settings: Settings, probe: Probe
) -> None:
    async with Publisher(settings=settings.model_copy(update={"declare": False})) as publisher:
        with pytest.raises(Unroutable, match="topology apply"):
            await publisher.publish("ORDER_PLACED", {})


async def test_an_exchange_that_was_deleted_is_declared_again(
    publisher: Publisher, probe: Probe
) -> None:
    await publisher.publish("ORDER_PLACED", {})
    probe._channel.exchange_delete(probe.names.exchange("ORDER_PLACED"))
    await publisher.publish("ORDER_PLACED", {})
    tap = probe.tap("ORDER_PLACED")
    await publisher.publish("ORDER_PLACED", {})
    await eventually(lambda: probe.depth(tap) == 1)


async def test_a_broker_that_never_confirms_is_a_timeout_in_bounded_time(
    settings: Settings, proxy: Proxy, probe: Probe
) -> None:
    async with Publisher(settings=proxied(settings, proxy)) as publisher:
        await publisher.publish("ORDER_PLACED", {})
        proxy.swallows_answers = True
        began = time.monotonic()
        with pytest.raises(PublishTimeout, match="may still be delivered"):
            await publisher.publish("ORDER_PLACED", {}, timeout=0.5)
        assert time.monotonic() - began < 2


@pytest.mark.parametrize("many", [False, True], ids=["publish", "publish_many"])
async def test_a_connection_that_confirms_nothing_for_a_whole_time_out_is_given_up(
    settings: Settings, proxy: Proxy, probe: Probe, many: bool
) -> None:
    probe.declare_exchange("ORDER_PLACED")
    tap = probe.tap("ORDER_PLACED")
    hasty = proxied(settings, proxy, publish_timeout_s=2.0)
    async with Publisher(settings=hasty) as publisher:

        async def announce() -> None:
            event = Event(type="ORDER_PLACED", data={})
            if many:
                await publisher.publish_many([event])
            else:
                await publisher.publish(event)

        await publisher.publish("ORDER_PLACED", {}, timeout=10)
        proxy.mute()
        with pytest.raises(PublishTimeout):
            await announce()
        await announce()
    assert proxy.accepted == 2
    await eventually(lambda: probe.depth(tap) == 3)


async def test_a_connection_is_kept_while_others_are_confirmed_on_it(
    settings: Settings, proxy: Proxy, probe: Probe
) -> None:
    """A hasty caller's time-out says nothing of the connection."""
    async with Publisher(settings=proxied(settings, proxy)) as publisher:
        await publisher.publish("ORDER_PLACED", {})
        proxy.delay_s = 0.1
        with pytest.raises(PublishTimeout):
            await publisher.publish("ORDER_PLACED", {}, timeout=0.05)
        await publisher.publish("ORDER_PLACED", {})
    assert proxy.accepted == 1


async def test_no_broker_is_said_in_bounded_time_without_the_password() -> None:
    settings = load_settings(url="amqp://me:s3cret@127.0.0.1:1/", namespace="x")
    async with Publisher(settings=settings) as publisher:
        with pytest.raises(BrokerUnavailable, match=r"amqp://me@127\.0\.0\.1:1/") as refused:
            await publisher.publish("ORDER_PLACED", {}, timeout=0.5)
    assert "s3cret" not in str(refused.value)


@pytest.mark.parametrize(
    ("credentials", "vhost", "reason"),
    [("guest:s3cret", "", "user name or the password"), ("guest:guest", "nowhere", "'nowhere'")],
)
async def test_a_broker_that_refuses_is_told_from_one_that_is_not_there(
    amqp_url: str, credentials: str, vhost: str, reason: str
) -> None:
    broker = urlsplit(amqp_url)
    url = f"amqp://{credentials}@{broker.hostname}:{broker.port}/{vhost}"
    async with Publisher(url) as publisher:
        with pytest.raises(AccessRefused, match=reason) as refused:
            await publisher.publish("ORDER_PLACED", {})
    assert "s3cret" not in str(refused.value)


async def test_connections_that_are_cut_lose_no_event(
    settings: Settings, proxy: Proxy, probe: Probe
) -> None:
    probe.declare_exchange("ORDER_PLACED")
    tap = probe.tap("ORDER_PLACED")
    confirmed: list[str] = []

    async with Publisher(settings=proxied(settings, proxy)) as publisher:
        events = [Event(type="ORDER_PLACED", data={"number": number}) for number in range(2000)]

        def note(event: Event) -> None:  # type: ignore[type-arg]
            confirmed.append(event.id)
            if len(confirmed) in (300, 900, 1500):
                proxy.cut()

        await publisher.publish_many(events, on_confirmed=note, window=100)
    assert sorted(confirmed) == sorted(event.id for event in events)
    await eventually(lambda: probe.depth(tap) >= 2000)
    arrived = set()
    while (message := probe.take(tap)) is not None:
        arrived.add(message[1].message_id)
    assert arrived == set(confirmed)


async def test_many_events_arrive_in_the_order_given(publisher: Publisher, probe: Probe) -> None:
    probe.declare_exchange("ORDER_PLACED")
    tap = probe.tap("ORDER_PLACED")
    events = [Event(type="ORDER_PLACED", data=number) for number in range(500)]
    assert await publisher.publish_many(events) == 500
    await eventually(lambda: probe.depth(tap) == 500)
    arrived = [json.loads(message[2])["data"] for message in iter(lambda: probe.take(tap), None)]
    assert arrived == list(range(500))


async def test_one_publisher_that_gives_up_does_not_fail_those_beside_it(
    publisher: Publisher,
) -> None:
    outcomes = await asyncio.gather(
        publisher.publish("ORDER_PLACED", {}, timeout=0.000_001),
        *(publisher.publish("ORDER_PLACED", {}) for _ in range(20)),
        return_exceptions=True,
    )
    assert isinstance(outcomes[0], PublishTimeout | BrokerUnavailable)
    assert all(isinstance(outcome, Event) for outcome in outcomes[1:])


async def test_what_the_broker_nacks_is_sent_again_and_then_refused(
    publisher: Publisher, probe: Probe
) -> None:
    await publisher.publish("ORDER_PLACED", {"number": 0})
    tap = probe.tap("ORDER_PLACED")
    full = f"{probe.settings.namespace}.full"
    probe.declare_queue(full, {"x-max-length": 1, "x-overflow": "reject-publish"})
    probe.bind(full, "ORDER_PLACED")
    try:
        await publisher.publish("ORDER_PLACED", {"number": 1})
        kept = asyncio.create_task(publisher.publish("ORDER_PLACED", {"number": 2}))
        await eventually(lambda: probe.depth(tap) >= 3, what="it is sent again")
        assert not kept.done()
        probe.take(full)
        await kept
        with pytest.raises(PublishRefused, match="is a queue at its limit"):
            await publisher.publish("ORDER_PLACED", {"number": 3})
    finally:
        probe.delete_queue(full)


async def test_a_body_over_the_limit_is_refused_before_it_is_sent(publisher: Publisher) -> None:
    with pytest.raises(EventError, match="the limit is 1048576"):
        await publisher.publish("ORDER_PLACED", "x" * 1_048_576)


async def test_a_log_with_other_arguments_is_named_with_both_values(
    publisher: Publisher, settings: Settings
) -> None:
    await publisher.publish("ORDER_PLACED", {})
    changed = settings.model_copy(update={"event_log_max_age": "1D"})
    async with Publisher(settings=changed) as other:
        with pytest.raises(TopologyMismatch) as refused:
            await other.publish("ORDER_PLACED", {})
    assert f"queue {settings.namespace}.events.ORDER_PLACED.log" in str(refused.value)
    assert "x-max-age = 7D, wanted 1D" in str(refused.value)


async def test_what_was_announced_is_counted(publisher: Publisher) -> None:
    await publisher.publish("ORDER_PLACED", {})
    with pytest.raises(EventError):
        await publisher.publish("ORDER_PLACED", float("nan"))
    assert publisher.metrics.figures()["ORDER_PLACED"]["outcomes"] == {
        "confirmed": 1,
        "unroutable": 0,
        "failed": 0,
    }


def test_code_without_an_event_loop_publishes_from_many_threads(
    settings: Settings, probe: Probe
) -> None:
    probe.declare_exchange("ORDER_PLACED")
    tap = probe.tap("ORDER_PLACED")
    with SyncPublisher(settings=settings) as publisher:
        threads = [
            threading.Thread(target=publisher.publish, args=("ORDER_PLACED", number))
            for number in range(20)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
    assert probe.depth(tap) == 20


def test_a_forked_child_publishes_over_a_connection_of_its_own(
    settings: Settings, probe: Probe
) -> None:
    probe.declare_exchange("ORDER_PLACED")
    tap = probe.tap("ORDER_PLACED")
    with SyncPublisher(settings=settings) as publisher:
        publisher.publish("ORDER_PLACED", "parent")
        child = os.fork()
        if child == 0:
            code = 1
            try:
                publisher.publish("ORDER_PLACED", "child")
                code = 0
            finally:
                os._exit(code)
        assert os.waitpid(child, 0)[1] == 0
        publisher.publish("ORDER_PLACED", "parent again")
    assert probe.depth(tap) == 3
