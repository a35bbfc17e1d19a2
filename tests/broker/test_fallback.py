"""Where no RabbitMQ answers, an embedded broker is used, and it is said which one it is."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rabbitflow import Publisher
from rabbitflow.errors import AccessRefused
from rabbitflow.fallback import broker_or_embedded
from rabbitflow.settings import Settings, load_settings
from workers.demo import REACTIONS

ROOT = Path(__file__).parents[2]
NOBODY = "amqp://me:s3cret@127.0.0.1:1/"


async def test_the_broker_of_the_settings_is_used_where_it_answers(settings: Settings) -> None:
    async with broker_or_embedded(settings, "test") as found:
        assert found.embedded is None
        assert found.settings == settings
        assert settings.shown_url in found.description


async def test_an_embedded_broker_is_used_where_nothing_answers() -> None:
    settings = load_settings(url=NOBODY, namespace="kept")
    async with broker_or_embedded(settings, "test") as found:
        assert found.embedded is not None
        assert found.settings.namespace == "kept"
        assert "nothing answers at amqp://me@127.0.0.1:1/" in found.description
        assert "s3cret" not in found.description
        async with Publisher(settings=found.settings) as publisher:
            await publisher.publish("ORDER_PLACED", {})
        assert found.embedded.queues()["kept.events.ORDER_PLACED.log"].ready == 1


async def test_a_broker_that_refuses_is_not_replaced(settings: Settings) -> None:
    wrong = load_settings(url=settings.broker_url.replace("guest:guest@", "guest:wrong@"))
    with pytest.raises(AccessRefused):
        async with broker_or_embedded(wrong, "test"):
            pass


def test_the_demo_needs_no_rabbitmq() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "workers.demo"],
        cwd=ROOT,
        env={**os.environ, "RABBITFLOW_URL": NOBODY, "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "nothing answers at amqp://me@127.0.0.1:1/, so an embedded broker" in done.stdout
    assert "s3cret" not in done.stdout + done.stderr
    for _, consumer in REACTIONS:
        assert consumer in done.stdout
