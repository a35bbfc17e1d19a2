"""Migrations that are killed: each run is a process of its own, ended by SIGKILL at a step.

``python -m tests.harness.migrating EVERY CONSUMER EVENT_TYPE...`` reads settings from the
environment and writes the steps at which it was killed. A run dies at the EVERY-th step that no run
got to before, so with 1 there are as many kills as steps; the last run comes to its end.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys

from rabbitflow.migration.consumer import migrate
from rabbitflow.migration.queues import Progress
from rabbitflow.settings import load_settings
from rabbitflow.topology import RETRY_BUCKETS_S, consumer_topology

SETTLE_S = 0.05


class _Killer:
    """Ends this process at the n-th step that is not in ``passed``, and notes the new ones."""

    def __init__(self, every: int, passed: set[str], note: int) -> None:
        self._left = every
        self._passed = passed
        self._note = note
        self._last = "nothing"

    def step(self, done: str) -> None:
        self._pass(done)
        self._last = done

    def moved(self, count: int) -> None:
        self._pass(f"messages moved after: {self._last}")

    def _pass(self, at: str) -> None:
        if at in self._passed:
            return
        self._passed.add(at)
        os.write(self._note, f"{at}\n".encode())
        self._left -= 1
        if not self._left:
            os.kill(os.getpid(), signal.SIGKILL)


def _run(consumer: str, event_types: list[str], killer: _Killer) -> None:
    settings = load_settings()
    topology = consumer_topology(consumer, event_types, RETRY_BUCKETS_S[:3], settings)
    progress = Progress(killer.step, killer.moved)
    asyncio.run(migrate(consumer, topology, settings, settle_s=SETTLE_S, progress=progress))


def main() -> None:
    """Migrate, die again and again, and come to an end."""
    every, consumer, *event_types = sys.argv[1:]
    passed: set[str] = set()
    while True:
        reading, writing = os.pipe()
        child = os.fork()
        if not child:
            _run(consumer, event_types, _Killer(int(every), passed, writing))
            os._exit(0)
        os.close(writing)
        with os.fdopen(reading, "rb") as note:
            steps = note.read().decode().splitlines()
        _, status = os.waitpid(child, 0)
        if status == 0:
            break
        if status != signal.SIGKILL:
            sys.exit(f"a run failed by itself: {status}")
        passed.update(steps)
        sys.stdout.write(f"{steps[-1]}\n")


if __name__ == "__main__":
    main()
