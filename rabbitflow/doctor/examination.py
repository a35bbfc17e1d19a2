"""Gathering the facts: over AMQP, changing nothing, and never publishing an event."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any
from uuid import uuid4

from aiormq.abc import DeliveredMessage
from aiormq.exceptions import (
    ChannelAccessRefused,
    ChannelPreconditionFailed,
    PublishError,
)
from yarl import URL

from rabbitflow.broker import (
    Connection,
    NotFound,
    close,
    connect,
    lost_connections,
    open_channel,
    throwaway_channel,
)
from rabbitflow.doctor.checks import Finding, findings
from rabbitflow.doctor.facts import BrokerFacts, ConsumerFacts, Facts, ManagementFacts, Probe
from rabbitflow.doctor.management import ManagementUnread, management_facts
from rabbitflow.errors import AccessRefused, BrokerError
from rabbitflow.inspection import Difference, difference
from rabbitflow.keyfiles import is_open_to_all
from rabbitflow.keyring import announceable, secret_files
from rabbitflow.settings import Settings
from rabbitflow.status import Lookout
from rabbitflow.topology import CONSUMER_PRIORITY, DELIVERY_LIMIT, Names
from rabbitflow.worker.discovery import Discovery, Found

RABBITMQ = "RabbitMQ"


async def examine(discovery: Discovery, settings: Settings) -> list[Finding]:
    """Look at the broker and the consumers of ``discovery``, and return what is wrong.

    Raises:
        BrokerError: the broker can't be reached, or refuses this user altogether.
        ConfigurationError: the file of trusted keys can't be used.
    """
    connection = await connect(settings, "rabbitflow doctor")
    try:
        broker = await _broker(connection, settings)
        consumers = [
            await _consumer(connection, found, broker, settings) for found in discovery.consumers
        ]
    finally:
        await close(connection)
    management: ManagementFacts | None = None
    unread = ""
    if settings.management_url is not None:
        try:
            management = await management_facts(settings)
        except ManagementUnread as error:
            unread = str(error)
    return findings(
        Facts(
            broker=broker,
            consumers=tuple(consumers),
            broken=tuple(discovery.broken),
            shutdown_timeout_s=settings.shutdown_timeout_s,
            max_body_bytes=settings.max_body_bytes,
            queue_type=settings.queue_type,
            event_log=settings.event_log,
            declares=settings.declare,
            namespace=settings.namespace,
            management=management,
            unread=unread,
            open_files=tuple(filter(is_open_to_all, secret_files(settings))),
            announceable=announceable(settings),
        )
    )


async def _broker(connection: Connection, settings: Settings) -> BrokerFacts:
    url = URL(settings.broker_url)
    said = _server_properties(connection)
    probe, probe_said = await _probe(connection, settings)
    return BrokerFacts(
        product=str(said.get("product", "an unknown broker")),
        version=str(said.get("version", "?")),
        host=url.host or "",
        user=url.user or "guest",
        is_encrypted=url.scheme == "amqps",
        is_verified=url.query.get("no_verify_ssl", "0") in ("0", "false", ""),
        probe=probe,
        probe_said=probe_said,
    )


def _server_properties(connection: Connection) -> Mapping[str, Any]:
    transport = connection.transport
    found: Any = getattr(transport and transport.connection, "server_properties", None)
    return found or {}


async def _probe(connection: Connection, settings: Settings) -> tuple[Probe, str]:
    """Publish a message as large as an event may be to a queue that does not exist.

    It can reach nobody: the default exchange routes to the queue of that name alone.
    """
    body = bytes(settings.max_body_bytes)
    channel = await open_channel(connection, settings, confirms=True)
    try:
        async with asyncio.timeout(settings.publish_timeout_s):
            await channel.basic_publish(
                body, exchange="", routing_key=f"rabbitflow-doctor-{uuid4().hex}", mandatory=True
            )
    except PublishError:
        pass  # returned, as it should be
    except ChannelPreconditionFailed as error:
        return Probe.TOO_LARGE, _reply(error)
    except ChannelAccessRefused as error:
        return Probe.REFUSED, _reply(error)
    except TimeoutError:
        return Probe.UNANSWERED, f"nothing within {settings.publish_timeout_s:g} s"
    with lost_connections():
        await channel.close()
    return Probe.CONFIRMED, ""


async def _consumer(
    connection: Connection, found: Found, broker: BrokerFacts, settings: Settings
) -> ConsumerFacts:
    topology = found.topology(settings)
    names = Names(settings.namespace)
    refusals: list[str] = []
    (status,) = await Lookout(connection, {found.name: found.partitions}, settings).look()
    differs = Difference()
    try:
        differs = await difference(connection, topology, settings)
    except AccessRefused as error:
        if settings.declare:
            refusals.append(f"{found.name} may not declare its queues: {error}")
    if broker.product == RABBITMQ and status.ready is not None:
        queue = names.queue(found.name)
        refusals += await _may_read(connection, queue, settings)
        for binding in topology.bindings:
            if binding.queue == queue:
                refusals += await _may_bind(connection, queue, binding.exchange, settings)
    return ConsumerFacts(
        found, status, differs, tuple(refusals), _delivery_limit(found, differs, settings)
    )


def _delivery_limit(found: Found, differs: Difference, settings: Settings) -> int | None:
    queue = found.topology(settings).queues[0]
    for mismatch in differs.mismatches:
        if mismatch.name == queue.name and mismatch.argument == DELIVERY_LIMIT:
            return mismatch.current_value if isinstance(mismatch.current_value, int) else None
    if queue in differs.missing:
        return None
    wanted = queue.arguments.get(DELIVERY_LIMIT)
    return wanted if isinstance(wanted, int) else None


async def _may_read(connection: Connection, queue: str, settings: Settings) -> list[str]:
    """Ask to consume with an argument that RabbitMQ refuses after it has looked at the permission,
    so that no event is ever handed out."""

    async def never(message: DeliveredMessage) -> None:
        raise AssertionError("nothing is consumed")

    try:
        async with throwaway_channel(connection, settings) as channel:
            async with asyncio.timeout(settings.connect_timeout_s):
                await channel.basic_consume(queue, never, arguments={CONSUMER_PRIORITY: "none"})
    except ChannelAccessRefused as error:
        return [f"this user may not read {queue}: {_reply(error)}"]
    except ChannelPreconditionFailed:
        return []
    return []


async def _may_bind(
    connection: Connection, queue: str, exchange: str, settings: Settings
) -> list[str]:
    """Take away a binding that was never there: it needs the permissions of making one."""
    if not settings.declare:
        return []
    try:
        async with throwaway_channel(connection, settings) as channel:
            async with asyncio.timeout(settings.connect_timeout_s):
                await channel.queue_unbind(queue, exchange, f"rabbitflow-doctor-{uuid4().hex}")
    except ChannelAccessRefused as error:
        return [f"this user may not bind {queue} to {exchange}: {_reply(error)}"]
    except (NotFound, BrokerError):
        return []
    return []


def _reply(error: BaseException) -> str:
    return str(error.args[0]) if error.args else str(error)
