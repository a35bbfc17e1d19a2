"""The event: an immutable record of something that happened, and its bytes on the wire."""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from datetime import UTC, datetime
from typing import Annotated, Any, Generic, NoReturn, TypeVar

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    TypeAdapter,
    ValidationError,
)
from pydantic_core import PydanticSerializationError, from_json, to_json

from rabbitflow.cipher import Cipher
from rabbitflow.encryption import Opening, Sealing, holds_encrypted
from rabbitflow.errors import EventError
from rabbitflow.nesting import refuse_deep

DataT = TypeVar("DataT")

EVENT_TYPE_PATTERN = r"^[A-Za-z][A-Za-z0-9_.-]{0,127}$"
EventType = Annotated[str, StringConstraints(pattern=EVENT_TYPE_PATTERN)]
SHORT_TEXT_BYTES = 255
"""The limit of an AMQP short string (AMQP 0-9-1, section 4.2.5.3)."""


def _is_short(text: str) -> str:
    # A character is at most four bytes, so most texts need no encoding to be known as short.
    if len(text) * 4 > SHORT_TEXT_BYTES and len(text.encode()) > SHORT_TEXT_BYTES:
        raise ValueError(f"String should have at most {SHORT_TEXT_BYTES} bytes as UTF-8")
    return text


ShortText = Annotated[str, StringConstraints(min_length=1), AfterValidator(_is_short)]

# What pydantic's parser still reads; a body beyond it may be written, but never read.
_SURE_DIGITS = 4300


def is_event_type(text: str) -> bool:
    """Whether ``text`` can name an event type."""
    return re.fullmatch(EVENT_TYPE_PATTERN, text) is not None


