"""Other clients: pika, and librabbitmq's amqp-publish, amqp-get and amqp-consume."""

from __future__ import annotations

import shutil
import subprocess
from urllib.parse import urlsplit

import pika
import pika.exceptions
import pytest

from tests.harness.amqp import Client


def test_pika_publishes_consumes_and_settles(amqp_url: str) -> None:
    connection = pika.BlockingConnection(pika.URLParameters(amqp_url))
    channel = connection.channel()
    queue = channel.queue_declare("", exclusive=True).method.queue
    channel.confirm_delivery()
    for number in range(20):
        channel.basic_publish("", queue, b"%d" % number, pika.BasicProperties(delivery_mode=2))
    with pytest.raises(pika.exceptions.UnroutableError):
        channel.basic_publish("", "nowhere", b"x", mandatory=True)
    channel.basic_qos(prefetch_count=5)
    bodies = []
    for method, _, body in channel.consume(queue, inactivity_timeout=10):
        assert method is not None
        bodies.append(body)
        channel.basic_ack(method.delivery_tag)
        if len(bodies) == 20:
            break
    channel.cancel()
    assert bodies == [b"%d" % number for number in range(20)]
    with pytest.raises(pika.exceptions.ChannelClosedByBroker) as closed:
        channel.queue_declare("nowhere-at-all", passive=True)
    assert closed.value.reply_code == 404
    connection.close()


def run(tool: str, url: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    if shutil.which(tool) is None:
        pytest.skip(f"{tool} is not installed; apt-get install amqp-tools")
    parts = urlsplit(url)
    server = f"--server={parts.hostname}:{parts.port}"
    return subprocess.run(
        [tool, server, *arguments], capture_output=True, text=True, timeout=30, check=False
    )


async def test_command_line_tools_publish_and_get(client: Client, amqp_url: str) -> None:
    queue = await client.queue()
    sent = run("amqp-publish", amqp_url, f"--routing-key={queue}", "--body=from a shell", "-p")
    assert sent.returncode == 0, sent.stderr
    await client.has_depth(queue, 1)
    got = run("amqp-get", amqp_url, f"--queue={queue}")
    assert (got.returncode, got.stdout) == (0, "from a shell"), got.stderr
    empty = run("amqp-get", amqp_url, f"--queue={queue}")
    assert empty.returncode == 2


async def test_command_line_tools_consume(client: Client, amqp_url: str) -> None:
    queue = await client.queue()
    await client.publish(queue, b"1", b"2")
    got = run("amqp-consume", amqp_url, f"--queue={queue}", "--count=2", "cat")
    assert (got.returncode, got.stdout) == (0, "12"), got.stderr
    assert await client.depth(queue) == 0


async def test_command_line_tools_declare_and_delete(client: Client, amqp_url: str) -> None:
    name = client.name("tool")
    made = run("amqp-declare-queue", amqp_url, f"--queue={name}", "-d")
    assert (made.returncode, made.stdout.strip()) == (0, name), made.stderr
    await client.publish(name, b"x")
    gone = run("amqp-delete-queue", amqp_url, f"--queue={name}")
    assert (gone.returncode, gone.stdout.strip()) == (0, "1"), gone.stderr
