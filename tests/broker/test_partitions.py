"""Ordered consumers: the order per key, whoever joins, leaves, fails, pauses or is cut off."""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pika
import pytest

from rabbitflow import Breaker, Consumer, Context, DeadLetter, Event, Publisher, Retry, RetryLater
from rabbitflow.broker import close, connect
from rabbitflow.control import pause, resume
from rabbitflow.deadletters.moves import replay
from rabbitflow.errors import ConfigurationError
from rabbitflow.migration.consumer import migrate
from rabbitflow.ordering import key_hash
from rabbitflow.settings import Settings
from rabbitflow.status import Lookout
from rabbitflow.topology import (
    ATTEMPT,
    DELIVERY_COUNT,
    EXCHANGE,
    ORDERED_BY,
    REASON,
    REPLAYS,
    consumer_topology,
)
from rabbitflow.worker import ordered
from rabbitflow.worker.runtime import ConsumerRuntime
from tests.harness.broker import Probe
from tests.harness.waiting import eventually

PARTITIONS = 6
KEYS = [f"order-{number}" for number in range(12)]

on_the_faster = pytest.mark.only_on("embedded", reason="about this process; the broker is no part")


@pytest.fixture(autouse=True)
def _fast_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ordered, "LOOK_EVERY_S", 0.1)


@pytest.fixture
def probe(probe: Probe) -> Iterator[Probe]:
    """It also removes the partitions."""
    yield probe
    for number in range(8):
        probe.delete_queue(probe.names.partition("payment", number))


class Account:
    """What the handlers of all processes saw.

    Attributes:
        ended: the numbers of the events of each key, in the order in which their runs ended well.
        running: the keys that have a run just now.
        overlaps: keys that had two at once.
    """

    def __init__(self) -> None:
        self.ended: defaultdict[str, list[int]] = defaultdict(list)
        self.running: set[str] = set()
        self.overlaps: list[str] = []

    @property
    def firsts(self) -> dict[str, list[int]]:
        """The first occurrence of each event, by key."""
        return {key: list(dict.fromkeys(numbers)) for key, numbers in self.ended.items()}

    @asynccontextmanager
    async def run(self, key: str) -> AsyncIterator[None]:
        if key in self.running:
            self.overlaps.append(key)
        self.running.add(key)
        try:
            yield
        finally:
            self.running.discard(key)


def ledger(account: Account, *, fails: bool = False, **arguments: Any) -> Consumer:
    """An ordered consumer; every fifth event fails at its first attempt where it ``fails``."""
    arguments = {"retry": Retry.fixed(attempts=3, wait=0.05), **arguments}
    consumer = Consumer("payment", partitions=PARTITIONS, ordered_by="orderId", **arguments)

    @consumer.on("ORDER_PLACED")
    async def note(event: Event[dict[str, Any]], context: Context) -> None:
        key, number = event.data["orderId"], event.data["number"]
        async with account.run(key):
            await asyncio.sleep(0.002)
            if fails and number % 5 == 0 and context.attempt == 1:
                raise ValueError("every fifth")
            account.ended[key].append(number)

    return consumer


@asynccontextmanager
async def running(consumer: Consumer, settings: Settings) -> AsyncIterator[ConsumerRuntime]:
    """Run a consumer in this process, and drain it at the end."""
    runtime = ConsumerRuntime(consumer, settings)
    task = asyncio.create_task(runtime.run())
    try:
        await eventually(lambda: runtime.is_ready or task.done())
        if task.done():
            task.result()
        yield runtime
    finally:
        runtime.stop()
        async with asyncio.timeout(20):
            await task


async def announce(publisher: Publisher, numbers: range) -> None:
    """Events of every key, in order."""
    for number in numbers:
        await publisher.publish_many(
            [Event(type="ORDER_PLACED", data={"orderId": key, "number": number}) for key in KEYS]
        )


def shares(*runtimes: ConsumerRuntime) -> list[int]:
    """How many partitions each has."""
    return [len(held(runtime)) for runtime in runtimes]


def held(runtime: ConsumerRuntime) -> dict[int, Any]:
    """The partitions that it has."""
    found: dict[int, Any] = runtime._reception._ownership._held  # type: ignore[attr-defined]
    return found


