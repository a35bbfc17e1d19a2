"""Running one handler: async on the loop, plain in a thread, each within its time-out."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Generator
from types import CoroutineType, coroutine
from typing import Any

from rabbitflow.errors import HandlerExit, HandlerTimeout
from rabbitflow.signature import Signature, awaitable_result
from rabbitflow.worker.threads import Threads


class Execution:
    """Runs handlers for one consumer.

    Args:
        threads: how many plain ``def`` handlers may run at once.
        on_hung_thread: called when a thread outlived its time-out. Python can't end a thread, so
            the process has to be replaced.
    """

    def __init__(self, threads: int, on_hung_thread: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._thread_count = threads
        self._threads: Threads | None = None
        self._on_hung_thread = on_hung_thread

    async def run(
        self, signature: Signature, timeout_s: float | None, event: Any, context: Any
    ) -> None:
        """Run a handler once, with an event and its context or with the lists of a batch.

        Returns when its effect is done.

        Raises:
            HandlerTimeout: it took longer than ``timeout_s`` seconds.
            HandlerExit: it called ``sys.exit``, or cancelled itself.
            Exception: whatever it raised.
        """
        try:
            if not signature.is_async:
                await self._in_thread(signature, timeout_s, event, context)
                return
            work = signature.call(event, context)
            if timeout_s is None or not isinstance(work, CoroutineType):
                await self._within(timeout_s, work)
                return
            began = self._loop.time()
            try:
                waits_for = work.send(None)
            except StopIteration:
                return  # it never waited, so there is nothing that a timer could have ended
            await self._until(began + timeout_s, timeout_s, _rest_of(work, waits_for))
        except SystemExit as error:
            raise HandlerExit(f"the handler called sys.exit({error.code!r})") from error
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            raise HandlerExit("the handler ended itself with CancelledError") from error

    async def _within(self, timeout_s: float | None, work: Awaitable[Any]) -> None:
        if timeout_s is None:
            await work
        else:
            await self._until(self._loop.time() + timeout_s, timeout_s, work)

    async def _until(self, deadline: float, timeout_s: float, work: Awaitable[Any]) -> None:
        try:
            async with asyncio.timeout_at(deadline) as limit:
                await work
        except TimeoutError as error:
            if limit.expired():
                raise _timeout(timeout_s) from error
            raise

    async def _in_thread(
        self, signature: Signature, timeout_s: float | None, event: Any, context: Any
    ) -> None:
        if self._threads is None:
            self._threads = Threads(self._thread_count, self._loop)
        running = self._threads.run(_call, signature, event, context)
        try:
            async with asyncio.timeout(timeout_s) as limit:
                result = await running
        except TimeoutError as error:
            if not limit.expired():
                raise
            self._on_hung_thread()
            raise _timeout(timeout_s or 0.0) from error
        awaitable = awaitable_result(result)
        if awaitable is not None:
            await self._within(timeout_s, awaitable)

    def close(self) -> None:
        """Let the threads end by themselves; hung ones are left behind."""
        if self._threads is not None:
            self._threads.close()


@coroutine
def _rest_of(work: CoroutineType[Any, Any, Any], waits_for: Any) -> Generator[Any, Any, None]:
    """Run a coroutine on that has run up to its first wait, for ``waits_for``."""
    try:
        while True:
            try:
                sent = yield waits_for
            except BaseException as error:
                waits_for = work.throw(error)
            else:
                waits_for = work.send(sent)
    except StopIteration:
        return


def _call(signature: Signature, event: Any, context: Any) -> Any:
    try:
        return signature.call(event, context)
    except StopIteration as error:
        # A future can't carry it (PEP 479), so the await would never end.
        raise RuntimeError("the handler raised StopIteration") from error


def _timeout(timeout_s: float) -> HandlerTimeout:
    return HandlerTimeout(f"the handler ran longer than its time-out of {timeout_s:g} s")
