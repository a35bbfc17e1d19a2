"""The embedded broker as a process of its own."""

from __future__ import annotations

import asyncio
import errno
import signal
from collections.abc import Callable

from rabbitflow.devbroker.server import DevBroker
from rabbitflow.errors import ConfigurationError


async def serve(host: str, port: int, on_ready: Callable[[DevBroker], None]) -> None:
    """Run a broker until SIGINT or SIGTERM.

    Args:
        host: address to listen on.
        port: 0 for any that is free.
        on_ready: called once it listens.

    Raises:
        ConfigurationError: it can't listen there.
    """
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopped.set)
    broker = DevBroker(host, port)
    try:
        await broker.start()
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            why = f"port {port} of {host} is taken; choose another with --port"
        else:
            why = f"can't listen on {host} port {port}: {error.strerror or error}"
        raise ConfigurationError(why) from error
    try:
        on_ready(broker)
        await stopped.wait()
    finally:
        await broker.stop()
