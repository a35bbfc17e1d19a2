"""Whatever a foreign publisher sends ends as a dead letter; the worker lives, in bounded memory."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pika
import psutil
import pytest

from rabbitflow.settings import load_settings
from rabbitflow.topology import HEADERS_LIMIT_BYTES, REASON
from tests.faults.conftest import Note
from tests.harness.broker import Probe, remove_namespace
from tests.harness.node import PrivateNode
from tests.harness.waiting import eventually
from tests.harness.workers import Worker

PAYMENT = """
    from pydantic import BaseModel
    class Order(BaseModel):
        number: int
    payment = Consumer("payment", concurrency=4)
    @payment.on("ORDER_PLACED")
    async def charge(event: Event[Order], context: Context) -> None:
        ledger.write("payment", event.id, event.data.number, context.attempt)
"""
MEMORY_LIMIT_BYTES = 512 << 20
MIB = 1 << 20

Properties = pika.BasicProperties


def body(data: str) -> bytes:
    return (
        '{"type": "ORDER_PLACED", "timestamp": "2026-04-03T10:30:00Z", "data": ' + data + "}"
    ).encode()


BAD: dict[str, tuple[Callable[[], bytes], Properties]] = {
    "malformed JSON": (lambda: b'{"type": "ORDER_PLACED", "data": ', Properties()),
    "no bytes at all": (lambda: b"", Properties()),
    "wrong schema": (lambda: body('{"number": "many"}'), Properties()),
    "wrong content type": (
        lambda: body('{"number": 1}'),
        Properties(content_type="application/x-pickle"),
    ),
    "unknown encoding": (
        lambda: body('{"number": 1}'),
        Properties(content_type="application/json", content_encoding="gzip"),
    ),
    "invalid UTF-8": (lambda: body('{"number": 1, "name": "') + b'\xff\xfe"}}', Properties()),
    "JSON nested 100,000 deep": (lambda: body("[" * 100_000 + "]" * 100_000), Properties()),
    "NaN": (lambda: body('{"number": NaN}'), Properties()),
    "a number of a million digits": (lambda: body('{"number": ' + "9" * MIB + "}"), Properties()),
    "body of 64 MiB": (lambda: body('{"number": "' + "x" * (64 * MIB) + '"}'), Properties()),
    "random bytes": (lambda: secrets.token_bytes(4096), Properties()),
}


class Standing:
    """One worker for all bad inputs: it must survive every one of them."""

    def __init__(self, worker: Worker, probe: Probe) -> None:
        self.worker = worker
        self.probe = probe
        self.good = 0

    def publish(self, sent: bytes, properties: Properties) -> None:
        """Publish as a foreign client does."""
        self.probe.publish(self.probe.names.exchange("ORDER_PLACED"), "", sent, properties)

    async def still_handles(self) -> None:
        """Show that a good event behind the bad one is handled."""
        self.good += 1
        event_id = f"good-{self.good}"
        self.publish(body(json.dumps({"number": self.good})), Properties(message_id=event_id))
        await eventually(lambda: event_id in self.worker.ledger.ids("payment"), within_s=20)


@pytest.fixture(scope="module")
def standing(
    first_node: PrivateNode, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Standing]:
    directory: Path = tmp_path_factory.mktemp("standing")
    settings = load_settings(
        url=first_node.url,
        namespace=f"test-{secrets.token_hex(4)}",
        state_dir=directory / "state",
        metrics_port=0,
    )
    with Worker(settings, directory) as worker:
        worker.module("payment", PAYMENT)
        worker.start()
        probe = Probe(settings)
        yield Standing(worker, probe)
        probe.close()
    remove_namespace(settings, ("payment",), ("ORDER_PLACED",))


async def dead_letter(standing: Standing) -> tuple[dict[str, Any], bytes]:
    queue = standing.probe.names.dead("payment")
    await eventually(lambda: standing.probe.depth(queue) > 0, within_s=30)
    message = standing.probe.take(queue)
    assert message is not None
    return message[0], message[2]


@pytest.mark.parametrize("fault", BAD)
async def test_bad_input_is_kept_byte_for_byte_and_the_worker_lives(
    standing: Standing, note: Note, fault: str
) -> None:
    await standing.worker.ready("payment")
    child = standing.worker.child("payment")
    make, properties = BAD[fault]
    sent = make()
    standing.publish(sent, properties)
    headers, kept = await dead_letter(standing)
    assert headers[REASON] == "invalid"
    assert kept == sent
    await standing.still_handles()
    assert psutil.pid_exists(child.pid), "the same process handles the next event"
    assert standing.worker.child("payment").pid == child.pid
    assert child.memory_info().rss < MEMORY_LIMIT_BYTES
    note(fault, "dead letter, worker alive, memory bounded")


async def test_headers_of_120_kilobytes_are_cut_to_what_the_broker_takes(
    standing: Standing, note: Note
) -> None:
    await standing.worker.ready("payment")
    headers = {f"x-{number}": "h" * 1000 for number in range(120)}
    standing.publish(body('{"number": "many"}'), Properties(headers=headers))
    kept, _ = await dead_letter(standing)
    assert kept[REASON] == "invalid"
    assert sum(len(str(name)) + len(str(value)) for name, value in kept.items()) < (
        HEADERS_LIMIT_BYTES
    )
    await standing.still_handles()
    note("headers of 120 kB", "dead letter, worker alive, headers cut")
