"""One entry of an event log: the message as it was announced, and where it lies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from aiormq.abc import DeliveredMessage
from pamqp.commands import Basic

from rabbitflow.copies import copied_properties
from rabbitflow.event import Event, EventDecoder, derived_id
from rabbitflow.topology import (
    BROKER_DEATH_HEADERS,
    EXCHANGE,
    LOG_MARK,
    REPLAYED_FROM_LOG,
    SENDER_SELECTED_HEADERS,
    STREAM_OFFSET,
    Names,
)

_decode: EventDecoder[Any] = EventDecoder()

_NOT_COPIED = BROKER_DEATH_HEADERS | SENDER_SELECTED_HEADERS | {STREAM_OFFSET}


@dataclass(frozen=True, slots=True)
class Entry:
    """A message that an event log keeps.

    Fields:
        event_type: whose log it is.
        offset: its place in that log; the first one ever was 0.
        body: as it was announced.
        properties: as they were announced, with the offset among the headers.
    """

    event_type: str
    offset: int
    body: bytes
    properties: Basic.Properties

    @classmethod
    def of(cls, event_type: str, message: DeliveredMessage) -> Entry:
        """Read a delivery of the client library."""
        properties = message.header.properties
        offset: Any = (properties.headers or {})[STREAM_OFFSET]
        return cls(event_type, int(offset), message.body, properties)

    @property
    def id(self) -> str:
        """The message id, or where a foreign publisher gave none, one derived from the body."""
        return self.properties.message_id or derived_id(self.body)

    @property
    def mark(self) -> str | None:
        """What a mark says; None for an event."""
        mark = (self.properties.headers or {}).get(LOG_MARK)
        return None if mark is None else str(mark)

    def event(self) -> Event[Any]:
        """Return the event.

        Raises:
            EventError: anybody may publish to an event's exchange, and this one is no event.
        """
        return _decode(self.body, self.properties.message_id)

    def copied(self, names: Names) -> Basic.Properties:
        """Return the properties of its copy in a consumer's queue, marked as a replay."""
        headers = {
            name: value
            for name, value in (self.properties.headers or {}).items()
            if name not in _NOT_COPIED
        }
        headers[EXCHANGE] = names.exchange(self.event_type)
        headers[REPLAYED_FROM_LOG] = self.offset
        return copied_properties(self.properties, headers, self.id, self.event_type)
