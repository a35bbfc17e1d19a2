"""The publisher: announces events, and returns when the broker has them safe."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from pamqp.commands import Basic
from pydantic import ValidationError

from rabbitflow import fastpath
from rabbitflow.broker import ConnectionLost, NotFound
from rabbitflow.cipher import Cipher
from rabbitflow.confirmed import ConfirmedChannel
from rabbitflow.declaration import declare
from rabbitflow.errors import BrokerUnavailable, EventError, PublishTimeout, Unroutable
from rabbitflow.event import Event, readable
from rabbitflow.observe.metrics import CONFIRMED, FAILED, UNROUTABLE, PublishMetrics
from rabbitflow.observe.tracing import tracing
from rabbitflow.pipeline import Pipeline
from rabbitflow.settings import Settings, load_settings
from rabbitflow.signing import Signer
from rabbitflow.topology import Names, event_topology

if TYPE_CHECKING:
    from rabbitflow.observe.spans import Spans

CONTENT_TYPE = "application/json"
PERSISTENT = 2


def properties_of(event: Event[Any], headers: dict[str, Any] | None = None) -> Basic.Properties:
    """Return the AMQP properties that repeat what brokers and other clients look at."""
    return Basic.Properties(
        content_type=CONTENT_TYPE,
        delivery_mode=PERSISTENT,
        message_id=event.id,
        message_type=event.type,
        timestamp=event.timestamp,
        correlation_id=event.correlation_id,
        headers=headers,
    )


class Publisher:
    """Announces events to a broker. It knows no consumer, and waits for none.

    Use it as ``async with Publisher() as publisher``. It connects with the first publish, and again
    whenever the connection was lost. Many publishes at once share one channel and are confirmed
    together: ``asyncio.gather`` them, or use :meth:`publish_many`.

    Args:
        url: of the broker; ``RABBITFLOW_URL`` where it is not given.
        source: who announces, for events that do not say it themselves.
        settings: all settings at once, instead of those of the environment.
        signer: signs each event; that of ``RABBITFLOW_SIGNING_KEY_FILE`` where it is not given.
        cipher: encrypts fields that are ``Encrypted``; that of ``RABBITFLOW_ENCRYPTION_KEYS_FILE``
            where it is not given.

    Attributes:
        metrics: what it announced; show it with
            :class:`rabbitflow.observe.exposition.PublisherCollector`.
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
        if settings is None:
            settings = load_settings(url=url)
        elif url is not None:
            raise TypeError("give url or settings, not both")
        self.metrics = PublishMetrics()
        self._settings = settings
        self._names = Names(settings.namespace)
        self._source = source
        self._signer = signer or Signer.of(settings)
        self._cipher = cipher or Cipher.at(settings.encryption_keys_file)
        self._channel = ConfirmedChannel(settings, f"rabbitflow publisher {source or os.getpid()}")
        self._declared: dict[str, asyncio.Task[None]] = {}
        self._has_begun = False
        self._spans: Spans | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    @property
    def channel(self) -> ConfirmedChannel:
        """The confirming channel, for copies that settlement sends beside events."""
        return self._channel

    async def publish(
        self,
        event: str | Event[Any],
        data: Any = None,
        *,
        timeout: float | None = None,
        **fields: Any,
    ) -> Event[Any]:
        """Announce what happened, and return the event once the broker has confirmed it.

        Args:
            event: the event type, with ``data``; or a whole :class:`Event`.
            data: the facts: a pydantic model, a dataclass, a dict, anything JSON has a form for.
            timeout: how long to wait in all, in seconds; ``RABBITFLOW_PUBLISH_TIMEOUT_S`` (10)
                where it is not given.
            **fields: further fields of the event: ``id``, ``timestamp``, ``source``,
                ``correlation_id``, ``causation_id``, ``version``, ``key``.

        Raises:
            EventError: it is no event, no JSON, or larger than ``max_body_bytes``.
            Unroutable: nobody listens and no event log keeps it.
            PublishTimeout: sent, but not confirmed in time: it may still be delivered.
            BrokerUnavailable: no broker could be reached in time; nothing was sent.
            PublishRefused, AccessRefused: the broker said no.
        """
        if isinstance(event, str):
            event = self._build(event, data, fields)
        elif data is not None or fields:
            raise TypeError("an Event is published as it is: give data and fields with a type")
        body = self._encoded(event)
        began = time.perf_counter()
        outcome = FAILED
        try:
            ends_at = began + (timeout or self._settings.publish_timeout_s)
            await self._announce(event, body, ends_at)
            outcome = CONFIRMED
        except Unroutable:
            outcome = UNROUTABLE
            raise
        finally:
            self.metrics.ended(event.type, outcome, time.perf_counter() - began)
        return event

    async def publish_many(
        self,
        events: Iterable[Event[Any]],
        *,
        window: int = 256,
        on_confirmed: Callable[[Event[Any]], object] | None = None,
    ) -> int:
        """Announce many events, at most ``window`` unconfirmed at a time, and return their count.

        Events reach the broker in the order given, as long as no connection is lost.
        ``on_confirmed`` is called with each one that is safe.

        Raises:
            As :meth:`publish`, for the first that failed; what was confirmed stays announced.
        """
        count = 0

        def note(event: Event[Any]) -> None:
            nonlocal count
            count += 1
            if on_confirmed is not None:
                on_confirmed(event)

        if fastpath.is_on() and self._tracing() is None:
            await self._publish_pipelined(events, window, note)
        else:
            await self._publish_abreast(events, window, note)
        return count

    async def _publish_abreast(
        self, events: Iterable[Event[Any]], window: int, note: Callable[[Event[Any]], None]
    ) -> None:
        remaining = iter(events)

        async def publish_next() -> None:
            for event in remaining:
                await self.publish(event)
                note(event)

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(window):
                    group.create_task(publish_next())
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from failed

    async def _publish_pipelined(
        self, events: Iterable[Event[Any]], window: int, note: Callable[[Event[Any]], None]
    ) -> None:
        pipeline: Pipeline | None = None

        def confirmed(event: Event[Any], took_s: float) -> None:
            self.metrics.ended(event.type, CONFIRMED, took_s)
            note(event)

        async def publish_with_care(event: Event[Any]) -> None:
            await self.publish(event)
            note(event)

        async def mend(broken: Pipeline) -> None:
            await broken.finish()
            for event in broken.take_back():
                await publish_with_care(event)

        timeout_s = self._settings.publish_timeout_s
        try:
            for event in events:
                if pipeline is not None and not pipeline.is_whole:
                    await mend(pipeline)
                    pipeline = None
                if pipeline is None and self._channel.confirms is not None:
                    pipeline = Pipeline(self._channel.confirms, window, timeout_s, confirmed)
                if pipeline is None or not self._is_declared(event.type):
                    await publish_with_care(event)
                    continue
                body, exchange = self._encoded(event), self._names.exchange(event.type)
                properties = self._properties(event, exchange, body, None)
                if not await pipeline.send(event, exchange, body, properties):
                    await mend(pipeline)
                    pipeline = None
                    await publish_with_care(event)
            if pipeline is not None:
                await mend(pipeline)
        except Exception:
            if pipeline is not None:
                # What is on its way is heard of first; the failure that is told is the first one.
                try:
                    await pipeline.finish()
                except PublishTimeout:
                    await self._channel.give_up_if_mute(pipeline.silent_s)
                for event in pipeline.take_back():
                    self.metrics.ended(event.type, FAILED, timeout_s)
            raise

    async def close(self) -> None:
        """Close the connection. Events whose publish returned are safe."""
        pending = [task for task in self._declared.values() if not task.done()]
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
        await self._channel.close()

    def _build(self, event_type: str, data: Any, fields: dict[str, Any]) -> Event[Any]:
        fields.setdefault("source", self._source)
        try:
            return Event[Any](type=event_type, data=data, **fields)
        except ValidationError as error:
            raise EventError(readable(error)) from error

    def _encoded(self, event: Event[Any]) -> bytes:
        body = event.encode(self._cipher)
        if len(body) > self._settings.max_body_bytes:
            raise EventError(
                f"{event.type} is {len(body)} bytes as JSON, and the limit is"
                f" {self._settings.max_body_bytes} (RABBITFLOW_MAX_BODY_BYTES);"
                " publish where the data is kept instead"
            )
        return body

    def _properties(
        self, event: Event[Any], exchange: str, body: bytes, headers: dict[str, Any] | None
    ) -> Basic.Properties:
        if self._signer is not None:
            headers = {**(headers or {}), **self._signer.headers(exchange, event.id, body)}
        return properties_of(event, headers)

    def _tracing(self) -> Spans | None:
        if not self._has_begun:
            self._has_begun, self._spans = True, tracing()
        return self._spans

    async def _announce(self, event: Event[Any], body: bytes, ends_at: float) -> None:
        spans = self._tracing()
        if spans is None:
            await self._send(event, body, ends_at, None)
            return
        attributes: dict[str, str | int | bool] = {
            "messaging.message.id": event.id,
            "messaging.message.body.size": len(body),
        }
        if event.correlation_id:
            attributes["messaging.message.conversation_id"] = event.correlation_id
        with spans.publishing(self._names.exchange(event.type), attributes) as headers:
            await self._send(event, body, ends_at, headers)

    async def _send(
        self,
        event: Event[Any],
        body: bytes,
        ends_at: float,
        headers: dict[str, Any] | None,
    ) -> None:
        exchange = self._names.exchange(event.type)
        properties = self._properties(event, exchange, body, headers)
        await self._ensure_declared(event.type, ends_at)
        try:
            left_s = ends_at - time.perf_counter()
            await self._channel.publish(exchange, "", body, properties, timeout_s=left_s)
        except NotFound:
            if not self._settings.declare:
                raise Unroutable(
                    f"there is no exchange {exchange} on the broker and this publisher declares"
                    " nothing; an administrator runs: rabbitflow topology apply MODULE"
                ) from None
            # Somebody deleted the exchange since it was declared.
            self._declared.pop(event.type, None)
            await self._ensure_declared(event.type, ends_at)
            left_s = ends_at - time.perf_counter()
            await self._channel.publish(exchange, "", body, properties, timeout_s=left_s)
        except Unroutable:
            raise Unroutable(
                f"nobody listens to {event.type} and no event log keeps it, so it was not kept;"
                " start a consumer first, or leave the event log on (RABBITFLOW_EVENT_LOG)"
            ) from None

    def _is_declared(self, event_type: str) -> bool:
        if not self._settings.declare:
            return True
        declaring = self._declared.get(event_type)
        return (
            declaring is not None
            and declaring.done()
            and not declaring.cancelled()
            and declaring.exception() is None
        )

    async def _ensure_declared(self, event_type: str, ends_at: float) -> None:
        if self._is_declared(event_type):
            return
        declaring = self._declared.get(event_type)
        if declaring is None or declaring.done():
            declaring = asyncio.create_task(self._declare(event_type))
            self._declared[event_type] = declaring
        try:
            async with asyncio.timeout(ends_at - time.perf_counter()):
                # Shielded: one publisher that gives up must not fail those who wait beside it.
                await asyncio.shield(declaring)
        except TimeoutError as error:
            raise BrokerUnavailable(
                f"{self._settings.shown_url} did not answer in time when {event_type} was declared;"
                " nothing was sent"
            ) from error

    async def _declare(self, event_type: str) -> None:
        topology = event_topology(event_type, self._settings)
        try:
            await declare(await self._channel.connection(), topology, self._settings)
        except ConnectionLost:
            # A connection that had ended unnoticed; a new one says whether the broker is there.
            await declare(await self._channel.connection(), topology, self._settings)
