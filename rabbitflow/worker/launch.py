"""The command becomes the supervisor: whatever read and checked what was asked is left behind.

The process stays the same, and so does its id, by which a service manager knows it.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import NoReturn

import rabbitflow
from rabbitflow.settings import Settings
from rabbitflow.worker.plan import Plan, Terms


def become_supervisor(plan: Plan, settings: Settings) -> NoReturn:
    """Run ``plan`` in this process on a fresh interpreter (:mod:`rabbitflow.worker.__main__`).

    The terms go by a pipe: they hold the broker's URL, and arguments are shown by ``ps``.
    """
    told = json.dumps({"plan": asdict(plan), "terms": Terms.of(settings).as_json()})
    reading, writing = os.pipe()
    with os.fdopen(writing, "w", encoding="utf-8") as pipe:
        pipe.write(told)
    os.set_inheritable(reading, True)
    sys.stdout.flush()
    sys.stderr.flush()
    command = [sys.executable, *_search_path(), "-m", "rabbitflow.worker"]
    os.execv(sys.executable, [*command, str(reading), *plan.modules])


def _search_path() -> list[str]:
    # Without the current directory, where the user's modules are: none of them may stand in for one
    # that the supervisor means. Unless rabbitflow itself is run from there.
    return [] if Path(rabbitflow.__file__).parents[1] == Path.cwd() else ["-P"]
