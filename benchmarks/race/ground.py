"""The ground of the race: queues of ours on the broker, filled, and removed again."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys

import aio_pika
import pika
import pika.exceptions
from yarl import URL

from benchmarks.race.contestants import c_client
from benchmarks.race.meter import CONSUMERS
from benchmarks.race.meter import URL as BROKER
from benchmarks.race.payload import EVENT_TYPE, body
from rabbitflow.broker import close, connect
from rabbitflow.consumer import DEFAULT_RETRY
from rabbitflow.declaration import declare
from rabbitflow.settings import Settings, load_settings
from rabbitflow.topology import RETRY_BUCKETS_S, Names, bucket_for, consumer_topology


def settings(namespace: str) -> Settings:
    """Return ours: no event log, because no peer has one to keep up with."""
    return load_settings(url=BROKER, namespace=namespace, event_log=False)


def lay(namespace: str, consumers: int = 1) -> None:
    """Declare exchange and queues as a worker of ours does; the peers use the same ones."""

    async def work() -> None:
        given = settings(namespace)
        buckets = [
            bucket_s
            for shortest_s, longest_s in DEFAULT_RETRY.reachable_delays_s()
            for bucket_s in RETRY_BUCKETS_S
            if bucket_for(shortest_s) <= bucket_s <= bucket_for(longest_s)
        ]
        connection = await connect(given, "race")
        for name in CONSUMERS[:consumers]:
            topology = consumer_topology(name, [EVENT_TYPE], sorted(set(buckets)), given)
            await declare(connection, topology, given)
        await close(connection)

    asyncio.run(work())


def fill(namespace: str, count: int, size_bytes: int = 0) -> None:
    """Publish ``count`` events to the exchange, by the fastest client there is."""
    exchange = Names(namespace).exchange(EVENT_TYPE)
    client = c_client()
    if client is None:
        command = [sys.executable, "-m", "benchmarks.race.ground", exchange, str(count)]
        subprocess.run([*command, str(size_bytes)], check=True)
        return
    process = subprocess.Popen(
        [str(client), "fill", *address(), exchange, str(count)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
    )
    assert process.stdin is not None
    with process.stdin as lines:
        for number in range(count):
            lines.write(body(number, size_bytes) + b"\n")
    if process.wait():
        raise RuntimeError("the C client could not fill the queue")


def address() -> list[str]:
    """Return the broker's address as the C client takes it."""
    url = URL(BROKER)
    return [
        url.host or "localhost",
        str(url.port or 5672),
        url.user or "guest",
        url.password or "guest",
        url.path.removeprefix("/") or "/",
    ]


def clear(namespace: str, queues: list[str], exchanges: list[str]) -> None:
    """Remove everything that a run may have left."""
    names = Names(namespace)
    for name in CONSUMERS:
        queues += [names.queue(name), names.dead(name), names.workers(name)]
        queues += [f"{names.queue(name)}.delay"]
        queues += [names.retry(name, bucket_s) for bucket_s in RETRY_BUCKETS_S]
    first = names.queue(CONSUMERS[0])
    queues += [f"{first}.DQ", f"{first}.XQ", f"{first}.delay", f"{first}.dead"]
    exchanges += [names.exchange(EVENT_TYPE), f"{namespace}.rabbitflow.control"]
    exchanges += [f"{first}.taskiq", first]
    connection = pika.BlockingConnection(pika.URLParameters(BROKER))
    for queue in dict.fromkeys(queues):
        with contextlib.suppress(pika.exceptions.ChannelClosedByBroker):
            connection.channel().queue_delete(queue)
    for exchange in dict.fromkeys(exchanges):
        with contextlib.suppress(pika.exceptions.ChannelClosedByBroker):
            connection.channel().exchange_delete(exchange)
    connection.close()


def broker_version() -> str:
    """Return name and version of the broker, as it says them itself."""
    connection = pika.BlockingConnection(pika.URLParameters(BROKER))
    said = connection._impl.server_properties
    connection.close()
    return f"{said['product']} {said['version']}"


async def _fill_from_python(exchange: str, count: int, size_bytes: int) -> None:
    """Without a C compiler: slower, but what is measured comes afterwards."""
    connection = await aio_pika.connect(BROKER)
    channel = await connection.channel()
    target = await channel.get_exchange(exchange)
    room = asyncio.Semaphore(500)

    async def send(number: int) -> None:
        async with room:
            message = aio_pika.Message(
                body(number, size_bytes),
                content_type="application/json",
                delivery_mode=2,
                message_id=f"{number:012d}",
                type=EVENT_TYPE,
            )
            await target.publish(message, "")

    for start in range(0, count, 5000):
        await asyncio.gather(*map(send, range(start, min(count, start + 5000))))
    await connection.close()


if __name__ == "__main__":
    asyncio.run(_fill_from_python(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
