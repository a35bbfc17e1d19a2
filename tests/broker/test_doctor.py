"""status and doctor against a real broker, as their users run them."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from rabbitflow import Publisher
from rabbitflow.control import pause
from rabbitflow.settings import Settings
from tests.harness.broker import Probe
from tests.harness.waiting import eventually
from tests.harness.workers import Worker

PAYMENT = """
payment = Consumer("payment", concurrency=2, retry=Retry.fixed(attempts=2, wait=600), timeout=20)

@payment.on("ORDER_PLACED")
async def charge(event: Event[dict]) -> None:
    if event.data["number"] == 1:
        raise ValueError("again")
    if event.data["number"] == 2:
        raise DeadLetter("never")
    ledger.write("payment", event.id)
"""


def rabbitflow(worker: Worker, *arguments: str, **env: str) -> tuple[int, Any]:
    """Run a command and return its exit code and what it printed as JSON."""
    done = subprocess.run(
        [sys.executable, "-m", "rabbitflow", *arguments, "--json"],
        cwd=worker.directory,
        env=worker.environment(**env),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


async def test_status_and_doctor_say_what_waits_what_failed_and_who_is_there(
    settings: Settings, publisher: Publisher, probe: Probe, worker: Worker
) -> None:
    worker.module("payment", PAYMENT)
    (worker.directory / "pyproject.toml").write_text('[tool.rabbitflow]\nmodules = ["services"]\n')
    _, (absent,) = rabbitflow(worker, "status")
    assert (absent["state"], absent["ready"]) == ("missing", None)
    code, found = rabbitflow(worker, "doctor")
    assert code == 1
    assert "not on the broker" in found[0]["problem"]
    worker.start()
    await worker.ready("payment")
    for number in range(3):
        await publisher.publish("ORDER_PLACED", {"number": number})
    names = probe.names
    await eventually(lambda: probe.depth(names.retry("payment", 512)) == 1)
    await eventually(lambda: probe.depth(names.dead("payment")) == 1)
    _, (running,) = rabbitflow(worker, "status")
    assert running["state"] == "running"
    assert running["retries"] == {"512": 1}
    assert (running["dead"], running["consuming"], running["workers"]) == (1, 1, 1)
    code, found = rabbitflow(worker, "doctor")
    assert code == 0
    assert "1 dead letters" in [one["problem"] for one in found]
    await pause("payment", settings)
    await eventually(lambda: probe.consumers(names.workers("payment")) == 0)
    _, (paused,) = rabbitflow(worker, "status")
    assert (paused["state"], paused["consuming"], paused["workers"]) == ("paused", 0, 0)
    probe.remove_consumer("payment")
    probe.declare_queue(names.queue("payment"), {"x-queue-type": "quorum", "x-delivery-limit": -1})
    code, found = rabbitflow(worker, "doctor", RABBITFLOW_MANAGEMENT_URL="http://localhost:1")
    assert code == 1
    problems = " ".join(one["problem"] for one in found)
    assert "x-delivery-limit = -1, wanted 50" in problems
    assert "x-delivery-limit=-1" in problems
    assert "bindings, orphan queues and alarms were not looked at" in problems
    code, different = rabbitflow(worker, "topology", "diff", "services")
    assert code == 1
    assert {"x-delivery-limit", "x-overflow"} <= {
        one["argument"] for one in different["mismatches"]
    }


async def test_doctor_names_what_a_user_without_permissions_may_not_do(
    settings: Settings, powerless: Settings, probe: Probe, worker: Worker
) -> None:
    worker.module("payment", PAYMENT)
    subprocess.run(
        [sys.executable, "-m", "rabbitflow", "topology", "apply", "services"],
        cwd=worker.directory,
        env=worker.environment(),
        check=True,
        capture_output=True,
        timeout=60,
    )
    code, found = rabbitflow(worker, "doctor", "services", RABBITFLOW_URL=powerless.broker_url)
    assert code == 1
    assert "payment may not declare its queues" in found[0]["problem"]
    assert powerless.url.get_secret_value() not in json.dumps(found)
    _, found = rabbitflow(
        worker,
        "doctor",
        "services",
        RABBITFLOW_URL=powerless.broker_url,
        RABBITFLOW_DECLARE="false",
    )
    assert not [one for one in found if one["severity"] == "error"]


async def test_an_event_larger_than_the_broker_takes_is_found_without_publishing_one(
    settings: Settings, probe: Probe, worker: Worker
) -> None:
    worker.module("payment", PAYMENT)
    _, found = rabbitflow(worker, "doctor", "services", RABBITFLOW_MAX_BODY_BYTES="200000000")
    assert "it takes no message of 200,000,000 bytes" in " ".join(one["problem"] for one in found)
