"""What only the management API tells, read from a broker that has the plugin."""

from __future__ import annotations

from pathlib import Path

import pytest

from rabbitflow.doctor.facts import FileHandles
from rabbitflow.doctor.management import management_facts
from rabbitflow.settings import load_settings
from tests.broker.test_doctor import PAYMENT, rabbitflow
from tests.harness.broker import Probe
from tests.harness.node import PrivateNode, free_port, server_binary
from tests.harness.waiting import eventually
from tests.harness.workers import Worker


@pytest.mark.slow
@pytest.mark.skipif(server_binary() is None, reason="no rabbitmq-server is installed")
async def test_bindings_and_orphans_are_read_from_the_management_api(tmp_path: Path) -> None:
    node, port = PrivateNode(), free_port()
    (node.directory / "enabled_plugins").write_text("[rabbitmq_management].")
    with (node.directory / "rabbitmq.conf").open("a") as conf:
        conf.write(f"management.tcp.port = {port}\nmanagement.tcp.ip = 127.0.0.1\n")
    try:
        node.start()
        settings = load_settings(
            url=node.url, management_url=f"http://guest:guest@127.0.0.1:{port}"
        )
        with Worker(settings, tmp_path) as worker:
            worker.module("payment", PAYMENT)
            worker.start()
            await worker.ready("payment")
            probe = Probe(settings)
            probe.tap("ORDER_PLACED")
            facts = await management_facts(settings)
            assert ("events.ORDER_PLACED", "payment") in facts.bindings

            async def handles_told() -> tuple[FileHandles, ...]:
                # RabbitMQ collects the figures of a node, and who leads a queue, every few seconds.
                told = (await management_facts(settings)).handles
                return told if told and told[0].reserved else ()

            (handles,) = await eventually(handles_told, within_s=30)
            quorum = [name for name in facts.queues if name.startswith("payment")]
            assert handles.limit > 1000
            assert handles.reserved == 3 * len(quorum)
            management = f"http://guest:guest@127.0.0.1:{port}"
            code, found = rabbitflow(
                worker, "doctor", "services", RABBITFLOW_MANAGEMENT_URL=management
            )
            assert code == 0
            assert "no module here declares it" in " ".join(one["problem"] for one in found)
            probe.unbind("payment", "ORDER_PLACED")
            probe.close()
            code, found = rabbitflow(
                worker, "doctor", "services", RABBITFLOW_MANAGEMENT_URL=management
            )
            assert code == 1
            assert "pass it by" in found[0]["problem"]
    finally:
        node.remove()