async def test_the_order_of_each_key_is_kept_while_processes_join_and_leave(
    settings: Settings, publisher: Publisher, probe: Probe
) -> None:
    account = Account()
    rounds = 60

    async def publish() -> None:
        for number in range(rounds):
            await announce(publisher, range(number, number + 1))
            await asyncio.sleep(0.02)

    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(running(ledger(account, fails=True), settings))
        assert shares(first) == [PARTITIONS]
        publishing = asyncio.create_task(publish())
        async with running(ledger(account, fails=True), settings) as second:
            await eventually(lambda: shares(first, second) == [3, 3])
            async with running(ledger(account, fails=True), settings) as third:
                await eventually(lambda: shares(first, second, third) == [2, 2, 2])
            await eventually(lambda: shares(first, second) == [3, 3])
        await eventually(lambda: shares(first) == [PARTITIONS])
        await publishing
        await eventually(
            lambda: all(len(account.firsts.get(key, ())) == rounds for key in KEYS), within_s=30
        )
        await eventually(lambda: first.in_flight == 0)
    assert account.firsts == {key: list(range(rounds)) for key in KEYS}
    assert account.overlaps == []


@on_the_faster
async def test_a_failing_event_holds_its_own_key_back_and_no_other(
    settings: Settings, publisher: Publisher, probe: Probe
) -> None:
    consumer = Consumer(
        "payment", partitions=2, ordered_by="orderId", retry=Retry.fixed(attempts=3, wait=0.3)
    )
    seen: list[tuple[str, int, int]] = []

    @consumer.on("ORDER_PLACED")
    async def note(event: Event[dict[str, Any]], context: Context) -> None:
        seen.append((event.data["orderId"], event.data["number"], context.attempt))
        if event.data["orderId"] == "a" and event.data["number"] == 1:
            raise ValueError("never")

    # All of one partition, so that nothing but the key tells them apart.
    keys = ["a", *[k for k in map(str, range(99)) if _partition(k) == _partition("a")][:3]]
    async with running(consumer, settings):
        for number in (1, 2):
            for key in keys:
                await publisher.publish("ORDER_PLACED", {"orderId": key, "number": number})
        await eventually(lambda: ("a", 2, 1) in seen)
    others = [(key, number, 1) for number in (1, 2) for key in keys[1:]]
    waits = [seen.index(("a", 1, 1)), seen.index(("a", 1, 2))]
    assert set(others) <= set(seen[: waits[1]])
    assert [each for each in seen if each[0] == "a"] == [
        ("a", 1, 1),
        ("a", 1, 2),
        ("a", 1, 3),
        ("a", 2, 1),
    ]
    headers, _, _ = probe.take(probe.names.dead("payment")) or pytest.fail("no dead letter")
    assert (headers[REASON], headers[ATTEMPT]) == ("retries-exhausted", 3)


def _partition(key: str) -> int:
    return int(key_hash(key), 16) % 2


async def test_what_has_no_key_is_a_dead_letter_byte_for_byte(
    settings: Settings, publisher: Publisher, probe: Probe
) -> None:
    account = Account()
    exchange = probe.names.exchange("ORDER_PLACED")
    bodies = [b'{"type": "ORDER_PLACED", "data": {}}', b"\xff\x00 no JSON"]
    async with running(ledger(account), settings) as runtime:
        for body in bodies:
            probe.publish(exchange, "", body, pika.BasicProperties(headers={"tenant": "a"}))
        await announce(publisher, range(1))
        dead = probe.names.dead("payment")
        await eventually(lambda: probe.depth(dead) == 2)
        await eventually(lambda: len(account.ended) == len(KEYS))
        assert runtime.handling.metrics.figures()
    found = [probe.take(dead) or pytest.fail("gone") for _ in bodies]
    assert sorted(body for _, _, body in found) == sorted(bodies)
    for headers, _, _ in found:
        assert (headers[REASON], headers["tenant"]) == ("invalid", "a")


async def test_a_copy_keeps_the_body_and_everything_that_belongs_to_the_event(
    settings: Settings, publisher: Publisher, probe: Probe
) -> None:
    """Looked at in the partition while nobody handles it: its locks are held by somebody else."""
    account = Account()
    body = (
        b'{"type":"ORDER_PLACED", "timestamp":"2026-01-01T00:00:00Z","data":{"orderId":"order-1"} }'
    )
    headers = {
        "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        ATTEMPT: 2,
        REPLAYS: 1,
        "CC": ["elsewhere"],
        "x-death": [{"queue": "somewhere", "count": 1}],
        DELIVERY_COUNT: 7,
    }
    async with running(ledger(account), settings):
        pass  # everything is declared
    connection = await connect(settings, "test")
    try:
        channel = await connection.channel()
        for number in range(PARTITIONS):
            await channel.declare_queue(
                probe.names.partition_lock("payment", number), exclusive=True
            )
        async with running(ledger(account), settings):
            probe.publish(
                probe.names.exchange("ORDER_PLACED"),
                "",
                body,
                pika.BasicProperties(
                    message_id="m-1", headers=headers, correlation_id="c-1", type="ORDER_PLACED"
                ),
            )
            ordering = ledger(account).ordering
            assert ordering is not None
            number = ordering.partition(key_hash("order-1"))
            queue = probe.names.partition("payment", number)
            await eventually(lambda: probe.depth(queue) == 1)
    finally:
        await close(connection)
    found, properties, copied = probe.first(queue) or pytest.fail("no copy")
    found.pop(DELIVERY_COUNT, None)
    assert copied == body
    assert found == {
        "traceparent": headers["traceparent"],
        ATTEMPT: 2,
        REPLAYS: 1,
        EXCHANGE: probe.names.exchange("ORDER_PLACED"),
        ORDERED_BY: key_hash("order-1"),
    }
    assert (properties.message_id, properties.correlation_id) == ("m-1", "c-1")
    assert (properties.type, properties.delivery_mode) == ("ORDER_PLACED", 2)


