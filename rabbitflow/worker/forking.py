"""The process that forks, as its supervisor sees it: asked for children, told how they ended."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
from collections import deque
from typing import Any, Self

MESSAGE_BYTES = 4096
START_WITHIN_S = 60.0
FORK_WITHIN_S = 10.0
END_UNSEEN = 256
"""The status of a child whose end nobody saw, because the process that forked it had ended before:
no exit code, and no signal."""


class CannotFork(Exception):
    """This worker can't have children forked, now or later."""


class ForkServerLost(Exception):
    """The process that forks ended, or does not answer."""


class Fork:
    """A child that was forked. It is known by a file descriptor (pidfd_open(2)), so that a signal
    never hits a later process of the same id."""

    def __init__(self, pid: int, pidfd: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._pidfd = pidfd
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[int] = self._loop.create_future()

    async def wait(self) -> int:
        """Return the exit status once it has ended, or ``END_UNSEEN``."""
        return await asyncio.shield(self._ended)

    def send_signal(self, number: int) -> None:
        """Send it a signal. Raises ProcessLookupError when it has ended."""
        if self.returncode is not None:
            raise ProcessLookupError
        signal.pidfd_send_signal(self._pidfd, number)

    def kill(self) -> None:
        """Send it SIGKILL. Raises ProcessLookupError when it has ended."""
        self.send_signal(signal.SIGKILL)

    def end(self, status: int) -> None:
        """Note how it ended."""
        self.returncode = status
        os.close(self._pidfd)
        self._ended.set_result(status)

    def watch(self) -> None:
        """Look for its end without the process that forked it."""
        self._loop.add_reader(self._pidfd, self._see_end)

    def _see_end(self) -> None:
        self._loop.remove_reader(self._pidfd)
        status = END_UNSEEN
        # It is ours to ask about where orphans come to us, as they do to the first process of a
        # container.
        with contextlib.suppress(ChildProcessError):
            seen = os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED)
            if seen is not None:
                has_exited = seen.si_code == os.CLD_EXITED
                status = seen.si_status if has_exited else -seen.si_status
        self.end(status)


class ForkServer:
    """The process of :mod:`rabbitflow.worker.forkserver`, which lives until this is closed."""

    def __init__(self, process: asyncio.subprocess.Process, line: socket.socket) -> None:
        self.is_lost = False
        self._process = process
        self._line = line
        self._loop = asyncio.get_running_loop()
        self._ready: asyncio.Future[None] = self._loop.create_future()
        self._asked: deque[asyncio.Future[Fork]] = deque()
        self._forks: dict[int, Fork] = {}
        self._loop.add_reader(line, self._hear)

    @classmethod
    async def start(cls) -> Self:
        """Start it, and return when it can fork.

        Raises:
            CannotFork: it can't, and says why.
            OSError: the system gives no process.
        """
        own_end, servers_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        own_end.setblocking(False)
        with servers_end:
            try:
                process = await asyncio.create_subprocess_exec(
                    sys.executable,
                    "-m",
                    "rabbitflow.worker.forkserver",
                    str(servers_end.fileno()),
                    stdin=asyncio.subprocess.DEVNULL,
                    pass_fds=(servers_end.fileno(),),
                    process_group=0,
                )
            except BaseException:
                own_end.close()
                raise
        server = cls(process, own_end)
        try:
            async with asyncio.timeout(START_WITHIN_S):
                await server._ready
        except TimeoutError:
            await server.close()
            raise CannotFork(f"it was not ready within {START_WITHIN_S:.0f} s") from None
        except BaseException:
            await server.close()
            raise
        return server

    async def fork(self, consumer: str, line: socket.socket) -> Fork:
        """Return a new child that runs ``consumer`` and is told what to do on ``line``.

        Raises:
            ForkServerLost: nobody forks any more; close ``line``, which a child may have got.
            OSError: the system gives no process.
        """
        if self.is_lost:
            raise ForkServerLost("it has ended")
        asked: asyncio.Future[Fork] = self._loop.create_future()
        try:
            socket.send_fds(self._line, [consumer.encode()], [line.fileno()])
            self._asked.append(asked)
            async with asyncio.timeout(FORK_WITHIN_S):
                return await asked
        except (ConnectionError, BlockingIOError, TimeoutError) as error:
            self._lose("it does not answer")
            raise ForkServerLost("it does not answer") from error

    async def close(self) -> None:
        """End it. Its children live on."""
        self._lose("it was ended")
        await self._process.wait()

    def _hear(self) -> None:
        try:
            text, pidfds, _, _ = socket.recv_fds(
                self._line, MESSAGE_BYTES, 1, socket.MSG_CMSG_CLOEXEC
            )
        except BlockingIOError:
            return
        except ConnectionError:
            text = b""
        if not text:
            self._lose("it has ended")
            return
        message: dict[str, Any] = json.loads(text)
        if "status" in message:
            self._forks.pop(message["pid"]).end(message["status"])
        elif "pid" in message and not pidfds:
            self._lose("no file descriptor is left for it")
        elif "pid" in message:
            fork = self._forks[message["pid"]] = Fork(message["pid"], pidfds[0])
            asked = self._asked.popleft()
            if asked.done():
                fork.kill()  # who asked has gone
            else:
                asked.set_result(fork)
        elif "errno" in message:
            asked = self._asked.popleft()
            if not asked.done():
                asked.set_exception(OSError(message["errno"], os.strerror(message["errno"])))
        elif "refused" in message:
            self._ready.set_exception(CannotFork(message["refused"]))
        else:
            self._ready.set_result(None)

    def _lose(self, why: str) -> None:
        """End it: it has nothing to finish. A child that it has forked and not told of finds its
        own line closed, and ends."""
        if self.is_lost:
            return
        self.is_lost = True
        self._loop.remove_reader(self._line)
        self._line.close()
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        if not self._ready.done():
            self._ready.set_exception(CannotFork(why))
        for asked in self._asked:
            if not asked.done():
                asked.set_exception(ForkServerLost(why))
        for fork in self._forks.values():
            fork.watch()
