"""What a service tells systemd: the datagrams of sd_notify(3), without libsystemd."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import MutableMapping

VARIABLES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")

logger = logging.getLogger(__name__)


class Notifier:
    """Sends state to whoever supervises this process. Every message returns whether it was taken:
    one that was not is the caller's to send again.

    Args:
        address: of the datagram socket: a path, or ``@name`` in the abstract namespace; None where
            nobody listens, and then nothing is sent.
        watchdog_s: within how many seconds a sign of life is expected; None for never.
    """

    def __init__(self, address: str | None, watchdog_s: float | None = None) -> None:
        self.watchdog_s = watchdog_s if address else None
        self._socket: socket.socket | None = None
        if address is None:
            return
        # The leading byte of an abstract address is NUL, and the environment holds no NUL.
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        # systemd may be slow to read; the event loop is not held up for that.
        self._socket.setblocking(False)

    @classmethod
    def from_environment(cls, environment: MutableMapping[str, str] | None = None) -> Notifier:
        """Return what the environment asks for, and take it out of there: children and their
        handlers would speak in our name.

        A watchdog that is meant for another process (``WATCHDOG_PID``) is not ours to answer.
        """
        environment = os.environ if environment is None else environment
        given = {name: environment.pop(name, None) for name in VARIABLES}
        address, usec, pid = (given[name] for name in VARIABLES)
        if address is not None and not address.startswith(("/", "@")):
            logger.warning("NOTIFY_SOCKET=%s is no socket of this machine's; ignored", address)
            address = None
        is_ours = pid is None or pid == str(os.getpid())
        is_asked = usec is not None and usec.isdecimal() and int(usec) > 0
        return cls(address, int(usec or 0) / 1e6 if is_ours and is_asked else None)

    @property
    def is_heard(self) -> bool:
        """Whether anybody listens."""
        return self._socket is not None

    def ready(self, status: str) -> bool:
        """Say that start-up or a reload is over."""
        return self._send("READY=1", _status(status))

    def status(self, status: str) -> bool:
        """Say in one line how things are; ``systemctl status`` shows it."""
        return self._send(_status(status))

    def reloading(self, status: str) -> bool:
        """Say that a reload began; ready() ends it."""
        now_usec = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        return self._send("RELOADING=1", f"MONOTONIC_USEC={now_usec}", _status(status))

    def stopping(self, status: str) -> bool:
        """Say that the end began."""
        return self._send("STOPPING=1", _status(status))

    def alive(self) -> bool:
        """Answer the watchdog."""
        return self._send("WATCHDOG=1")

    def extend(self, within_s: float) -> bool:
        """Ask that the time-out of starting, reloading or stopping is not enforced while such a
        message comes at least every ``within_s`` seconds."""
        return self._send(f"EXTEND_TIMEOUT_USEC={round(within_s * 1e6)}")

    def close(self) -> None:
        """Say nothing more."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _send(self, *assignments: str) -> bool:
        if self._socket is None:
            return False
        try:
            self._socket.sendto("\n".join(assignments).encode(), self._address)
        except OSError as error:
            # Its queue is full, or it went away: no reason to stop handling events.
            logger.debug("systemd was not told %s: %s", assignments[0], error)
            return False
        return True


def _status(status: str) -> str:
    return f"STATUS={' '.join(status.split())}"
