"""The context: what a handler may know of, and do with, the delivery it is handling."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Any, Protocol

from rabbitflow.event import Event, derived_id

if TYPE_CHECKING:
    from rabbitflow.observe.spans import Bookmark

logger = logging.getLogger("rabbitflow.handler")


class Announcer(Protocol):
    """What announces follow-up events: a Publisher on the broker, a recorder in a unit test."""

    async def publish(self, event: str | Event[Any], data: Any = None, **fields: Any) -> Event[Any]:
        """Publish an event and return it once it is confirmed."""
        ...


class Context:
    """One delivery, seen from its handler.

    Attributes:
        consumer: the name of the consumer that handles it.
        attempt: which attempt this is; the first is 1.
        is_replay: whether it is delivered again on an operator's wish, from the dead letters or
            from the event log.
        session: the database session of a handler with ``once=True``; no other context has one.
    """

    __slots__ = (
        "_announced",
        "_announcer",
        "_deadline",
        "_event",
        "_loop",
        "attempt",
        "bookmark",
        "consumer",
        "is_replay",
        "session",
    )
    session: Any

    def __init__(
        self,
        event: Event[Any],
        consumer: str,
        announcer: Announcer,
        *,
        attempt: int = 1,
        is_replay: bool = False,
        deadline: float | None = None,
        loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self.consumer = consumer
        self.attempt = attempt
        self.is_replay = is_replay
        self._event = event
        self._announcer = announcer
        self._deadline = deadline
        self._loop = loop
        self._announced = 0
        # Where its trace is, for a handler that runs in a task of many events.
        self.bookmark: Bookmark | None = None

    def commit_with(self, session: Any, announcer: Announcer) -> None:
        """Let the handler work in ``session``, and hand its follow-ups to ``announcer``."""
        self.session = session
        self._announcer = announcer

    @property
    def remaining_s(self) -> float | None:
        """Seconds until the handler times out, or None where it has no time-out."""
        return None if self._deadline is None else max(0.0, self._deadline - time.monotonic())

    @property
    def log(self) -> logging.LoggerAdapter[logging.Logger]:
        """A logger whose records carry consumer, event id, type, attempt and correlation id."""
        return logging.LoggerAdapter(logger, self.log_fields())

    def log_fields(self) -> dict[str, object]:
        """What log records of the handler carry, whoever writes them."""
        event = self._event
        return {
            "consumer": self.consumer,
            "event_id": event.id,
            "event_type": event.type,
            "attempt": self.attempt,
            # As ctx.publish hands it on, so that one search finds everything of one cause.
            "correlation_id": event.correlation_id or event.id,
        }

    async def publish(
        self, event_type: str, data: Any, *, id: str | None = None, **fields: Any
    ) -> Event[Any]:
        """Announce a follow-up event and return it once the broker has confirmed it. In a handler
        with ``once=True`` it is kept with the handler's work instead, and announced when that is
        committed.

        It carries this event's correlation id on (this event's own id where there is none) and
        this event's id as causation id. Its own id follows from this event, the consumer and the
        order of publishing, so that a handler that runs twice announces the same event twice and
        not two events; pass ``id`` where the order differs from run to run.

        Await it, or the task that does: this event is acked once the handler has returned, and what
        a task still has to announce then is lost with its process.

        Raises:
            EventError, BrokerError: as :meth:`rabbitflow.Publisher.publish`.
        """
        fields.setdefault("correlation_id", self._event.correlation_id or self._event.id)
        fields.setdefault("causation_id", self._event.id)
        self._announced += 1
        follow_up = id or derived_id(self._event.id, self.consumer, event_type, self._announced)
        if self.bookmark is None:
            return await self._announcer.publish(event_type, data, id=follow_up, **fields)
        with self.bookmark.resumed():
            return await self._announcer.publish(event_type, data, id=follow_up, **fields)

    def publish_sync(
        self, event_type: str, data: Any, *, id: str | None = None, **fields: Any
    ) -> Event[Any]:
        """:meth:`publish` for a plain ``def`` handler: blocks its thread until the confirm."""
        if self._loop is None:
            raise RuntimeError("publish_sync is for plain def handlers; await publish instead")
        announced = self.publish(event_type, data, id=id, **fields)
        return asyncio.run_coroutine_threadsafe(announced, self._loop).result()
