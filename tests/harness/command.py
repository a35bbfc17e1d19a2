"""The command ``rabbitflow`` as users run it, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from rabbitflow.settings import Settings


class Command:
    """Runs ``rabbitflow ARGUMENT…`` in a directory, with the broker and namespace of a test."""

    def __init__(self, settings: Settings, directory: Path, **env: str) -> None:
        self.directory = directory
        self.environment = {
            **os.environ,
            "PYTHONPATH": str(Path(__file__).parents[2]),
            "PYTHONUNBUFFERED": "1",
            "RABBITFLOW_URL": settings.broker_url,
            "RABBITFLOW_NAMESPACE": settings.namespace or "",
            "RABBITFLOW_STATE_DIR": str(settings.state_dir),
            **env,
        }

    def __call__(
        self, *arguments: str, stdin: str = "", **env: str
    ) -> subprocess.CompletedProcess[str]:
        """Run it to its end."""
        return subprocess.run(
            [sys.executable, "-m", "rabbitflow", *arguments],
            cwd=self.directory,
            env={**self.environment, **env},
            input=stdin,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def start(
        self, *arguments: str, stdout: int = subprocess.DEVNULL, **env: str
    ) -> subprocess.Popen[bytes]:
        """Start it, and leave it running; what it prints is read where ``stdout`` is a pipe."""
        return subprocess.Popen(
            [sys.executable, "-m", "rabbitflow", *arguments],
            cwd=self.directory,
            env={**self.environment, **env},
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=subprocess.DEVNULL,
        )
