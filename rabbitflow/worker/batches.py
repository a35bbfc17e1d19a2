"""Batches: deliveries that wait for each other, run together, and are settled each for itself."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from rabbitflow.consumer import Batch
from rabbitflow.context import Context
from rabbitflow.errors import BatchFailed, HandlerTimeout
from rabbitflow.event import Event

Member = tuple[Event[Any], Context, "asyncio.Future[None]"]
RunBatch = Callable[[Sequence[Event[Any]], Sequence[Context]], Awaitable[None]]


class BatchDescription:
    """What log records of a batch handler carry: those of its one event, or how many there are."""

    def __init__(self, contexts: Sequence[Context]) -> None:
        self._contexts = contexts

    def log_fields(self) -> dict[str, object]:
        """The fields."""
        first = self._contexts[0]
        if len(self._contexts) == 1:
            return first.log_fields()
        return {"consumer": first.consumer, "batch_size": len(self._contexts)}


class Batches:
    """Collects the events of one batch handler and runs it.

    Args:
        batch: how many, and how long the first one waits.
        run: the handler, within its time-out.
        surroundings: the context variables it runs with; those of its events belong to one each.
    """

    def __init__(self, batch: Batch, run: RunBatch, surroundings: contextvars.Context) -> None:
        self._surroundings = surroundings
        self._batch = batch
        self._run = run
        self._waiting: list[Member] = []
        self._timer: asyncio.TimerHandle | None = None
        self._running: set[asyncio.Task[None]] = set()

    async def add(self, event: Event[Any], context: Context) -> None:
        """Return when the batch that ``event`` joined has run and the event is done.

        Raises:
            Exception: what went wrong with this event.
        """
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()
        self._waiting.append((event, context, done))
        if len(self._waiting) >= self._batch.size:
            self._start()
        elif self._timer is None:
            self._timer = loop.call_later(self._batch.within_s, self._start)
        await done

    async def close(self) -> None:
        """Cancel what runs; its events go back to the queue."""
        if self._timer is not None:
            self._timer.cancel()
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

    def _start(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        # Whoever waited was cancelled where its future is done: its event is the broker's again.
        members = [member for member in self._waiting if not member[2].done()]
        self._waiting = []
        if members:
            task = asyncio.create_task(
                self._run_together(members), context=self._surroundings.copy()
            )
            self._running.add(task)
            task.add_done_callback(self._running.discard)

    async def _run_together(self, members: Sequence[Member]) -> None:
        events = [event for event, _, _ in members]
        contexts = [context for _, context, _ in members]
        try:
            await self._run(events, contexts)
        except BatchFailed as failed:
            for event, _, done in members:
                _resolve(done, failed.errors.get(event.id))
        except Exception as error:
            if len(members) == 1 or isinstance(error, HandlerTimeout):
                for _, _, done in members:
                    _resolve(done, error)
                return
            # Who is to blame is not known, so each one runs alone.
            for member in members:
                await self._run_together([member])
        except BaseException:
            for _, _, done in members:
                done.cancel()
            raise
        else:
            for _, _, done in members:
                _resolve(done, None)


def _resolve(done: asyncio.Future[None], error: Exception | None) -> None:
    if done.done():
        return
    if error is None:
        done.set_result(None)
    else:
        done.set_exception(error)
