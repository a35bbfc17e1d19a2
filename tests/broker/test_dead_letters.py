"""The dead-letter workbench, on a real broker: looking changes nothing, moving loses nothing."""

from __future__ import annotations

import asyncio
import json
import signal
import tracemalloc
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pika
import pytest

from rabbitflow import Consumer, Context, Event, Publisher, Retry
from rabbitflow.broker import close, connect
from rabbitflow.confirmed import ConfirmedChannel
from rabbitflow.deadletters import look as looking
from rabbitflow.deadletters import moves
from rabbitflow.deadletters.letter import Letter, Selection
from rabbitflow.deadletters.look import InUse, Look, NoDeadLetterQueue
from rabbitflow.deadletters.ndjson import letters_of, line_of
from rabbitflow.deadletters.survey import each, find, survey
from rabbitflow.declaration import declare
from rabbitflow.errors import ConfigurationError, EventError, PublishRefused
from rabbitflow.settings import Settings
from rabbitflow.topology import (
    ATTEMPT,
    DELIVERY_COUNT,
    EXCEPTION_TYPE,
    EXCHANGE,
    FAILED_AT,
    FIRST_FAILED_AT,
    REASON,
    REPLAYS,
    consumer_topology,
)
from tests.broker.test_settlement import running
from tests.harness.broker import Message, Probe
from tests.harness.command import Command
from tests.harness.waiting import eventually

CAUSE = {
    REASON: "retries-exhausted",
    EXCEPTION_TYPE: "ValueError",
    ATTEMPT: 5,
    FIRST_FAILED_AT: "2026-04-03T10:30:00+00:00",
    FAILED_AT: "2026-04-03T10:31:00+00:00",
}


@pytest.fixture
async def dead(settings: Settings, probe: Probe) -> str:
    """The dead-letter queue of ``payment``, with everything else it needs."""
    connection = await connect(settings, "a test")
    try:
        topology = consumer_topology("payment", ["ORDER_PLACED"], [1], settings)
        await declare(connection, topology, settings)
    finally:
        await close(connection)
    return probe.names.dead("payment")


def put(probe: Probe, queue: str, numbers: Iterable[int], **headers: Any) -> None:
    """Put dead letters there, as settlement writes them; odd ones are of another exception."""
    for number in numbers:
        event = Event(id=f"order-{number}", type="ORDER_PLACED", data={"number": number})
        named = "KeyError" if number % 2 else "ValueError"
        properties = pika.BasicProperties(
            message_id=event.id,
            type=event.type,
            content_type="application/json",
            delivery_mode=2,
            headers={**CAUSE, EXCEPTION_TYPE: named, **headers},
        )
        probe.publish("", queue, event.encode(), properties)


