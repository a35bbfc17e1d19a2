"""Running one handler: async on the loop, plain in a thread, each within its time-out."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from rabbitflow.errors import HandlerExit, HandlerTimeout
from rabbitflow.signature import Signature, awaitable_result


class Execution:
    """Runs handlers for one consumer.

    Args:
        threads: how many plain ``def`` handlers may run at once.
        on_hung_thread: called when a thread outlived its time-out. Python can't end a thread, so
            the process has to be replaced.
    """

    def __init__(self, threads: int, on_hung_thread: Callable[[], None]) -> None:
        self._threads = threads
        self._pool: ThreadPoolExecutor | None = None
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
            else:
                await self._within(timeout_s, signature.call(event, context))
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
            return
        try:
            async with asyncio.timeout(timeout_s) as limit:
                await work
        except TimeoutError as error:
            if limit.expired():
                raise _timeout(timeout_s) from error
            raise

    async def _in_thread(
        self, signature: Signature, timeout_s: float | None, event: Any, context: Any
    ) -> None:
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="rabbitflow-handler")
        loop = asyncio.get_running_loop()
        bound = contextvars.copy_context()
        running = loop.run_in_executor(self._pool, bound.run, _call, signature, event, context)
        done, _ = await asyncio.wait({running}, timeout=timeout_s)
        if not done:
            running.add_done_callback(_drop_late_outcome)
            self._on_hung_thread()
            raise _timeout(timeout_s or 0.0)
        awaitable = awaitable_result(running.result())
        if awaitable is not None:
            await self._within(timeout_s, awaitable)

    def close(self) -> None:
        """Let the threads end by themselves; hung ones are left behind."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)


def _call(signature: Signature, event: Any, context: Any) -> Any:
    try:
        return signature.call(event, context)
    except StopIteration as error:
        # A future can't carry it (PEP 479), so the await would never end.
        raise RuntimeError("the handler raised StopIteration") from error


def _timeout(timeout_s: float) -> HandlerTimeout:
    return HandlerTimeout(f"the handler ran longer than its time-out of {timeout_s:g} s")


def _drop_late_outcome(running: asyncio.Future[Any]) -> None:
    # The event was settled as timed out; what the thread brings later can't be used any more.
    if not running.cancelled():
        running.exception()
