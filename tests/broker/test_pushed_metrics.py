"""A producer that ends before anybody could scrape it pushes what it counted."""

from __future__ import annotations

import shutil
import subprocess
import urllib.request
from collections.abc import Iterator

import pytest
from prometheus_client import CollectorRegistry, push_to_gateway

from rabbitflow import SyncPublisher
from rabbitflow.observe.exposition import PublisherCollector
from rabbitflow.settings import Settings
from tests.harness.broker import Probe
from tests.harness.node import free_port
from tests.harness.waiting import eventually


@pytest.fixture
def gateway() -> Iterator[str]:
    """A real Pushgateway's address."""
    binary = shutil.which("prometheus-pushgateway")
    if binary is None:
        pytest.skip(
            "no Pushgateway is installed: apt-get install prometheus-pushgateway",
        )
    address = f"127.0.0.1:{free_port()}"
    command = [binary, f"--web.listen-address={address}", "--log.level=error"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        yield address
        process.terminate()


def read(url: str) -> str:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return str(answer.read().decode())
    except OSError:
        return ""


async def test_a_short_lived_producer_pushes_its_figures(
    settings: Settings, probe: Probe, gateway: str
) -> None:
    await eventually(lambda: read(f"http://{gateway}/-/ready"))
    with SyncPublisher(settings=settings) as publisher:
        for number in range(3):
            publisher.publish("ORDER_PLACED", {"number": number})
        registry = CollectorRegistry()
        registry.register(PublisherCollector(publisher.metrics))
    push_to_gateway(gateway, job="nightly-import", registry=registry)
    shown = read(f"http://{gateway}/metrics")
    labels = 'event_type="ORDER_PLACED",instance="",job="nightly-import"'
    assert f'rabbitflow_events_published_total{{{labels},outcome="confirmed"}} 3' in shown
    assert f"rabbitflow_publish_seconds_count{{{labels}}} 3" in shown
