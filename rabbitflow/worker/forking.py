"""The process that forks, as its supervisor sees it: asked for children, told how they ended."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import logging
import os
import signal
import socket
import sys
from collections import deque
from collections.abc import Callable
from typing import Any, Self

MESSAGE_BYTES = 4096
START_WITHIN_S = 60.0
ANSWER_WITHIN_S = 10.0
END_UNSEEN = 256
"""The status of a child whose end nobody saw, because the process that forked it had ended before:
no exit code, and no signal."""

logger = logging.getLogger(__name__)


class CannotFork(Exception):
    """Children can't be forked here, now or later."""


class ForkServerLost(Exception):
    """The process that forks ended, or does not answer."""


class Fork:
    """A child that was forked. It is known by a file descriptor (pidfd_open(2)), so that a signal
    never hits a later process of the same id.

    Args:
        pid: its id.
        pidfd: the descriptor, which is closed with its end.
        on_seen: called when it has ended, which does not say how.
    """

    def __init__(self, pid: int, pidfd: int, on_seen: Callable[[Fork], object]) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self.is_seen_ended = False
        self._pidfd = pidfd
        self._on_seen = on_seen
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(pidfd, self._see)
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
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._ended.set_result(status)

    def end_unseen(self) -> None:
        """Note that it ended and nobody tells how."""
        status = END_UNSEEN
        # It is ours to ask about where orphans come to us, as they do to the first process of a
        # container.
        with contextlib.suppress(OSError):
            seen = os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED | os.WNOHANG)
            if seen is not None:
                has_exited = seen.si_code == os.CLD_EXITED
                status = seen.si_status if has_exited else -seen.si_status
        self.end(status)

    def _see(self) -> None:
        self._loop.remove_reader(self._pidfd)
        self.is_seen_ended = True
        self._on_seen(self)


class ForkServer:
    """The process of :mod:`rabbitflow.worker.forkserver`, which lives until this is closed."""

    def __init__(self, process: asyncio.subprocess.Process, line: socket.socket) -> None:
        self.is_lost = False
        self._is_missed = False
        self._process = process
        self._line = line
        self._loop = asyncio.get_running_loop()
        self._ready: asyncio.Future[None] = self._loop.create_future()
        self._asking = asyncio.Lock()
        self._asked: deque[asyncio.Future[Fork]] = deque()
        self._forks: dict[int, Fork] = {}
        self._loop.add_reader(line, self._hear)

    @classmethod
    async def start(cls) -> Self:
        """Start it, and return when it can fork.

        Raises:
            CannotFork: it says that it never will.
            ForkServerLost: it ended, or did not get that far in time.
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
            raise ForkServerLost(f"it was not ready within {START_WITHIN_S:g} s") from None
        except BaseException:
            await server.close()
            raise
        return server

    async def fork(self, consumer: str, line: socket.socket) -> Fork:
        """Return a new child that runs ``consumer`` and is told what to do on ``line``.

        Raises:
            ForkServerLost: nobody forks any more; close ``line``, which a child may have got.
            OSError: the system gives no process, or no descriptor for it.
        """
        # One after the other: the deadline is for a fork, not for a hundred at a start.
        async with self._asking:
            if self.is_lost:
                raise ForkServerLost("it has ended")
            asked: asyncio.Future[Fork] = self._loop.create_future()
            try:
                socket.send_fds(self._line, [consumer.encode()], [line.fileno()])
            except ConnectionError as error:
                self._lose("it has ended")
                raise ForkServerLost("it has ended") from error
            except BlockingIOError as error:
                self._end_it("it takes no more requests")
                raise ForkServerLost("it takes no more requests") from error
            self._asked.append(asked)
            try:
                await asyncio.wait({asked}, timeout=ANSWER_WITHIN_S)
                if not asked.done():
                    self._end_it(f"it did not answer within {ANSWER_WITHIN_S:g} s")
                return asked.result()
            finally:
                asked.cancel()

    async def close(self) -> None:
        """End it. Its children live on."""
        self._is_missed = False
        self._end_it("it was closed")
        await self._process.wait()

    def _hear(self) -> None:
        try:
            text, pidfds, _, _ = socket.recv_fds(self._line, MESSAGE_BYTES, 1)
        except BlockingIOError:
            return
        except ConnectionError:
            text = b""
        if not text:
            self._lose("it has ended")
            return
        message: dict[str, Any] = json.loads(text)
        if "status" in message:
            fork = self._forks.pop(message["pid"], None)
            if fork is not None:
                fork.end(message["status"])
        elif "pid" in message:
            self._take(message["pid"], pidfds)
        elif "errno" in message:
            self._refuse(message["errno"])
        elif not self._ready.done():
            if "refused" in message:
                self._ready.set_exception(CannotFork(message["refused"]))
            else:
                self._is_missed = True
                self._ready.set_result(None)

    def _take(self, pid: int, pidfds: list[int]) -> None:
        """Hand a new child to who asked for it."""
        if not pidfds:
            # Its line is closed now, so it ends by itself.
            self._refuse(errno.EMFILE)
            return
        os.set_inheritable(pidfds[0], False)
        fork = self._forks[pid] = Fork(pid, pidfds[0], self._see_end)
        asked = self._asked.popleft()
        if asked.done():
            # Who asked has gone.
            with contextlib.suppress(ProcessLookupError):
                fork.kill()
        else:
            asked.set_result(fork)

    def _refuse(self, code: int) -> None:
        asked = self._asked.popleft()
        if not asked.done():
            asked.set_exception(OSError(code, os.strerror(code)))

    def _see_end(self, fork: Fork) -> None:
        if self.is_lost:
            fork.end_unseen()
        else:
            self._loop.call_later(ANSWER_WITHIN_S, self._expect_told, fork)

    def _expect_told(self, fork: Fork) -> None:
        if fork.returncode is None:
            self._end_it("it does not tell how a child ended")

    def _end_it(self, why: str) -> None:
        """End it without asking: it has nothing to finish. A child that it has forked and not told
        of finds its own line closed, and ends."""
        if not self.is_lost:
            self._lose(why)
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()

    def _lose(self, why: str) -> None:
        if self.is_lost:
            return
        self.is_lost = True
        if self._is_missed:
            logger.warning("the process that forks children is lost; they run on: %s", why)
        self._loop.remove_reader(self._line)
        self._line.close()
        waited_for: list[asyncio.Future[Any]] = [self._ready, *self._asked]
        for waiting in waited_for:
            if not waiting.done():
                waiting.set_exception(ForkServerLost(why))
        for fork in self._forks.values():
            if fork.is_seen_ended and fork.returncode is None:
                fork.end_unseen()
