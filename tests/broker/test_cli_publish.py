"""``rabbitflow publish`` announces what it is given, and says in one line what is wrong with it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rabbitflow.settings import Settings
from tests.harness.broker import Probe

ORDER = {"type": "ORDER_PLACED", "timestamp": "2026-04-03T10:30:00Z", "data": {"amount": 1500}}


class Publish:
    """Runs the command."""

    def __init__(self, settings: Settings, directory: Path) -> None:
        self.directory = directory
        self.environment = {
            **os.environ,
            "PYTHONPATH": str(Path(__file__).parents[2]),
            "RABBITFLOW_URL": settings.broker_url,
            "RABBITFLOW_NAMESPACE": settings.namespace or "",
        }

    def __call__(
        self, *arguments: str, stdin: str = "", **env: str
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "rabbitflow", "publish", "ORDER_PLACED", *arguments],
            cwd=self.directory,
            env={**self.environment, **env},
            input=stdin,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )


@pytest.fixture
def publish(settings: Settings, tmp_path: Path) -> Publish:
    return Publish(settings, tmp_path)


@pytest.fixture
def tap(probe: Probe) -> str:
    probe.declare_exchange("ORDER_PLACED")
    return probe.tap("ORDER_PLACED")


def announced(probe: Probe, tap: str) -> list[dict[str, object]]:
    return [json.loads(message[2]) for message in iter(lambda: probe.take(tap), None)]


def test_a_whole_event_keeps_its_time_and_gets_an_id(
    publish: Publish, probe: Probe, tap: str, tmp_path: Path
) -> None:
    (tmp_path / "order.json").write_text(json.dumps(ORDER))
    done = publish("--data", "order.json")
    assert done.returncode == 0, done.stderr
    (event,) = announced(probe, tap)
    assert event == {**ORDER, "id": done.stdout.strip()}


def test_only_the_data_becomes_an_event(publish: Publish, probe: Probe, tap: str) -> None:
    done = publish(
        *("--data", '{"amount": 1500}', "--key", "k", "--source", "s", "--correlation-id", "c"),
        "--json",
    )
    assert done.returncode == 0, done.stderr
    shown = json.loads(done.stdout)
    (event,) = announced(probe, tap)
    assert event["data"] == {"amount": 1500}
    assert (event["key"], event["source"], event["correlation_id"]) == ("k", "s", "c")
    assert shown["id"] == event["id"]
    assert shown["type"] == "ORDER_PLACED"


def test_standard_input_is_read(publish: Publish, probe: Probe, tap: str) -> None:
    assert publish("--data", "-", stdin=json.dumps(ORDER)).returncode == 0
    assert len(announced(probe, tap)) == 1


@pytest.mark.parametrize("source", ["file", "stdin"])
def test_many_events_are_announced_in_order(
    publish: Publish, probe: Probe, tap: str, tmp_path: Path, source: str
) -> None:
    lines = "".join(json.dumps({"number": number}) + "\n" for number in range(1000))
    (tmp_path / "orders.ndjson").write_text(lines)
    data = "orders.ndjson" if source == "file" else "-"
    done = publish("--data", data, "--ndjson", stdin=lines)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("1000 events announced in ")
    numbers = [event["data"]["number"] for event in announced(probe, tap)]  # type: ignore[index]
    assert numbers == list(range(1000))


def test_a_fault_in_the_last_line_of_a_file_announces_nothing(
    publish: Publish, probe: Probe, tap: str, tmp_path: Path
) -> None:
    (tmp_path / "orders.ndjson").write_text('{"number": 1}\n{"number": \n')
    done = publish("--data", "orders.ndjson", "--ndjson")
    assert done.returncode == 2
    assert "orders.ndjson, line 2 is no JSON" in done.stderr
    assert announced(probe, tap) == []


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--data", "nowhere.json"], "nowhere.json can't be read"),
        (["--data", "{"], "--data is no JSON"),
        (["--data", '{"n": NaN}'], "--data is no JSON"),
        (
            ["--data", '{"type": "RIDE_COMPLETED", "data": 1}'],
            "says type 'RIDE_COMPLETED', and you said 'ORDER_PLACED'",
        ),
        (
            ["--data", '{"type": "ORDER_PLACED", "timestamp": "2026-04-03T10:30:00", "data": 1}'],
            "timestamp: Input should have timezone info",
        ),
        (["--data", '{"a": "' + "x" * 3000 + '"}'], "the limit is 2000"),
    ],
)
def test_wrong_input_is_one_line_and_exit_2(
    publish: Publish, arguments: list[str], reason: str
) -> None:
    done = publish(*arguments, RABBITFLOW_MAX_BODY_BYTES="2000")
    assert done.returncode == 2
    assert reason in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_wrong_type_name_is_one_line_and_exit_2(publish: Publish) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "rabbitflow", "publish", "ORDER PLACED", "--data", "{}"],
        env=publish.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "type: String should match pattern" in done.stderr


def test_no_broker_is_one_line_and_exit_1_without_the_password(publish: Publish) -> None:
    url = "amqp://me:s3cret@127.0.0.1:1/"
    done = publish("--data", "{}", "--timeout", "0.5", RABBITFLOW_URL=url)
    assert done.returncode == 1
    assert "no broker answers at amqp://me@127.0.0.1:1/" in done.stderr
    assert done.stderr.count("\n") == 1
    assert "s3cret" not in done.stderr + done.stdout


def test_the_topology_can_be_shown_without_a_broker(publish: Publish, tmp_path: Path) -> None:
    (tmp_path / "services.py").write_text(
        "from rabbitflow import *\n"
        'payment = Consumer("payment", retry=Retry.none())\n'
        '@payment.on("ORDER_PLACED")\n'
        "def charge(event: Event) -> None: ...\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "rabbitflow", "topology", "show", "services", "--json"],
        cwd=tmp_path,
        env={**publish.environment, "RABBITFLOW_URL": "amqp://127.0.0.1:1/"},
        capture_output=True,
        text=True,
        check=True,
    )
    shown = json.loads(done.stdout)
    prefix = publish.environment["RABBITFLOW_NAMESPACE"]
    assert [queue["name"] for queue in shown["queues"]] == [
        f"{prefix}.payment",
        f"{prefix}.payment.dead",
        f"{prefix}.payment.workers",
        f"{prefix}.events.ORDER_PLACED.log",
    ]
