"""Workers as users start them: the real command, on modules that a test writes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from rabbitflow.settings import Settings
from tests.harness.ledger import Ledger
from tests.harness.waiting import eventually

PREAMBLE = """\
import asyncio, ctypes, os, signal, sys, time
from pathlib import Path
from rabbitflow import AlreadyHandled, Breaker, Consumer, Context, DeadLetter, Event
from rabbitflow import Retry, RetryLater
from tests.harness.ledger import Ledger
ledger = Ledger()
"""

# Python starts three times for a worker, which takes long on a machine busy with other tests.
READY_WITHIN_S = 60.0


class Worker:
    """One ``rabbitflow worker`` process and the package it runs.

    Args:
        settings: broker, namespace and state directory.
        directory: where the package ``services`` is written, and the output kept.
        prefix: a command that runs the command, such as ``unshare -m``.
    """

    def __init__(
        self, settings: Settings, directory: Path, *, prefix: tuple[str, ...] = ()
    ) -> None:
        self.settings = settings
        self.directory = directory
        self.output = directory / "worker.log"
        self.ledger = Ledger(directory / "ledger.db")
        self._package = directory / "services"
        self._package.mkdir(exist_ok=True)
        (self._package / "__init__.py").touch()
        self._prefix = prefix
        self._process: subprocess.Popen[bytes] | None = None

    def module(self, name: str, source: str) -> Self:
        """Write a module of the package; it can use everything in PREAMBLE."""
        (self._package / f"{name}.py").write_text(PREAMBLE + textwrap.dedent(source))
        return self

    def environment(self, **further: str) -> dict[str, str]:
        """What the command is given: everything by environment, nothing secret by argv."""
        root = Path(__file__).parents[2]
        return {
            **os.environ,
            "PYTHONPATH": str(root),
            "PYTHONUNBUFFERED": "1",
            "TEST_LEDGER": str(self.directory / "ledger.db"),
            "RABBITFLOW_URL": self.settings.broker_url,
            "RABBITFLOW_NAMESPACE": self.settings.namespace or "",
            "RABBITFLOW_STATE_DIR": str(self.settings.state_dir),
            "RABBITFLOW_METRICS_PORT": "0",
            **further,
        }

    def start(self, *options: str, modules: tuple[str, ...] = ("services",), **env: str) -> Self:
        """Start the command."""
        with self.output.open("ab") as log:
            self._process = subprocess.Popen(
                [*self._prefix, sys.executable, "-m", "rabbitflow", "worker", *modules, *options],
                cwd=self.directory,
                env=self.environment(**env),
                stdout=log,
                stderr=log,
            )
        return self

    async def ready(self, *consumers: str, times: int = 1) -> None:
        """Wait until the log says that each consumer consumes, ``times`` times over."""
        for consumer in consumers:
            line = f"{consumer} consumes from queue"
            await eventually(
                lambda line=line: self.said(line) >= times,
                within_s=READY_WITHIN_S,
                what=lambda line=line: f"{line}\n{self.log()}",
            )

    @property
    def pid(self) -> int:
        """Of the supervisor."""
        assert self._process is not None
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """Whether the supervisor is there."""
        assert self._process is not None
        return self._process.poll() is None

    def child(self, consumer: str) -> psutil.Process:
        """The process that runs a consumer."""
        for process in self.children():
            with suppress(psutil.NoSuchProcess):  # it ends, and is not that of now
                if consumer in process.cmdline():
                    return process
        raise AssertionError(f"no child runs {consumer}: {self.log()}")

    def children(self) -> list[psutil.Process]:
        """All its processes."""
        found = []
        for pid in _descendants(self.pid):
            with suppress(psutil.NoSuchProcess):
                found.append(psutil.Process(pid))
        return found

    def log(self) -> str:
        """Everything it printed."""
        return self.output.read_text(errors="replace")

    def said(self, text: str) -> int:
        """How often it printed a text."""
        return self.log().count(text)

    def signal(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Send a signal to the supervisor."""
        assert self._process is not None
        self._process.send_signal(number)

    def exit_code(self, within_s: float = 45.0) -> int:
        """Wait for its end."""
        assert self._process is not None
        return self._process.wait(within_s)

    def stop(self) -> None:
        """Stop it in order, where it runs."""
        if self._process is not None and self._process.poll() is None:
            self.signal()
            self.exit_code()

    def run_to_end(self, *options: str, modules: tuple[str, ...] = ("services",)) -> int:
        """Start it and wait for its end: for what is refused at start."""
        return self.start(*options, modules=modules).exit_code()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._process is None or self._process.poll() is not None:
            return
        leftover = self.children()
        self._process.kill()
        self._process.wait(10)
        for process in leftover:
            if process.is_running():
                process.kill()
        psutil.wait_procs(leftover, timeout=10)


def _descendants(pid: int) -> Iterator[int]:
    # psutil looks at every process of the machine for it, for milliseconds in which a test that
    # also announces does not, and takes them for latency.
    with suppress(FileNotFoundError, ProcessLookupError):
        for path in Path(f"/proc/{pid}/task").glob("*/children"):
            for child in map(int, path.read_text().split()):
                yield child
                yield from _descendants(child)
