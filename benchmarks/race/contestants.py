"""Who takes part, and what each can do."""

from __future__ import annotations

import importlib
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Contestant:
    """One peer.

    Fields:
        name: as the page shows it.
        module: of ``benchmarks.race.peers``; empty for the C client.
        package: whose version is shown.
        owns_queues: it declares and fills queues of its own; the others share ours.
        confirms: whether its publish waits for the broker's confirm by default.
        environment: of its processes.
    """

    name: str
    module: str
    package: str
    owns_queues: bool = False
    confirms: bool = True
    environment: tuple[tuple[str, str], ...] = ()

    @property
    def modes(self) -> tuple[str, ...]:
        """How it can publish."""
        if not self.module:
            return ("pipelined",)
        modes: tuple[str, ...] = self._app().MODES
        return modes

    def workers(self, processes: int) -> list[list[str]]:
        """Return the commands that run its consumer."""
        return [[sys.executable, *command] for command in self._app().workers(processes)]

    def _app(self) -> Any:
        return importlib.import_module(f"benchmarks.race.peers.{self.module}_app")

    @property
    def shown_version(self) -> str:
        """Name and version."""
        if not self.package:
            return "librabbitmq in C"
        return f"{self.package} {version(self.package)}"


OURS = Contestant("rabbitflow", "rabbitflow", "rabbitflow")
IN_THREADS = Contestant(
    "rabbitflow, def", "rabbitflow", "rabbitflow", environment=(("RACE_SYNC", "1"),)
)
PUBLIC_PATH = Contestant(
    "rabbitflow, fast path off", "rabbitflow", "rabbitflow", environment=(("RABBITFLOW_FAST", "0"),)
)
AIO_PIKA = Contestant("aio-pika", "aio_pika", "aio-pika")
AIORMQ = Contestant("aiormq", "aiormq", "aiormq")
PIKA = Contestant("pika", "pika", "pika")
FASTSTREAM = Contestant("FastStream", "faststream", "faststream")
CELERY = Contestant("Celery", "celery", "celery", owns_queues=True, confirms=False)
DRAMATIQ = Contestant("Dramatiq", "dramatiq", "dramatiq", owns_queues=True, confirms=False)
TASKIQ = Contestant("Taskiq", "taskiq", "taskiq", owns_queues=True)
C_CLIENT = Contestant("C client", "", "")

EVERYBODY = (
    OURS, IN_THREADS, PUBLIC_PATH, AIO_PIKA, AIORMQ, PIKA, FASTSTREAM, CELERY, DRAMATIQ, TASKIQ,
    C_CLIENT,
)  # fmt: skip


@cache
def c_client() -> Path | None:
    """Build the C client; None where there is no compiler or no librabbitmq."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        return None
    source = Path(__file__).with_name("client.c")
    built = Path(tempfile.mkdtemp(prefix="rabbitflow-race-")) / "client"
    command = [compiler, "-O2", "-o", str(built), str(source), "-lrabbitmq"]
    return (
        built if subprocess.run(command, capture_output=True, check=False).returncode == 0 else None
    )
