"""The process that starts children as copies of itself: ``python -m rabbitflow.worker.forkserver``.

It has imported what every child needs, runs no user code and no event loop, and has one thread, so
that a copy of it is whole. On its socket it gets the name of a consumer and the child's end of a
socket to the supervisor. It answers with the child's id and a file descriptor that stands for it,
and says later how the child ended. When the socket closes, as with a supervisor that is killed, it
ends.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import json
import os
import select
import signal
import socket
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import setproctitle

from rabbitflow import fastpath
from rabbitflow.worker import child
from rabbitflow.worker.starting import child_command

NAME_BYTES = 1024
IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""The supervisor's to hear: this process ends with it."""

Dispositions = Mapping[signal.Signals, Any]


class Server:
    """Forks this process as it is asked to, until the line to the supervisor closes.

    Args:
        line: to the supervisor.
        dispositions: what a child does on the signals that this process ignores.
    """

    def __init__(self, line: socket.socket, dispositions: Dispositions) -> None:
        self._line = line
        self._dispositions = dispositions
        # What the kernel and `top` call it; a new title would change it as well.
        self._short_name = Path("/proc/self/comm").read_text(encoding="utf-8").strip()
        self._poll = select.poll()
        self._poll.register(line, select.POLLIN)
        self._pids: dict[int, int] = {}

    def say(self, message: dict[str, Any], *descriptors: int) -> None:
        """Tell the supervisor. Raises ConnectionError when it is gone."""
        socket.send_fds(self._line, [json.dumps(message).encode()], descriptors)

    def run(self) -> None:
        """Serve until the line closes. Raises ConnectionError when that is in the middle of it."""
        while True:
            for ready, _ in self._poll.poll():
                if ready in self._pids:
                    self._tell_end(ready)
                    continue
                name, lines, _, _ = socket.recv_fds(self._line, NAME_BYTES, 1)
                if not name:
                    return
                if not lines:
                    self.say({"errno": errno.EMFILE})
                    continue
                with socket.socket(fileno=lines[0]) as childs_line:
                    self._start(name.decode(), childs_line)

    def _start(self, consumer: str, childs_line: socket.socket) -> None:
        try:
            pid, pidfd = self._fork(consumer, childs_line)
        except OSError as error:
            self.say({"errno": error.errno})
            return
        self._pids[pidfd] = pid
        self._poll.register(pidfd, select.POLLIN)
        self.say({"pid": pid}, pidfd)

    def _tell_end(self, pidfd: int) -> None:
        pid = self._pids.pop(pidfd)
        self._poll.unregister(pidfd)
        os.close(pidfd)
        _, status = os.waitpid(pid, 0)
        self.say({"pid": pid, "status": os.waitstatus_to_exitcode(status)})

    def _fork(self, consumer: str, childs_line: socket.socket) -> tuple[int, int]:
        """Return the id of a new child, and a descriptor that stands for it."""
        # A signal to a child that is not yet itself waits until it is.
        signal.pthread_sigmask(signal.SIG_BLOCK, IGNORED)
        try:
            pid = os.fork()
            if not pid:
                self._become_child(consumer, childs_line)
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, IGNORED)
        try:
            return pid, os.pidfd_open(pid)
        except OSError:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise

    def _become_child(self, consumer: str, childs_line: socket.socket) -> NoReturn:
        """Be what ``child_command`` starts."""
        try:
            self._line.close()
            for pidfd in self._pids:
                os.close(pidfd)
            os.setpgid(0, 0)
            for number, disposition in self._dispositions.items():
                signal.signal(number, disposition)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, IGNORED)
            sys.orig_argv[:] = child_command(consumer, childs_line.fileno())
            sys.argv[:] = [child.__file__, *sys.orig_argv[3:]]
            sys.modules["__main__"] = child
            setproctitle.setproctitle(" ".join(sys.orig_argv))
            setproctitle.setthreadtitle(self._short_name)
            child.run(childs_line)
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
        finally:
            # Nothing of the process that forks may run here.
            os._exit(1)


def main() -> None:
    """Say whether this process can fork, and do it."""
    line = socket.socket(fileno=int(sys.argv[1]))
    # Where it is ignored nobody can learn how a child ended.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    dispositions = {number: signal.signal(number, signal.SIG_IGN) for number in IGNORED}
    server = Server(line, dispositions)
    _have_read_what_children_read()
    with contextlib.suppress(ConnectionError):
        if (hindrance := _hindrance()) is not None:
            server.say({"refused": hindrance})
            return
        # What is here stays: a collection in a child would write to, and so copy, all of it.
        gc.collect()
        gc.freeze()
        server.say({"ready": True})
        server.run()


def _have_read_what_children_read() -> None:
    """Import and read what is otherwise read with the first connection of each child."""
    child.new_event_loop_runner()  # imports what it returns
    "localhost".encode("idna")  # as a name is before it is looked up
    fastpath.installed()


def _hindrance() -> str | None:
    """Say why a copy of this process would not be whole, or None."""
    try:
        pidfd = os.pidfd_open(os.getpid())
        signal.pidfd_send_signal(pidfd, 0)
        os.close(pidfd)
        threads = len(list(Path("/proc/self/task").iterdir()))
    except OSError as error:
        return f"the system refuses what it takes: {error}"
    if threads > 1:
        return f"something starts threads in every Python process here, {threads - 1} in this one"
    return None


if __name__ == "__main__":
    main()
