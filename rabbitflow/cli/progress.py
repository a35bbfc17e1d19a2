"""A progress bar on standard error, for work that takes long enough to be looked at."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn


@contextmanager
def counting(what: str, total: int | None, *, quiet: bool) -> Iterator[Callable[[], None]]:
    """Show how far ``what`` is while the block runs; call what it yields once for each one done.

    Args:
        total: how many there will be, where that is known.
        quiet: show nothing; nor is anything shown where standard error is no terminal.
    """
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]:,.0f}/s"),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        disable=quiet or not sys.stderr.isatty(),
    )
    began = time.monotonic()
    done = 0
    with progress:
        task = progress.add_task(what, total=total, rate=0.0)

        def advance() -> None:
            nonlocal done
            done += 1
            rate = done / max(1e-6, time.monotonic() - began)
            progress.update(task, completed=done, rate=rate)

        yield advance
