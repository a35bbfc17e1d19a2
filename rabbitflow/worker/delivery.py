"""One delivery: the message as it came, and what its headers say of it."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, NamedTuple

from aiormq.abc import DeliveredMessage
from pamqp.commands import Basic

from rabbitflow.event import derived_id, type_of
from rabbitflow.topology import (
    ATTEMPT,
    DELIVERY_COUNT,
    EVENT_TYPE,
    EXCHANGE,
    FIRST_FAILED_AT,
    REPLAYED_FROM_LOG,
    REPLAYS,
    Names,
)
from rabbitflow.wire import Content, full_properties
from rabbitflow.worker.acks import Acks

_NO_HEADERS: Mapping[str, Any] = {}


class Delivery(NamedTuple):
    """A message handed to this process and not settled yet.

    Fields:
        tag: the delivery tag, which means something on one channel only.
        redelivered: whether the broker handed it out before.
        exchange: it came through; empty for a retry or a replay.
        header: the AMQP properties as they came; read them by :attr:`properties`.
        content: what of them every event is looked at for.
        body: as it came.
        acks: of the channel it came on.
    """

    tag: int
    redelivered: bool
    exchange: str
    header: bytes | Basic.Properties
    content: Content
    body: bytes
    acks: Acks

    @classmethod
    def of(cls, message: DeliveredMessage, acks: Acks) -> Delivery:
        """Read a message of the client library."""
        deliver = message.delivery
        properties = message.header.properties
        return cls(
            tag=deliver.delivery_tag,  # type: ignore[union-attr,arg-type]
            redelivered=bool(deliver.redelivered),  # type: ignore[union-attr]
            exchange=deliver.exchange or "",  # type: ignore[union-attr]
            header=properties,
            content=Content(
                len(message.body),
                properties.content_type,
                properties.content_encoding,
                properties.headers,
                properties.message_id,
                properties.message_type,
            ),
            body=message.body,
            acks=acks,
        )

    @property
    def properties(self) -> Basic.Properties:
        """All AMQP properties; of text that is no UTF-8, what could be read."""
        header, content = self.header, self.content
        if isinstance(header, Basic.Properties):
            return header
        try:
            return full_properties(header)
        except ValueError:
            return Basic.Properties(
                content_type=content.content_type,
                content_encoding=content.content_encoding,
                headers=dict(content.headers or {}),
                message_id=content.message_id,
                message_type=content.message_type,
            )

    @property
    def headers(self) -> Mapping[str, Any]:
        """The headers, empty where there are none."""
        return self.content.headers or _NO_HEADERS

    @property
    def id(self) -> str:
        """The message id, or where a foreign publisher gave none, one derived from the body."""
        return self.content.message_id or derived_id(self.body)

    @property
    def suspect_id(self) -> str:
        """What its strikes are counted for: the event, and anew after each replay, which an
        operator asks for once the cause is mended."""
        replays = self.headers.get(REPLAYS)
        return self.id if replays is None else f"{self.id} replayed {replays}"

    @property
    def attempt(self) -> int:
        """Which attempt this delivery is, counted in our own header; the first is 1."""
        return _count(self.headers.get(ATTEMPT), at_least=1)

    @property
    def is_replay(self) -> bool:
        """Whether an operator had it delivered again, from the dead letters or the event log."""
        headers = self.headers
        return bool(headers) and (REPLAYS in headers or REPLAYED_FROM_LOG in headers)

    @property
    def is_fresh(self) -> bool:
        """Whether it comes from its announcement: a retry or a replay is old on purpose."""
        # Nearly every event comes without a header, and this is asked for each one.
        return not self.content.headers or (self.attempt == 1 and not self.is_replay)

    @property
    def came_back(self) -> int:
        """How often the broker took it back unsettled: it may have killed a process."""
        headers = self.content.headers
        if headers and DELIVERY_COUNT in headers:
            return _count(headers[DELIVERY_COUNT], at_least=0)
        return int(self.redelivered)

    @property
    def origin(self) -> str:
        """The exchange it was first published to, also after retries."""
        return self.exchange or str(self.headers.get(EXCHANGE, ""))

    def first_failed_at(self, otherwise: datetime) -> datetime:
        """When its first attempt failed, or ``otherwise`` where none has."""
        try:
            moment = datetime.fromisoformat(str(self.headers[FIRST_FAILED_AT]))
        except (KeyError, ValueError):
            return otherwise
        # Ours is aware. A naive one is somebody else's, and of no known time zone.
        return otherwise if moment.tzinfo is None else moment

    def claimed_type(self, names: Names) -> str | None:
        """The event type it claims outside its body: by property, by exchange, by our header."""
        noted = self.headers.get(EVENT_TYPE)
        return (
            self.content.message_type
            or (names.event_type(self.exchange) if self.exchange else None)
            # A foreign publisher may have written anything there.
            or (noted if isinstance(noted, str) else None)
        )

    def event_type(self, names: Names) -> str | None:
        """The event type it claims: outside its body, else there; only then the body is parsed."""
        return self.claimed_type(names) or type_of(self.body)

    def described(self, consumer: str, names: Names) -> tuple[str, dict[str, str | int | bool]]:
        """Return what a trace calls the place it came from, and what it tells of it."""
        queue = names.queue(consumer)
        attributes: dict[str, str | int | bool] = {
            "messaging.message.id": self.id,
            "messaging.message.body.size": len(self.body),
            "messaging.rabbitmq.message.delivery_tag": self.tag,
            "rabbitflow.consumer": consumer,
            "rabbitflow.attempt": self.attempt,
        }
        if self.properties.correlation_id:
            attributes["messaging.message.conversation_id"] = self.properties.correlation_id
        return (f"{self.origin}:{queue}" if self.origin else queue), attributes

    def ack(self) -> None:
        """Settle it: the broker forgets it. Only after its outcome is safe."""
        self.acks.finish(self.tag)


def _count(value: object, *, at_least: int) -> int:
    return max(at_least, value) if isinstance(value, int) else at_least
