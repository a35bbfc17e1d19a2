"""The command ``rabbitflow`` as users run it, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from rabbitflow.settings import Settings


class Command:
    """Runs ``rabbitflow ARGUMENT…`` in a directory, with the broker and namespace of a test."""

    def __init__(self, settings: Settings, directory: Path) -> None:
        self.directory = directory
        self._environment = {
            **os.environ,
            "PYTHONPATH": str(Path(__file__).parents[2]),
            "RABBITFLOW_URL": settings.broker_url,
            "RABBITFLOW_NAMESPACE": settings.namespace or "",
        }

    def __call__(
        self, *arguments: str, stdin: str = "", **env: str
    ) -> subprocess.CompletedProcess[str]:
        """Run it to its end."""
        return subprocess.run(
            [sys.executable, "-m", "rabbitflow", *arguments],
            cwd=self.directory,
            env={**self._environment, **env},
            input=stdin,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        """Start it, and leave it running."""
        return subprocess.Popen(
            [sys.executable, "-m", "rabbitflow", *arguments],
            cwd=self.directory,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
