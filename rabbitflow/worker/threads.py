"""The threads that run plain ``def`` handlers."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

_Outcome = tuple["asyncio.Future[Any]", Any, BaseException | None]
_Job = tuple["asyncio.Future[Any]", Callable[..., Any], tuple[Any, ...]]


class Threads:
    """At most ``count`` threads, started when needed; outcomes reach the event loop many at a time.

    A pool of the standard library wakes the loop with a system call for every outcome, through two
    futures; here those that end close together share one wake-up and have one future each. The
    threads are daemons: a hung one never keeps a process from ending.
    """

    def __init__(self, count: int, loop: asyncio.AbstractEventLoop) -> None:
        self._count = count
        self._loop = loop
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._ended: deque[_Outcome] = deque()
        self._is_told = False
        self._threads: list[threading.Thread] = []
        self._unfinished = 0

    def run(self, call: Callable[..., Any], *arguments: Any) -> asyncio.Future[Any]:
        """Run ``call`` in a thread, with the context variables of the caller."""
        outcome: asyncio.Future[Any] = self._loop.create_future()
        self._unfinished += 1
        self._jobs.put((outcome, contextvars.copy_context().run, (call, *arguments)))
        if self._unfinished > len(self._threads) < self._count:
            thread = threading.Thread(
                target=self._work, name=f"rabbitflow-handler-{len(self._threads)}", daemon=True
            )
            self._threads.append(thread)
            thread.start()
        return outcome

    def close(self) -> None:
        """Let the threads end by themselves; what has not begun is dropped."""
        while not self._jobs.empty():
            self._jobs.get()
        for _ in self._threads:
            self._jobs.put(None)

    def _work(self) -> None:
        jobs, ended = self._jobs, self._ended
        while (job := jobs.get()) is not None:
            outcome, call, arguments = job
            try:
                ended.append((outcome, call(*arguments), None))
            except BaseException as error:  # SystemExit too: it ends a handler, not its thread
                ended.append((outcome, None, error))
            if not self._is_told:
                self._is_told = True
                try:
                    self._loop.call_soon_threadsafe(self._tell)
                except RuntimeError:
                    return  # the loop is closed: nobody waits any more

    def _tell(self) -> None:
        # First: what ends from here on tells anew, what ended before is in the queue by now.
        self._is_told = False
        while self._ended:
            outcome, result, error = self._ended.popleft()
            self._unfinished -= 1
            if outcome.done():
                continue  # timed out or cancelled meanwhile
            if error is None:
                outcome.set_result(result)
            else:
                outcome.set_exception(error)
