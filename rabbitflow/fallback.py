"""A broker to develop with: the one of the settings where it answers, else an embedded one."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from pydantic import SecretStr

from rabbitflow.broker import Connection, close, connect
from rabbitflow.devbroker import DevBroker
from rabbitflow.errors import BrokerUnavailable
from rabbitflow.settings import Settings


@dataclass(frozen=True, slots=True)
class FoundBroker:
    """The broker that is used.

    Fields:
        settings: that lead to it.
        description: which one it is, for whoever wonders; without its password.
        embedded: it, where it runs in this process.
    """

    settings: Settings
    description: str
    embedded: DevBroker | None


@asynccontextmanager
async def broker_or_embedded(
    settings: Settings, name: str, *, port: int = 0
) -> AsyncIterator[FoundBroker]:
    """Find the broker of ``settings``, or run an embedded one for as long as the context lasts.

    Only where nothing answers: a broker that refuses the user or the virtual host is meant, and
    what it says is raised.

    Args:
        settings: where to look first.
        name: of the connection, as the broker's tools show it.
        port: on which the embedded one listens, if it is free; 0 for any.

    Raises:
        AccessRefused: a broker answers, and refuses.
    """
    try:
        connection = await connect(settings, name)
    except BrokerUnavailable:
        async with DevBroker(port=port if _is_free(port) else 0) as broker:
            found = settings.model_copy(update={"url": SecretStr(broker.url)})
            yield FoundBroker(
                found,
                f"nothing answers at {settings.shown_url}, so an embedded broker at"
                f" {found.shown_url} is used; it keeps nothing on disk",
                broker,
            )
        return
    try:
        description = f"{_product(connection)} at {settings.shown_url}"
    finally:
        await close(connection)
    yield FoundBroker(settings, description, None)


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _product(connection: Connection) -> str:
    properties = connection.transport.connection.server_properties  # type: ignore[union-attr]
    product, version = str(properties["product"]), str(properties["version"])
    return f"{product} {version}"