def new_event_id() -> str:
    """Return a UUIDv7 as text: ordered by time to the millisecond, then random (RFC 9562, 5.7)."""
    return _uuid((time.time_ns() // 1_000_000) << 80 | int.from_bytes(os.urandom(10)), version=7)


def _uuid(value: int, version: int) -> str:
    # The standard library's UUID knows versions 7 and 8 from Python 3.14 on, and takes three times
    # as long to write its text.
    value = value & ~(0xF << 76) | version << 76
    value = value & ~(0x3 << 62) | 0x2 << 62
    text = f"{value:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def _now() -> datetime:
    return datetime.now(UTC)


def _to_utc(moment: datetime) -> datetime:
    if moment.tzinfo is UTC:
        return moment
    try:
        return moment.astimezone(UTC)
    except OverflowError:
        raise ValueError("in UTC it is not within the years 1 to 9999") from None


class Event(BaseModel, Generic[DataT]):
    """Something that happened. Frozen: an event is never changed, only followed by another.

    ``Event[Order]`` types ``data``; plain ``Event`` leaves it as the JSON it came as.

    Fields:
        id: UUIDv7 unless given; the same on every redelivery, so that effects can be deduplicated.
        type: what happened, ``[A-Za-z][A-Za-z0-9_.-]{0,127}``.
        timestamp: when, aware; kept in UTC. A naive time is refused.
        data: the facts: anything pydantic writes as JSON.
        source: who announced it.
        correlation_id: one id for everything that follows from one cause.
        causation_id: the id of the event this one follows from.
        version: the schema version of ``data``.
        key: what the event is about (an order id); order is kept per key where a consumer asks.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    id: ShortText = Field(default_factory=new_event_id)
    type: EventType
    timestamp: Annotated[AwareDatetime, AfterValidator(_to_utc)] = Field(default_factory=_now)
    data: DataT
    source: ShortText | None = None
    correlation_id: ShortText | None = None
    causation_id: ShortText | None = None
    version: Annotated[int, Field(ge=1)] = 1
    key: ShortText | None = None

    def encode(self, cipher: Cipher | None = None) -> bytes:
        """Return the JSON body. Optional fields that are not set are left out.

        Args:
            cipher: encrypts the fields of ``data`` that are ``Encrypted``.

        Raises:
            EventError: ``data`` holds what JSON has no form for: a NaN, an open file, a cycle; or
                a field to encrypt, without a cipher; or
                what no consumer could read: over 200 levels with the event's own, a number of over
                4,300 digits.
        """
        # Not model_dump_json(exclude_none=True): that drops the nulls inside ``data`` too.
        envelope: dict[str, Any] = {
            "id": self.id,
            "type": self.type,
            "timestamp": self.timestamp,
            "data": self.data,
        }
        if self.source is not None:
            envelope["source"] = self.source
        if self.correlation_id is not None:
            envelope["correlation_id"] = self.correlation_id
        if self.causation_id is not None:
            envelope["causation_id"] = self.causation_id
        if self.version != 1:
            envelope["version"] = self.version
        if self.key is not None:
            envelope["key"] = self.key
        return to_body(envelope, self.type, None if cipher is None else Sealing(cipher, self.id))


class EventDecoder(Generic[DataT]):
    """Reads bodies into ``Event[data_type]``: one validation, from bytes to the typed event.

    Args:
        data_type: of the event's data.
        cipher: reads fields that are ``Encrypted``; without one they are refused.
    """

    def __init__(self, data_type: Any = Any, cipher: Cipher | None = None) -> None:
        adapter = TypeAdapter(Event[data_type])
        self._validate = adapter.validator.validate_json
        self._has_encrypted = holds_encrypted(adapter.core_schema)
        self._cipher = cipher

    def __call__(self, body: bytes, message_id: str | None = None) -> Event[DataT]:
        """Return the event in ``body``.

        A body without an id takes ``message_id`` (the AMQP property), else one derived from the
        body, so that every redelivery of it has the same id.

        Raises:
            EventError: not JSON, nested deeper than 200 levels, not an event, or ``data`` does not
                fit the data type.
        """
        try:
            refuse_deep(body)
            _refuse_constants(body)
            event: Event[DataT]
            if self._has_encrypted:
                event_id = _named_in(body, "id") or message_id or derived_id(body)
                event = self._validate(body, context=Opening(self._cipher, event_id))
            else:
                event = self._validate(body)
        except ValidationError as error:
            raise EventError(readable(error)) from error
        except (ValueError, RecursionError) as error:
            raise EventError(f"the body can't be read as JSON: {error}") from error
        given = event.model_fields_set
        if "timestamp" not in given:
            raise EventError("not an event: timestamp: Field required")
        if "id" not in given:
            event = event.model_copy(update={"id": message_id or derived_id(body)})
        return event


def to_body(value: object, event_type: str, sealing: Sealing | None = None) -> bytes:
    """Return ``value`` as JSON that every consumer can read, and what is ``Encrypted`` sealed.

    Raises:
        EventError: it holds what JSON has no form for, or what no consumer could read.
    """
    try:
        body = to_json(value, inf_nan_mode="constants", context=sealing)
        _refuse_constants(body)
        _refuse_unreadable(body)
    except (PydanticSerializationError, ValueError, RecursionError) as error:
        raise EventError(f"the data of {event_type} can't be written as JSON: {error}") from error
    return body


def type_of(body: bytes) -> str | None:
    """Return the ``type`` that the body names, or None where it names none or is no JSON object."""
    return _named_in(body, "type")


def id_of(body: bytes) -> str | None:
    """Return the ``id`` that the body names, or None where it names none or is no JSON object."""
    return _named_in(body, "id")


def _named_in(body: bytes, field: str) -> str | None:
    try:
        refuse_deep(body)
        envelope = from_json(body)
    except ValueError:
        return None
    named = envelope.get(field) if isinstance(envelope, dict) else None
    return named if isinstance(named, str) else None


def derived_id(*parts: object) -> str:
    """Return an id that follows from ``parts`` alone: the same parts, the same id (UUIDv8)."""
    digest = hashlib.sha256(b"\0".join(str(part).encode() for part in parts))
    return _uuid(int.from_bytes(digest.digest()[:16]), version=8)


def readable(error: ValidationError) -> str:
    """Say what did not fit and where, without the values: they may be private and large."""
    places = [
        f"{'.'.join(map(str, fault['loc'])) or 'body'}: {fault['msg']}"
        for fault in error.errors(include_url=False, include_input=False, include_context=False)
    ]
    shown = "; ".join(places[:5])
    more = f"; and {len(places) - 5} more" if len(places) > 5 else ""
    return f"not an event: {shown}{more}"


def _refuse_constants(body: bytes) -> None:
    """Refuse NaN and Infinity, which RFC 8259 leaves out of JSON and other parsers choke on.

    The search is cheap and nearly always misses; only a hit, which may be in a string, is parsed.
    """
    if b"NaN" in body or b"Infinity" in body:
        json.loads(body, parse_constant=_refuse_constant)


def _refuse_unreadable(body: bytes) -> None:
    """Refuse what every consumer would find malformed. Only a body that could be is parsed."""
    refuse_deep(body)
    if len(body) > _SURE_DIGITS:
        from_json(body)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not part of JSON (RFC 8259, section 6)")
