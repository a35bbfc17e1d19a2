"""Running one handler: async on the loop, plain in a thread, each within its time-out."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Generator
from types import CoroutineType, coroutine
from typing import Any

from rabbitflow.errors import HandlerExit, HandlerTimeout
from rabbitflow.signature import Signature, awaitable_result
from rabbitflow.worker.threads import Threads

CLEANING_UP_S = 5.0

logger = logging.getLogger(__name__)


class Execution:
    """Runs handlers for one consumer.

    Args:
        threads: how many plain ``def`` handlers may run at once.
        on_hung: called when a handler outlived its time-out and can't be ended: Python ends no
            thread, and a coroutine may catch whatever is thrown into it. The process has to be
            replaced.
        cleaning_up_s: how long an async handler may go on after it was cancelled, in seconds.
    """

    def __init__(
        self, threads: int, on_hung: Callable[[], None], cleaning_up_s: float = CLEANING_UP_S
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._thread_count = threads
        self._threads: Threads | None = None
        self._on_hung = on_hung
        self._cleaning_up_s = cleaning_up_s
        self._never_ending: list[CoroutineType[Any, Any, Any]] = []

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
            await self._rest_until(began + timeout_s, timeout_s, work, waits_for)
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

    async def _rest_until(
        self,
        deadline: float,
        timeout_s: float,
        work: CoroutineType[Any, Any, Any],
        waits_for: Any,
    ) -> None:
        """Run a coroutine on that has run up to its first wait, for ``waits_for``."""
        try:
            async with asyncio.timeout_at(deadline) as limit:
                await self._rest_of(work, waits_for, limit)
        except TimeoutError as error:
            if limit.expired():
                raise _timeout(timeout_s) from error
            raise

    @coroutine
    def _rest_of(
        self, work: CoroutineType[Any, Any, Any], waits_for: Any, limit: asyncio.Timeout
    ) -> Generator[Any, Any, None]:
        grace: _Grace | None = None
        try:
            while True:
                try:
                    sent = yield waits_for
                except BaseException as error:
                    if grace is not None and grace.is_over:
                        grace.task.uncancel()
                        self._leave(work)
                        raise
                    waits_for = work.throw(error)
                    if grace is None and limit.expired():
                        grace = _Grace(self._loop, self._cleaning_up_s)
                else:
                    waits_for = work.send(sent)
        except StopIteration:
            return
        finally:
            if grace is not None:
                grace.timer.cancel()

    def _leave(self, work: CoroutineType[Any, Any, Any]) -> None:
        """Give up a handler that was cancelled and waits on: it does not run any further."""
        logger.warning(
            "handler %s was cancelled by its time-out and went on for %g s; it is left where it is",
            work.__qualname__,
            self._cleaning_up_s,
        )
        try:
            work.close()
        except RuntimeError:  # it waits in there as well
            self._never_ending.append(work)
            self._on_hung()

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
            self._on_hung()
            raise _timeout(timeout_s or 0.0) from error
        awaitable = awaitable_result(result)
        if awaitable is not None:
            await self._within(timeout_s, awaitable)

    def close(self) -> None:
        """Let the threads end by themselves; hung ones are left behind."""
        if self._threads is not None:
            self._threads.close()


class _Grace:
    """How long a handler may go on that its time-out cancelled; then its task is cancelled anew."""

    def __init__(self, loop: asyncio.AbstractEventLoop, within_s: float) -> None:
        task = asyncio.current_task(loop)
        assert task is not None
        self.task = task
        self.is_over = False
        self.timer = loop.call_later(within_s, self._end)

    def _end(self) -> None:
        self.is_over = True
        self.task.cancel()


def _call(signature: Signature, event: Any, context: Any) -> Any:
    try:
        return signature.call(event, context)
    except StopIteration as error:
        # A future can't carry it (PEP 479), so the await would never end.
        raise RuntimeError("the handler raised StopIteration") from error


def _timeout(timeout_s: float) -> HandlerTimeout:
    return HandlerTimeout(f"the handler ran longer than its time-out of {timeout_s:g} s")