async def test_a_replayed_dead_letter_goes_by_way_of_its_partition_again(
    settings: Settings, publisher: Publisher, probe: Probe
) -> None:
    consumer = Consumer("payment", partitions=PARTITIONS, ordered_by="orderId")
    mended = asyncio.Event()
    replays: list[tuple[str, bool]] = []

    @consumer.on("ORDER_PLACED")
    async def note(event: Event[dict[str, Any]], context: Context) -> None:
        if not mended.is_set():
            raise DeadLetter("not now")
        replays.append((event.id, context.is_replay))

    async with running(consumer, settings):
        event = await publisher.publish("ORDER_PLACED", {"orderId": "order-1"})
        await eventually(lambda: probe.depth(probe.names.dead("payment")) == 1)
        mended.set()
        assert await replay("payment", settings) == 1
        await eventually(lambda: replays == [(event.id, True)])


async def test_a_pause_gives_everything_back_in_order(
    settings: Settings, publisher: Publisher, probe: Probe
) -> None:
    account = Account()
    async with running(ledger(account, fails=True), settings) as runtime:
        await announce(publisher, range(6))
        await pause("payment", settings)
        await eventually(lambda: not runtime.in_flight and shares(runtime) == [0])
        await announce(publisher, range(6, 8))
        names = [probe.names.partition("payment", number) for number in range(PARTITIONS)]
        assert all(probe.consumers(queue) == 0 for queue in names)
        connection = await connect(settings, "test")
        (status,) = await Lookout(connection, {"payment": PARTITIONS}, settings).look()
        await close(connection)
        assert status.is_paused
        assert status.ready is not None
        assert status.ready >= 2 * len(KEYS)
        await resume("payment", settings)
        await eventually(lambda: all(len(account.firsts.get(key, ())) == 8 for key in KEYS))
    assert account.firsts == {key: list(range(8)) for key in KEYS}
    assert account.overlaps == []


async def test_a_lost_connection_redelivers_behind_the_run_that_it_cut_off(
    settings: Settings, publisher: Publisher, probe: Probe
) -> None:
    account = Account()
    consumer = Consumer("payment", partitions=PARTITIONS, ordered_by="orderId")
    began, goes_on = asyncio.Event(), asyncio.Event()

    @consumer.on("ORDER_PLACED")
    async def note(event: Event[dict[str, Any]]) -> None:
        async with account.run("one"):
            began.set()
            await goes_on.wait()
            account.ended["one"].append(event.data["number"])

    async with running(consumer, settings) as runtime:
        for number in range(3):
            await publisher.publish("ORDER_PLACED", {"orderId": "one", "number": number})
        await began.wait()
        subscription = runtime._registration.subscription
        assert subscription is not None
        await subscription.connection.close()
        await eventually(lambda: runtime._registration.subscription is not subscription)
        await eventually(lambda: shares(runtime) == [PARTITIONS])
        # The second run of the first event is here now, and waits.
        await eventually(lambda: runtime.in_flight > 3)
        goes_on.set()
        await eventually(lambda: account.firsts.get("one") == [0, 1, 2])
        assert account.ended["one"][:2] == [0, 0]
    assert account.overlaps == []


@on_the_faster
async def test_a_stopping_process_gives_a_waiting_retry_back_in_order(
    settings: Settings, publisher: Publisher, probe: Probe
) -> None:
    account, attempts = Account(), []
    consumer = Consumer("payment", partitions=1, ordered_by="orderId")

    @consumer.on("ORDER_PLACED")
    async def note(event: Event[dict[str, Any]], context: Context) -> None:
        attempts.append(event.data["number"])
        raise RetryLater(300)

    async with running(consumer, settings) as runtime:
        for number in range(3):
            await publisher.publish("ORDER_PLACED", {"orderId": "one", "number": number})
        await eventually(lambda: runtime.waiting_for_retry == 1)
        await eventually(lambda: runtime.in_flight == 3)
    assert attempts == [0]
    queue = probe.names.partition("payment", 0)
    await eventually(lambda: probe.depth(queue) == 3)
    async with running(ledger_of_one(account), settings):
        await eventually(lambda: account.ended["one"] == [0, 1, 2])