@pytest.mark.parametrize("count", [0, 1, 5])
async def test_a_queue_that_is_shown_as_empty_is_asked_once_more(
    settings: Settings, probe: Probe, dead: str, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As RabbitMQ shows a quorum queue that has no leader yet, right after a start."""
    put(probe, dead, range(count))
    await eventually(lambda: probe.depth(dead) == count)
    depth, told = Look._depth, [0]

    async def late(look: Look, connection: Any) -> int:
        return told.pop() if told else await depth(look, connection)

    monkeypatch.setattr(Look, "_depth", late)
    letters = await find("payment", settings)
    assert [letter.id for letter in letters] == [f"order-{number}" for number in range(count)]
    assert probe.depth(dead) == count


async def drained(probe: Probe, queue: str, count: int) -> list[Message]:
    """Take everything off a queue that is to hold ``count`` messages."""
    await eventually(lambda: probe.depth(queue) == count)
    messages = [message for _ in range(count) if (message := probe.take(queue))]
    assert len(messages) == count
    return messages


def ids(messages: Sequence[Message]) -> list[str | None]:
    return [properties.message_id for _, properties, _ in messages]


def own(headers: dict[str, Any]) -> dict[str, Any]:
    """The headers without the broker's own count."""
    return {name: value for name, value in headers.items() if name != DELIVERY_COUNT}


def orders(numbers: Iterable[int]) -> list[str]:
    return [f"order-{number}" for number in numbers]


async def test_fifty_looks_leave_every_dead_letter_in_place_and_in_order(
    settings: Settings, probe: Probe, dead: str
) -> None:
    put(probe, dead, range(100))
    await eventually(lambda: probe.depth(dead) == 100)
    for number in range(25):
        assert (await survey("payment", settings)).total == 100
        found = await find("payment", settings, limit=3)
        assert [letter.id for letter in found] == orders(range(3)), f"after {number} looks"
    messages = await drained(probe, dead, 100)
    assert ids(messages) == orders(range(100))
    for headers, _, _ in messages:
        assert headers.pop(DELIVERY_COUNT) == 50
        assert headers == {**CAUSE, EXCEPTION_TYPE: headers[EXCEPTION_TYPE]}


async def test_more_dead_letters_than_any_window_holds_are_grouped_and_stay_in_order(
    settings: Settings, probe: Probe, dead: str
) -> None:
    put(probe, dead, range(11_000))
    await eventually(lambda: probe.depth(dead) == 11_000, within_s=30)
    found = await survey("payment", settings, Selection(exceptions=frozenset({"KeyError"})))
    assert (found.total, found.matching) == (11_000, 5_500)
    [group] = found.groups
    assert (group.reason, group.exception_type, group.event_type, group.count) == (
        *("retries-exhausted", "KeyError", "ORDER_PLACED"),
        5_500,
    )
    assert group.first_failed_at == group.last_failed_at == datetime.fromisoformat(CAUSE[FAILED_AT])
    seen: list[str] = []
    await each("payment", settings, lambda letter, total: seen.append(letter.id))
    assert seen == orders(range(11_000))
    assert probe.depth(dead) == 11_000


async def test_a_look_keeps_only_a_window_in_memory(
    settings: Settings, probe: Probe, dead: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(looking, "FIRST_WINDOW", 8)
    monkeypatch.setattr(looking, "WINDOW_BYTES", 1_000_000)
    for _ in range(300):
        probe.publish("", dead, b"x" * 50_000)
    await eventually(lambda: probe.depth(dead) == 300)
    tracemalloc.start()
    try:
        assert (await survey("payment", settings)).total == 300
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 6_000_000, "of the 15 MB that are there"


async def test_two_looks_at_once_are_kept_apart(
    settings: Settings, probe: Probe, dead: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(probe, dead, range(3))
    await eventually(lambda: probe.depth(dead) == 3)
    async with Look("payment", settings):
        monkeypatch.setattr(looking, "LOCK_WITHIN_S", 0.1)
        with pytest.raises(InUse, match="another command is at work on the dead letters"):
            await survey("payment", settings)
    monkeypatch.undo()
    assert (await survey("payment", settings)).total == 3


async def test_who_may_declare_nothing_may_look(
    powerless: Settings, probe: Probe, dead: str
) -> None:
    put(probe, dead, range(3))
    await eventually(lambda: probe.depth(dead) == 3)
    assert (await survey("payment", powerless)).total == 3


async def test_a_dead_letter_is_copied_before_looking_at_it_could_end_it(
    settings: Settings, probe: Probe, dead: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(looking, "AGED", 2)
    put(probe, dead, range(5))
    await eventually(lambda: probe.depth(dead) == 5)
    for _ in range(7):
        found = await find("payment", settings)
        assert [letter.id for letter in found] == orders(range(5))
        assert all(letter.times_held < 2 for letter in found)
    messages = await drained(probe, dead, 5)
    assert all(headers[REASON] == "retries-exhausted" for headers, _, _ in messages)


async def test_a_consumer_that_never_ran_has_no_dead_letters(
    settings: Settings, probe: Probe
) -> None:
    with pytest.raises(NoDeadLetterQueue, match=r"no consumer named 'payment' ever ran there"):
        await survey("payment", settings)


async def test_a_replay_reaches_only_the_consumer_that_failed_as_a_first_attempt(
    settings: Settings, publisher: Publisher, probe: Probe
) -> None:
    is_mended = False
    runs: list[tuple[str, int, bool]] = []
    payment, email = Consumer("payment", retry=Retry.fixed(2, "10ms")), Consumer("email")
    mails: list[str] = []

    @payment.on("ORDER_PLACED")
    async def charge(event: Event[Any], context: Context) -> None:
        runs.append((event.id, context.attempt, context.is_replay))
        if not is_mended:
            raise ValueError("the bank is down")

    @email.on("ORDER_PLACED")
    async def thank(event: Event[Any]) -> None:
        mails.append(event.id)

    dead = probe.names.dead("payment")
    async with running(payment, settings), running(email, settings):
        tap = probe.tap("ORDER_PLACED")
        event = await publisher.publish("ORDER_PLACED", {"number": 1})
        await eventually(lambda: probe.depth(dead) == 1)
        [letter] = await find("payment", settings)
        assert (letter.reason, letter.attempt, letter.replays) == ("retries-exhausted", 2, 0)
        assert letter.traceback is not None
        assert "the bank is down" in letter.traceback
        is_mended = True
        assert await moves.replay("payment", settings) == 1
        await eventually(lambda: len(runs) == 3)
        assert runs == [(event.id, 1, False), (event.id, 2, False), (event.id, 1, True)]
        assert probe.depth(dead) == 0
        assert mails == [event.id]
        assert probe.depth(tap) == 1


async def test_what_a_replay_sends_is_the_event_without_its_cause(
    settings: Settings, probe: Probe, dead: str
) -> None:
    put(
        probe, dead, [7], **{REPLAYS: 1, EXCHANGE: "events.X", "trace": "kept", "CC": ["elsewhere"]}
    )
    await eventually(lambda: probe.depth(dead) == 1)
    assert await moves.replay("payment", settings) == 1
    [(headers, properties, body)] = await drained(probe, probe.names.queue("payment"), 1)
    assert own(headers) == {REPLAYS: 2, EXCHANGE: "events.X", "trace": "kept"}
    assert properties.message_id == "order-7"
    assert properties.type == "ORDER_PLACED"
    assert properties.delivery_mode == 2
    assert json.loads(body)["data"] == {"number": 7}


async def test_what_is_not_meant_stays_in_place_and_in_order(
    settings: Settings, probe: Probe, dead: str
) -> None:
    put(probe, dead, range(200))
    await eventually(lambda: probe.depth(dead) == 200)
    odd = Selection(exceptions=frozenset({"KeyError"}))
    assert await moves.replay("payment", settings, odd) == 100
    assert await moves.purge("payment", settings, Selection(ids=frozenset({"order-4"}))) == 1
    kept = [number for number in range(200) if number % 2 == 0 and number != 4]
    assert [letter.id for letter in await find("payment", settings)] == orders(kept)
    assert ids(await drained(probe, probe.names.queue("payment"), 100)) == orders(range(1, 200, 2))
    assert ids(await drained(probe, dead, 99)) == orders(kept)


async def test_acks_that_the_broker_holds_back_are_not_forgotten(
    settings: Settings, probe: Probe, dead: str
) -> None:
    put(probe, dead, range(3_000))
    await eventually(lambda: probe.depth(dead) == 3_000)
    odd = Selection(exceptions=frozenset({"KeyError"}))
    assert await moves.purge("payment", settings, odd) == 1_500
    assert probe.depth(dead) == 1_500
    assert await moves.purge("payment", settings) == 1_500
    assert probe.depth(dead) == 0


async def test_a_replay_ends_at_what_was_there_when_it_began(
    settings: Settings, publisher: Publisher, probe: Probe
) -> None:
    runs: list[str] = []
    payment = Consumer("payment", retry=Retry.none(), breaker=None)

    @payment.on("ORDER_PLACED")
    async def charge(event: Event[Any]) -> None:
        runs.append(event.id)
        raise ValueError("still no good")

    dead = probe.names.dead("payment")
    async with running(payment, settings):
        await publisher.publish_many(
            Event(type="ORDER_PLACED", data={"number": number}) for number in range(100)
        )
        await eventually(lambda: probe.depth(dead) == 100)
        assert await moves.replay("payment", settings, rate=400) == 100
        await eventually(lambda: probe.depth(dead) == 100)
        assert len(runs) == 200
        found = await find("payment", settings)
        assert {letter.replays for letter in found} == {1}


async def test_a_slow_replay_is_done_in_rounds(
    settings: Settings, probe: Probe, dead: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(moves, "ROUND_S", 0.05)
    put(probe, dead, range(40))
    await eventually(lambda: probe.depth(dead) == 40)
    odd = Selection(exceptions=frozenset({"KeyError"}))
    assert await moves.replay("payment", settings, odd, rate=100) == 20
    assert ids(await drained(probe, probe.names.queue("payment"), 20)) == orders(range(1, 40, 2))
    assert ids(await drained(probe, dead, 20)) == orders(range(0, 40, 2))


async def test_what_the_broker_refuses_stays_among_the_dead_letters(
    settings: Settings, probe: Probe, dead: str
) -> None:
    put(probe, dead, range(300))
    await eventually(lambda: probe.depth(dead) == 300)
    queue = probe.names.queue("payment")
    probe.delete_queue(queue)
    probe.declare_queue(queue, {"x-max-length": 40, "x-overflow": "reject-publish"})
    moved: list[str] = []
    with pytest.raises(PublishRefused, match="is a queue at its limit"):
        await moves.replay("payment", settings, on_moved=lambda letter: moved.append(letter.id))
    taken = ids(await drained(probe, queue, 40))
    kept = ids(await drained(probe, dead, probe.depth(dead)))
    assert set(taken) | set(kept) == set(orders(range(300)))
    assert set(moved) <= set(taken)
    assert set(moved).isdisjoint(kept)


async def test_a_replay_to_a_queue_that_is_gone_moves_nothing(
    settings: Settings, probe: Probe, dead: str
) -> None:
    put(probe, dead, range(20))
    await eventually(lambda: probe.depth(dead) == 20)
    probe.delete_queue(probe.names.queue("payment"))
    with pytest.raises(ConfigurationError, match="to replay to; start a worker of payment first"):
        await moves.replay("payment", settings)
    assert ids(await drained(probe, dead, 20)) == orders(range(20))


async def test_what_the_broker_dead_lettered_is_shown_and_replayed(
    settings: Settings, probe: Probe, dead: str
) -> None:
    event = Event(type="ORDER_PLACED", data={"number": 1})
    exchange, queue = probe.names.exchange("ORDER_PLACED"), probe.names.queue("payment")
    for _ in range(2):
        probe.publish(exchange, "", event.encode())
    await eventually(lambda: probe.depth(queue) == 2)
    probe.reject(queue, requeue=False)
    # Until its delivery limit, as of a host that dies with it again and again.
    await eventually(lambda: probe.reject(queue, requeue=True) or probe.depth(dead) == 2)
    found = await find("payment", settings)
    assert [letter.reason for letter in found] == ["rejected", "delivery-limit"]
    for letter in found:
        assert letter.event_type == "ORDER_PLACED"
        assert letter.exchange == exchange
        assert letter.failed_at is not None
        assert abs((datetime.now(UTC) - letter.failed_at).total_seconds()) < 60
        assert letter.body == event.encode()
    assert await moves.replay("payment", settings) == 2
    for headers, properties, body in await drained(probe, queue, 2):
        assert own(headers) == {REPLAYS: 1, EXCHANGE: exchange}
        assert properties.message_id == found[0].id
        assert body == event.encode()


async def test_what_somebody_else_put_there_is_shown_kept_and_brought_back_byte_for_byte(
    settings: Settings, probe: Probe, dead: str
) -> None:
    headers = {
        "bytes": b"\xff\x00",
        "when": datetime(2026, 4, 3, 10, 30, tzinfo=UTC),
        "price": Decimal("15.00"),
        "table": {"list": [1, -1, 2**40, True, None, {"deep": "é"}]},
        "$time": "no time",
        REASON: 7,
        ATTEMPT: "many",
        FAILED_AT: b"yesterday",
    }
    probe.publish("", dead, b"\xff\x00{", pika.BasicProperties(headers=headers, priority=3))
    probe.publish("", dead, b"")
    await eventually(lambda: probe.depth(dead) == 2)
    first, second = await find("payment", settings)
    assert (first.reason, first.attempt, first.failed_at, first.event_type) == ("7", 0, None, None)
    assert (second.reason, second.body) == ("unknown", b"")
    lines = [line_of(letter, "payment") for letter in (first, second)]
    assert await moves.purge("payment", settings) == 2
    again = letters_of(lines, "payment", probe.names, "a file")
    assert await moves.put_back(again, "payment", settings) == 2
    (kept, properties, body), (_, _, empty) = await drained(probe, dead, 2)
    assert (body, empty) == (b"\xff\x00{", b"")
    assert properties.priority == 3
    assert kept["table"] == headers["table"]
    assert kept["price"] == headers["price"]
    assert kept["bytes"] == b"\xff\x00"
    assert kept["$time"] == "no time"
    assert kept[REASON] == 7


async def test_what_was_exported_comes_back_as_it_was(
    settings: Settings, probe: Probe, dead: str
) -> None:
    put(probe, dead, range(300))
    await eventually(lambda: probe.depth(dead) == 300)
    lines: list[str] = []
    await each("payment", settings, lambda letter, _: lines.append(line_of(letter, "payment")))
    before = await find("payment", settings)
    assert await moves.purge("payment", settings) == 300
    letters = letters_of(lines, "payment", probe.names, "a file")
    assert await moves.put_back(letters, "payment", settings) == 300
    await eventually(lambda: probe.depth(dead) == 300)
    after = await find("payment", settings)
    assert [told(letter) for letter in after] == [told(letter) for letter in before]


def told(letter: Letter) -> list[object]:
    names = [name for name in Letter.__slots__ if name not in ("properties", "times_held")]
    return [getattr(letter, name) for name in names]


async def test_a_mended_event_takes_the_place_of_its_dead_letter(
    settings: Settings, probe: Probe, dead: str
) -> None:
    put(probe, dead, range(5))
    await eventually(lambda: probe.depth(dead) == 5)
    [letter] = await find("payment", settings, Selection(ids=frozenset({"order-2"})))
    mended = letter.body.replace(b'"number":2', b'"number":22')
    await moves.mend(letter, mended, "payment", settings, is_replayed=True)
    [(headers, properties, body)] = await drained(probe, probe.names.queue("payment"), 1)
    assert (properties.message_id, body) == ("order-2", mended)
    assert own(headers) == {REPLAYS: 1}
    with pytest.raises(ConfigurationError, match="order-2 of payment is not there any more"):
        await moves.mend(letter, mended, "payment", settings, is_replayed=True)
    [letter] = await find("payment", settings, Selection(ids=frozenset({"order-3"})))
    with pytest.raises(EventError, match="Invalid JSON"):
        await moves.mend(letter, b"{", "payment", settings, is_replayed=False)
    with pytest.raises(EventError, match="another id is another event"):
        other = letter.body.replace(b"order-3", b"order-9")
        await moves.mend(letter, other, "payment", settings, is_replayed=False)
    mended = letter.body.replace(b'"number":3', b'"number":33')
    await moves.mend(letter, mended, "payment", settings, is_replayed=False)
    messages = await drained(probe, dead, 4)
    assert ids(messages) == orders([0, 1, 4, 3])
    assert messages[-1][2] == mended
    assert messages[-1][0][REASON] == "retries-exhausted"


async def test_a_replay_takes_nothing_away_before_its_copy_is_confirmed(
    settings: Settings, probe: Probe, dead: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(probe, dead, range(3))
    await eventually(lambda: probe.depth(dead) == 3)
    asked = asyncio.Event()

    async def never_confirm(*_: Any, **__: Any) -> None:
        asked.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(ConfirmedChannel, "publish", never_confirm)
    replaying = asyncio.create_task(moves.replay("payment", settings))
    async with asyncio.timeout(10):
        await asked.wait()
    replaying.cancel()
    with pytest.raises(asyncio.CancelledError):
        await replaying
    await eventually(lambda: probe.depth(dead) == 3)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
async def test_a_replay_that_is_ended_in_the_middle_loses_nothing(
    settings: Settings, probe: Probe, dead: str, rabbitflow: Command, number: signal.Signals
) -> None:
    put(probe, dead, range(500))
    queue = probe.names.queue("payment")
    await eventually(lambda: probe.depth(dead) == 500)
    process = rabbitflow.start("dlq", "replay", "payment", "--yes", "--rate", "300")
    await eventually(lambda: probe.depth(queue) > 50)
    process.send_signal(number)
    process.wait(20)

    def everything() -> bool:
        return probe.depth(queue) + probe.depth(dead) >= 500

    await eventually(everything)
    moved = ids(await drained(probe, queue, probe.depth(queue)))
    kept = ids(await drained(probe, dead, probe.depth(dead)))
    assert 50 < len(moved) < 500
    assert set(moved) | set(kept) == set(orders(range(500)))
    assert moved == orders(range(len(moved)))
    twice = Counter(moved + kept) - Counter(orders(range(500)))
    assert sum(twice.values()) <= moves.IN_FLIGHT
    if number == signal.SIGINT:
        assert kept == orders(range(500 - len(kept), 500))
