"""The embedded broker as a process of its own, with one user who may declare nothing."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from yarl import URL

from rabbitflow.devbroker import DevBroker, User
from tests.harness.node import Broker

ROOT = Path(__file__).parents[2]
STOP_WITHIN_S = 10.0
POWERLESS = "powerless"


@contextmanager
def embedded_broker() -> Iterator[Broker]:
    """Run one for as long as the context lasts."""
    command = [sys.executable, "-m", "tests.harness.embedded"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            url = process.stdout.readline().strip()
            assert url, "the embedded broker did not start"
            powerless = URL(url).with_user(POWERLESS).with_password(POWERLESS)
            yield Broker(url, None, str(powerless))
        finally:
            process.terminate()
            process.wait(STOP_WITHIN_S)


async def _serve() -> None:
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    users = {"guest": User("guest"), POWERLESS: User(POWERLESS, configure="")}
    async with DevBroker(users=users) as broker:
        sys.stdout.write(f"{broker.url}\n")
        sys.stdout.flush()
        await stopped.wait()


if __name__ == "__main__":
    asyncio.run(_serve())
