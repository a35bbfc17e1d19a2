"""systemd's side of a Type=notify service: its socket, its watchdog, its stop time-out."""

from __future__ import annotations

import signal
import socket
import struct
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.harness.waiting import eventually
from tests.harness.workers import Worker

_CREDENTIALS = struct.Struct("iII")


@dataclass(frozen=True)
class Message:
    """One datagram, when it came, and which process sent it."""

    at: float
    pid: int
    fields: dict[str, str]


class Manager:
    """Starts a worker as systemd would, and holds it to what it says.

    Args:
        worker: not started yet.
        address: of the socket; ``@name`` for the abstract namespace.
        watchdog_s: ``WatchdogSec=``; None for none.
        stop_timeout_s: ``TimeoutStopSec=``.
    """

    def __init__(
        self,
        worker: Worker,
        address: str | None = None,
        *,
        watchdog_s: float | None = None,
        stop_timeout_s: float = 10.0,
    ) -> None:
        self.worker = worker
        self.messages: list[Message] = []
        self._address = address or str(worker.directory / "notify")
        self._watchdog_s = watchdog_s
        self._stop_timeout_s = stop_timeout_s
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        Path(self._address).unlink(missing_ok=True)
        self._socket.bind(self._address.replace("@", "\0", 1))
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def start(self, *options: str, **environment: str) -> Self:
        """Start the worker."""
        if self._watchdog_s is not None:
            environment["WATCHDOG_USEC"] = str(round(self._watchdog_s * 1e6))
        self.worker.start(*options, NOTIFY_SOCKET=self._address, **environment)
        return self

    def said(self, field: str) -> list[Message]:
        """What the main process said of a field, oldest first. ``NotifyAccess=main``: what other
        processes say does not count."""
        pid = self.worker.pid
        return [found for found in self.messages if found.pid == pid and field in found.fields]

    def status(self) -> str:
        """The line that ``systemctl status`` would show."""
        said = self.said("STATUS")
        return said[-1].fields["STATUS"] if said else ""

    async def ready(self, times: int = 1) -> None:
        """Wait until the service is up, as ``systemctl start`` does."""
        await eventually(
            lambda: len(self.said("READY")) >= times,
            within_s=20,
            what=f"READY=1 {times} times; {self.status()}\n{self.worker.log()}",
        )

    async def stop(self) -> int:
        """Stop it as ``systemctl stop`` does with ``KillMode=mixed``; return its exit code, -9
        where it took longer than the stop time-out and did not ask for more."""
        asked_at = time.monotonic()
        self.worker.signal(signal.SIGTERM)

        def is_over() -> bool:
            if not self.worker.is_running:
                return True
            extended = [
                message.at + int(message.fields["EXTEND_TIMEOUT_USEC"]) / 1e6
                for message in self.said("EXTEND_TIMEOUT_USEC")
            ]
            deadline = max([asked_at + self._stop_timeout_s, *extended[-1:]])
            if time.monotonic() > deadline:
                self.worker.signal(signal.SIGKILL)
            return False

        await eventually(is_over, within_s=60, what="the end of the service")
        return self.worker.exit_code()

    async def abort_when_silent(self) -> float:
        """Wait for the watchdog to run out, kill the main process as systemd does, and return how
        many seconds after the last sign of life that was."""
        watchdog_s = self._watchdog_s
        assert watchdog_s is not None

        def silent_s() -> float:
            return time.monotonic() - self.said("WATCHDOG")[-1].at

        await eventually(lambda: silent_s() > watchdog_s, within_s=5 * watchdog_s + 10)
        silence_s = silent_s()
        self.worker.signal(signal.SIGABRT)
        # Or a stopped process would never hear it.
        self.worker.signal(signal.SIGCONT)
        return silence_s

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join(5)
        self._socket.close()

    def _listen(self) -> None:
        space = socket.CMSG_SPACE(_CREDENTIALS.size)
        while True:
            data, ancillary, _, _ = self._socket.recvmsg(65536, space)
            if not data:
                return
            pid = next(
                _CREDENTIALS.unpack(sent)[0]
                for level, kind, sent in ancillary
                if (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS)
            )
            fields = dict(line.split("=", 1) for line in data.decode().splitlines())
            self.messages.append(Message(time.monotonic(), pid, fields))
