"""The publisher for code without an event loop."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Coroutine, Iterable
from concurrent.futures import CancelledError as FutureCancelledError
from types import TracebackType
from typing import Any, Self, TypeVar

from rabbitflow.cipher import Cipher
from rabbitflow.errors import PublishTimeout
from rabbitflow.event import Event
from rabbitflow.observe.metrics import PublishMetrics
from rabbitflow.publisher import Publisher
from rabbitflow.settings import Settings
from rabbitflow.signing import Signer

ResultT = TypeVar("ResultT")


class SyncPublisher:
    """The publisher for code without an event loop: Flask, Django, a script.

    It runs an event loop in one daemon thread, started with the first publish, anew in a forked
    child. Any number of threads may publish at once. Arguments and errors as :class:`Publisher`.

    Attributes:
        metrics: what it announced, as those of :class:`Publisher`.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        source: str | None = None,
        settings: Settings | None = None,
        signer: Signer | None = None,
        cipher: Cipher | None = None,
    ) -> None:

        self.metrics = PublishMetrics()

        def make() -> Publisher:
            publisher = Publisher(
                url, source=source, settings=settings, signer=signer, cipher=cipher
            )
            publisher.metrics = self.metrics
            return publisher

        make()  # a setting that does not fit is an error here, not with the first event
        self._make = make
        self._lock = threading.Lock()
        self._pid: int | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._publisher: Publisher | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def publish(
        self,
        event: str | Event[Any],
        data: Any = None,
        *,
        timeout: float | None = None,
        **fields: Any,
    ) -> Event[Any]:
        """Announce what happened, and return it once confirmed (:meth:`Publisher.publish`)."""
        publisher, loop = self._running()
        return _wait(publisher.publish(event, data, timeout=timeout, **fields), loop)

    def publish_many(self, events: Iterable[Event[Any]], *, window: int = 256) -> int:
        """Announce many events and return their count (:meth:`Publisher.publish_many`)."""
        publisher, loop = self._running()
        return _wait(publisher.publish_many(events, window=window), loop)

    def close(self) -> None:
        """Close the connection and end the thread."""
        with self._lock:
            loop, publisher = self._loop, self._publisher
            self._loop = self._publisher = None
            if loop is None or publisher is None or self._pid != os.getpid():
                return
            _wait(publisher.close(), loop)
            loop.call_soon_threadsafe(loop.stop)

    def _running(self) -> tuple[Publisher, asyncio.AbstractEventLoop]:
        with self._lock:
            if self._pid != os.getpid() or self._loop is None or self._publisher is None:
                self._pid = os.getpid()
                self._loop = asyncio.new_event_loop()
                threading.Thread(
                    target=_run, args=(self._loop,), name="rabbitflow-publisher", daemon=True
                ).start()
                self._publisher = _wait(self._made(), self._loop)
            return self._publisher, self._loop

    async def _made(self) -> Publisher:
        return self._make()


def _run(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
    finally:
        loop.close()


def _wait(work: Coroutine[Any, Any, ResultT], loop: asyncio.AbstractEventLoop) -> ResultT:
    try:
        return asyncio.run_coroutine_threadsafe(work, loop).result()
    except FutureCancelledError as error:
        raise PublishTimeout(
            "the publisher was closed under a publish; the event may still be delivered"
        ) from error
