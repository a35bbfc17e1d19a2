"""The event log: followed, exported, replayed to one consumer alone."""

from __future__ import annotations

import json
import subprocess
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from rabbitflow import Event, Publisher
from rabbitflow.settings import Settings
from rabbitflow.topology import REPLAYED_FROM_LOG
from tests.harness.broker import Message, Probe
from tests.harness.command import Command
from tests.harness.waiting import eventually

MARCH = datetime(2026, 3, 1, tzinfo=UTC)


@pytest.fixture
def rabbitflow(settings: Settings, tmp_path: Path) -> Command:
    return Command(settings, tmp_path)


def orders(count: int, since: datetime = MARCH) -> list[Event[Any]]:
    return [
        Event(type="ORDER_PLACED", timestamp=since + timedelta(days=day), data={"number": day})
        for day in range(count)
    ]


def taken(probe: Probe, queue: str) -> list[Message]:
    return list(iter(lambda: probe.take(queue), None))


def numbers(messages: list[Message]) -> list[int]:
    return [json.loads(body)["data"]["number"] for _, _, body in messages]


async def test_export_prints_whole_events_of_all_types_as_they_happened(
    publisher: Publisher, probe: Probe, rabbitflow: Command
) -> None:
    first, second, third = orders(3)
    await publisher.publish(first)
    await publisher.publish(third)
    ride = Event(type="RIDE_COMPLETED", timestamp=second.timestamp, data={"null": None})
    await publisher.publish(ride)
    probe.publish(probe.names.exchange("ORDER_PLACED"), "", b"no event")
    done = rabbitflow("log", "export", "ORDER_PLACED", "RIDE_COMPLETED")
    assert done.returncode == 0
    assert [Event.model_validate_json(line) for line in done.stdout.splitlines()] == [
        first,
        ride,
        third,
    ]
    assert "1 messages left out" in done.stderr
    part = rabbitflow("log", "export", "ORDER_PLACED", "--from", "2026-03-02", "--until", "9s")
    assert [json.loads(line)["id"] for line in part.stdout.splitlines()] == [third.id]


async def test_tail_begins_in_the_past_and_follows(
    publisher: Publisher, rabbitflow: Command
) -> None:
    past = await publisher.publish("ORDER_PLACED", {"number": 1})
    tail = rabbitflow.start(
        "log", "tail", "ORDER_PLACED", "--from", "first", "--json", stdout=subprocess.PIPE
    )
    try:
        assert tail.stdout is not None
        assert json.loads(tail.stdout.readline())["id"] == past.id
        present = await publisher.publish("ORDER_PLACED", {"number": 2})
        assert json.loads(tail.stdout.readline())["id"] == present.id
    finally:
        tail.kill()
        tail.communicate()


async def test_a_replay_goes_to_one_consumer_in_order_and_says_what_it_is(
    publisher: Publisher, probe: Probe, rabbitflow: Command
) -> None:
    await publisher.publish_many(orders(50))
    probe.declare_queue(probe.names.queue("rating"))
    others = probe.tap("ORDER_PLACED")
    command = ("replay", "--consumer", "rating", "--type", "ORDER_PLACED", "--from", "2026-03-11")
    dry = rabbitflow(*command, "--dry-run", "--json")
    assert json.loads(dry.stdout)["copied"] == 40
    assert probe.depth(probe.names.queue("rating")) == 0
    done = rabbitflow(*command, "--json")
    assert json.loads(done.stdout) == {
        "consumer": "rating",
        "dry_run": False,
        "copied": 40,
        "left_out": 10,
        "unreadable": 0,
    }
    messages = taken(probe, probe.names.queue("rating"))
    assert numbers(messages) == list(range(10, 50))
    assert [headers[REPLAYED_FROM_LOG] for headers, _, _ in messages] == list(range(10, 50))
    assert probe.depth(others) == 0, "another consumer got the past too"


async def test_a_replay_that_is_killed_goes_on_where_it_was(
    publisher: Publisher, probe: Probe, rabbitflow: Command
) -> None:
    await publisher.publish_many(orders(200, datetime.now(UTC)))
    queue = probe.names.queue("rating")
    probe.declare_queue(queue)
    command = ("replay", "--consumer", "rating")
    running = rabbitflow.start(*command, "--type", "ORDER_PLACED", "--rate", "40")
    await eventually(lambda: probe.depth(queue) > 60, within_s=60)
    running.kill()
    running.communicate()
    copied = probe.depth(queue)
    again = rabbitflow(*command, "--type", "ORDER_PLACED")
    assert again.returncode == 78
    assert "--resume" in again.stderr
    assert rabbitflow(*command, "--resume").returncode == 0
    found = numbers(taken(probe, queue))
    assert set(found) == set(range(200))
    assert copied < 200
    assert len(found) - 200 <= 60, "more came again than half a second's copies"
    assert rabbitflow(*command, "--resume").returncode == 78, "a finished replay was kept"


async def test_a_replay_can_be_slowed_down(
    publisher: Publisher, probe: Probe, rabbitflow: Command
) -> None:
    await publisher.publish_many(orders(30))
    probe.declare_queue(probe.names.queue("rating"))
    began = time.monotonic()
    rabbitflow("replay", "--consumer", "rating", "--type", "ORDER_PLACED", "--rate", "10")
    assert probe.depth(probe.names.queue("rating")) == 30
    assert time.monotonic() - began > 2.5


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("log", "export", "NEVER_SAID"), 78, "RABBITFLOW_EVENT_LOG"),
        (("log", "tail"), 78, "name the event types"),
        (("log", "export", "ORDER_PLACED", "--from", "yesterday"), 2, "'yesterday' is no moment"),
        (("replay", "--consumer", "nobody", "--type", "ORDER_PLACED"), 78, "no queue"),
        (("replay", "--consumer", "rating", "--type", "A", "--type", "B", "--from", "5"), 2, "one"),
    ],
)
async def test_what_can_not_be_is_said_in_one_line(
    publisher: Publisher,
    rabbitflow: Command,
    arguments: tuple[str, ...],
    code: int,
    said: str,
) -> None:
    await publisher.publish("ORDER_PLACED", {"number": 1})
    done = rabbitflow(*arguments)
    assert (done.returncode, done.stderr.count("\n")) == (code, 1)
    assert said in done.stderr
