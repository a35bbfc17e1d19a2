"""Somebody who shows a certificate, and is no broker."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path


@asynccontextmanager
async def tls_peer(certificate: Path, key: Path) -> AsyncIterator[int]:
    """Shake hands with whoever comes; yield the port."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)

    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    server = await asyncio.start_server(greet, "localhost", 0, ssl=context)
    async with server:
        yield int(server.sockets[0].getsockname()[1])
