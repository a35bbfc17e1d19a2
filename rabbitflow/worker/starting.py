"""Starting the process of a child: a fork of one that has imported what every child needs, or its
own interpreter."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Protocol

from rabbitflow.worker.forking import CannotFork, ForkServer, ForkServerLost

MOST_FAILED_STARTS = 3

logger = logging.getLogger(__name__)


class Process(Protocol):
    """What a supervisor needs of a child's process."""

    @property
    def pid(self) -> int:
        """Its id."""

    @property
    def returncode(self) -> int | None:
        """Its exit status, negative for a signal; None while it runs."""

    async def wait(self) -> int:
        """Return the exit status once it has ended."""

    def send_signal(self, signal: int, /) -> None:
        """Send it a signal. Raises ProcessLookupError when it has ended."""

    def kill(self) -> None:
        """Send it SIGKILL. Raises ProcessLookupError when it has ended."""


def child_command(consumer: str, line: int) -> list[str]:
    """Return the command of a child; ``line`` is its end of the socket to the supervisor."""
    return [sys.executable, "-m", "rabbitflow.worker.child", consumer, str(line)]


class Starter:
    """Starts the children of a worker.

    A fork has imported what every child needs, and shares the memory of it. So a consumer that dies
    again and again takes less of the processor from its neighbours. Where that can't be had, every
    child is an interpreter of its own.
    """

    def __init__(self) -> None:
        self._server: ForkServer | None = None
        self._preparing = asyncio.Lock()
        self._failed_starts = 0
        # Of Linux, and of a Python that was built for one that is recent enough.
        self._can_fork = all(
            hasattr(module, name)
            for module, name in (
                (os, "pidfd_open"),
                (os, "P_PIDFD"),
                (signal, "pidfd_send_signal"),
            )
        )

    async def prepare(self) -> None:
        """See to it that children are forked from now on, if they can be. It may be cancelled.

        Raises:
            OSError: the system gives no process.
        """
        async with self._preparing:
            if not self._can_fork or self._serving is not None:
                return
            try:
                self._server = await ForkServer.start()
                self._failed_starts = 0
            except CannotFork as error:
                self._can_fork = False
                logger.info("every child gets an interpreter of its own: %s", error)
            except ForkServerLost as error:
                self._failed_starts += 1
                self._can_fork = self._failed_starts < MOST_FAILED_STARTS
                logger.warning("the process that forks children can't be started: %s", error)

    async def start(self, consumer: str) -> tuple[Process, socket.socket]:
        """Start the child that runs ``consumer``; return it and this end of the socket to it.

        Raises:
            OSError: the system gives no process.
        """
        if (server := self._serving) is not None:
            try:
                return await _with_line(partial(server.fork, consumer))
            except ForkServerLost:
                logger.info("%s gets an interpreter of its own this time", consumer)
        return await _with_line(partial(_spawn, consumer))

    async def close(self) -> None:
        """End the process that forks. The children are left alone."""
        if self._server is not None:
            await self._server.close()

    @property
    def _serving(self) -> ForkServer | None:
        return None if self._server is None or self._server.is_lost else self._server


async def _with_line(
    start: Callable[[socket.socket], Awaitable[Process]],
) -> tuple[Process, socket.socket]:
    # A new one for each try: a child of a try that failed finds that its line is closed, and ends.
    own_end, childs_end = socket.socketpair()
    with childs_end:
        try:
            return await start(childs_end), own_end
        except BaseException:
            own_end.close()
            raise


async def _spawn(consumer: str, line: socket.socket) -> Process:
    return await asyncio.create_subprocess_exec(
        *child_command(consumer, line.fileno()),
        stdin=asyncio.subprocess.DEVNULL,
        pass_fds=(line.fileno(),),
        # A process group of its own: Ctrl-C in a terminal is the supervisor's to hear.
        process_group=0,
    )