def ledger_of_one(account: Account) -> Consumer:
    consumer = Consumer("payment", partitions=1, ordered_by="orderId")

    @consumer.on("ORDER_PLACED")
    async def note(event: Event[dict[str, Any]]) -> None:
        account.ended[event.data["orderId"]].append(event.data["number"])

    return consumer


@on_the_faster
async def test_an_open_breaker_stops_handlers_and_no_partitioner(
    settings: Settings, publisher: Publisher, probe: Probe
) -> None:
    account = Account()
    consumer = Consumer(
        "payment",
        partitions=PARTITIONS,
        ordered_by="orderId",
        retry=Retry.none(),
        breaker=Breaker(window=4, probe_after=0.3),
    )
    is_broken = True

    @consumer.on("ORDER_PLACED")
    async def note(event: Event[dict[str, Any]]) -> None:
        if is_broken:
            raise ConnectionError("the bank is down")
        account.ended[event.data["orderId"]].append(event.data["number"])

    async with running(consumer, settings) as runtime:
        await announce(publisher, range(4))
        await eventually(lambda: runtime.beat().is_breaker_open)
        await eventually(lambda: probe.depth(probe.names.queue("payment")) == 0)
        is_broken = False
        await eventually(lambda: not runtime.beat().is_breaker_open)
        await eventually(lambda: not runtime.in_flight)
    for numbers in account.ended.values():
        assert numbers == sorted(numbers)


@on_the_faster
async def test_after_a_crash_one_event_of_each_partition_is_taken_until_one_is_trusted(
    settings: Settings, publisher: Publisher, probe: Probe
) -> None:
    account = Account()
    runtime = ConsumerRuntime(ledger(account), settings, after_crash=True)
    task = asyncio.create_task(runtime.run())
    await eventually(lambda: shares(runtime) == [PARTITIONS])
    assert {one.prefetch for one in held(runtime).values()} == {1}
    await announce(publisher, range(3))
    await eventually(lambda: all(len(account.firsts.get(key, ())) == 3 for key in KEYS))
    full = ledger(account).prefetch
    await eventually(
        lambda: [one.prefetch for one in held(runtime).values()] == [full] * PARTITIONS
    )
    runtime.stop()
    await task
    assert account.firsts == {key: [0, 1, 2] for key in KEYS}


async def test_what_is_in_partitions_of_before_is_handled_still(
    settings: Settings, publisher: Publisher, probe: Probe
) -> None:
    account = Account()
    earlier = Consumer("payment", partitions=8, ordered_by="orderId")

    @earlier.on("ORDER_PLACED")
    async def never(event: Event[dict[str, Any]]) -> None: ...

    async with running(earlier, settings):
        pass
    for number in (6, 7):
        body = {"type": "ORDER_PLACED", "timestamp": "2026-01-01T00:00:00Z"}
        data = {"orderId": f"left-in-{number}", "number": number}
        left = json.dumps({**body, "data": data}).encode()
        probe.publish("", probe.names.partition("payment", number), left)
    async with running(ledger(account), settings) as runtime:
        await eventually(lambda: shares(runtime) == [8])
        await eventually(lambda: len(account.ended) == 2)
    assert dict(account.ended) == {"left-in-6": [6], "left-in-7": [7]}


async def test_a_plain_consumer_becomes_an_ordered_one_by_a_migration(
    settings: Settings, publisher: Publisher, probe: Probe
) -> None:
    account = Account()
    plain = Consumer("payment")

    @plain.on("ORDER_PLACED")
    async def never(event: Event[dict[str, Any]]) -> None: ...

    async with running(plain, settings):
        pass
    await announce(publisher, range(3))
    with pytest.raises(ConfigurationError, match="x-single-active-consumer"):
        async with running(ledger(account), settings):
            pass
    wanted = consumer_topology("payment", ("ORDER_PLACED",), (), settings, PARTITIONS)
    done = await migrate("payment", wanted, settings, settle_s=0.05)
    assert done.queues == (probe.names.queue("payment"),)
    async with running(ledger(account), settings):
        await eventually(lambda: all(len(account.firsts.get(key, ())) == 3 for key in KEYS))
    assert account.firsts == {key: [0, 1, 2] for key in KEYS}
