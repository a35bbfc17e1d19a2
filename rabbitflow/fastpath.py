"""Shortcuts below aio-pika: the only module that knows how aiormq reads and writes.

aiormq awaits three times for every frame, copies it through two queues into a task per delivery,
and takes a lock, a future and two tasks for every publish; nine tenths of what an event costs is
spent there. A connection of this module hands aiormq a stream that it reads as ever
(``transport_factory``, an argument of ``aiormq.Connection``), and takes out of it, as bytes arrive,
the frames of channels that were claimed: deliveries of a subscription's channel, confirms and
returns of a publisher's. Handshake, heartbeats, opening and closing, declarations, errors: aiormq
does all of it, and never learns of the rest.

What holds it up, each with a test:

- aiormq writes whole frames to its StreamWriter, so whole frames of ours may be written between.
- It gives up a connection on which it saw no frame for three heartbeats. A busy broker sends no
  heartbeats, so claimed frames are reported to it as one heartbeat a second.
- A frame that can't be read is handed on, and so is all that follows: to judge it is aiormq's.

It is used with the releases it was proven with (``PROVEN``), and where ``RABBITFLOW_FAST`` is not
0. Otherwise connections are plain ones, :func:`deliveries` and :func:`confirms` return None, and
their callers go through aio-pika's public interface.
"""

from __future__ import annotations

import asyncio
import logging
import os
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final

import aio_pika
from aio_pika.abc import AbstractConnection
from aiormq.abc import AbstractChannel
from aiormq.connection import TransportFactory
from yarl import URL

from rabbitflow.claims import Confirms, Deliveries, Receive
from rabbitflow.stream import Stream

PROVEN: Final = {"aio-pika": "10.2", "aiormq": "7.2", "pamqp": "4.0"}
"""The releases whose insides this module was tested against: major and minor version."""

logger = logging.getLogger(__name__)


@cache
def is_on() -> bool:
    """Whether connections take the shortcuts. Decided once a process."""
    if os.environ.get("RABBITFLOW_FAST", "1").strip().lower() in ("0", "false", "no", "off"):
        return False
    for package, found in installed().items():
        proven = PROVEN[package]
        if found.split(".")[:2] != proven.split("."):
            logger.warning(
                "%s %s is not the %s.x that the fast path was proven with;"
                " taking the slower public one",
                package,
                found,
                proven,
            )
            return False
    return True


@cache
def installed() -> dict[str, str]:
    """The versions of those packages that are installed. Read from disk once a process, which
    takes 3 ms."""
    found: dict[str, str] = {}
    for package in PROVEN:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "unknown"
    return found


class _Transports(TransportFactory):
    """Opens what aiormq would, with our stream in it."""

    def __init__(self) -> None:
        self.stream: Stream | None = None
        self.writer: asyncio.StreamWriter | None = None

    async def create(
        self, url: URL, *, ssl_context_provider: Any = None, **kwargs: Any
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        loop = asyncio.get_running_loop()
        tls = await ssl_context_provider.get_context() if url.scheme == "amqps" else None
        stream = Stream(loop)
        transport, protocol = await loop.create_connection(
            lambda: asyncio.StreamReaderProtocol(stream, loop=loop),
            url.host or "localhost",
            url.port or (5671 if tls else 5672),
            ssl=tls,
            **kwargs,
        )
        self.stream = stream
        self.writer = asyncio.StreamWriter(transport, protocol, stream, loop)
        return stream, self.writer


class _FastConnection(aio_pika.Connection):
    """A connection whose channels can be claimed."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.transports = _Transports()
        self.kwargs["transport_factory"] = self.transports


def connection_class() -> type[aio_pika.Connection]:
    """Return the class of connections that are to be made."""
    return _FastConnection if is_on() else aio_pika.Connection


def deliveries(
    connection: AbstractConnection, channel: AbstractChannel, receive: Receive
) -> Deliveries | None:
    """Claim the deliveries of a channel; None on a connection without shortcuts."""
    ends = _ends_of(connection)
    return None if ends is None else Deliveries(*ends, channel, receive)


def confirms(connection: AbstractConnection, channel: AbstractChannel) -> Confirms | None:
    """Claim publishing on a channel in confirm mode; None on a connection without shortcuts."""
    ends = _ends_of(connection)
    if ends is None:
        return None
    return Confirms(*ends, channel, asyncio.get_running_loop())


def _ends_of(connection: AbstractConnection) -> tuple[Stream, asyncio.StreamWriter] | None:
    if not isinstance(connection, _FastConnection):
        return None
    stream, writer = connection.transports.stream, connection.transports.writer
    return None if stream is None or writer is None else (stream, writer)
