"""A message as the broker keeps it: where it was published, its properties, its body."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import Any

from pamqp.commands import Basic
from pamqp.header import ContentHeader

from rabbitflow.devbroker.frames import MALFORMED
from rabbitflow.devbroker.properties import check, edited, long, with_number
from rabbitflow.devbroker.replies import ConnectionRefusal, not_implemented, precondition_failed

PERSISTENT = 2
LONGEST_TTL_MS = 315_360_000_000
"""Ten years: RabbitMQ takes no longer time-to-live."""

_LARGEST_BODY_BYTES = 134_217_728
# A content header begins with its class, a weight that nobody uses, and the size of the body.
_PREFIX = struct.Struct(">HHQ")
_NO_SIZE = _PREFIX.pack(Basic.frame_id, 0, 0)

Headers = dict[str, Any]


@dataclass(slots=True, eq=False)
class Message:
    """A published message. It is never changed: what dies or is redelivered is a new one.

    Fields:
        exchange: it was published to.
        routing_key: it was published with.
        properties: decoded.
        raw: the same as bytes, handed on as they came.
        body: as it came.
    """

    exchange: str
    routing_key: str
    properties: Basic.Properties
    raw: bytes
    body: bytes

    @property
    def headers(self) -> Headers:
        """Its headers; an empty dict where it has none."""
        headers: Headers = self.properties.headers or {}
        return headers

    @property
    def ttl_ms(self) -> int | None:
        """How long it may wait in a queue by its own wish."""
        return None if self.properties.expiration is None else int(self.properties.expiration)

    @property
    def is_persistent(self) -> bool:
        """Whether it would survive a restart in a durable classic queue."""
        return self.properties.delivery_mode == PERSISTENT

    def raw_with(self, name: str, number: int) -> bytes:
        """Return its properties as bytes with one header more, a number, added or replaced."""
        if name in self.headers:
            return edited(self.raw, add={name: long(number)})
        return with_number(self.raw, name, number)

    def without(self, header: str) -> Message:
        """Return the message without a header."""
        return Message.of(
            self.exchange, self.routing_key, edited(self.raw, drop=(header,)), self.body
        )

    @classmethod
    def of(cls, exchange: str, routing_key: str, raw: bytes, body: bytes) -> Message:
        """Return a message from its properties as bytes."""
        return cls(exchange, routing_key, decoded(raw), raw, body)


def decoded(raw: bytes) -> Basic.Properties:
    """Return properties from bytes. Raises one of MALFORMED where they are none."""
    check(raw)
    header = ContentHeader()
    header.unmarshal(_NO_SIZE + raw)
    return header.properties


@dataclass(slots=True)
class Content:
    """A message that is still arriving: its method came, then its header, then its body.

    Fields:
        publish: the method.
        header: None until it came.
        size: of the body, in bytes, as the header says.
    """

    publish: Basic.Publish
    header: bytes | None = None
    properties: Basic.Properties = field(default_factory=Basic.Properties)
    size: int = 0
    _pieces: list[bytes] = field(default_factory=list)
    _received: int = 0

    @property
    def is_complete(self) -> bool:
        """Whether all of it is there."""
        return self.header is not None and self._received == self.size

    def take_header(self, payload: bytes) -> None:
        """Read the header frame.

        Raises:
            ConnectionRefusal: 502, it can't be decoded.
            ChannelRefusal: 406, a body larger than RabbitMQ's 128 MB.
        """
        try:
            _, _, size = _PREFIX.unpack_from(payload)
            self.header = payload[_PREFIX.size :]
            self.properties = decoded(self.header)
        except MALFORMED as error:
            raise ConnectionRefusal(502, "a content header can't be decoded") from error
        if size > _LARGEST_BODY_BYTES:
            raise precondition_failed(
                f"message size {size} is larger than configured max size {_LARGEST_BODY_BYTES}"
            )
        self.size = size

    def take_body(self, payload: bytes) -> None:
        """Add a body frame.

        Raises:
            ConnectionRefusal: 501, it brings more than the header said.
        """
        self._pieces.append(payload)
        self._received += len(payload)
        if self._received > self.size:
            raise ConnectionRefusal(501, f"content of {self.size} octets is exceeded by its body")

    def message(self, user: str) -> Message:
        """Return the whole message, once it is complete.

        Raises:
            ChannelRefusal: 406, a property that RabbitMQ refuses.
        """
        properties = self.properties
        _check(properties, user)
        if self.publish.immediate:
            raise not_implemented("immediate=true")
        return Message(
            self.publish.exchange or "",
            self.publish.routing_key or "",
            properties,
            self.header or b"",
            self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces),
        )


def _check(properties: Basic.Properties, user: str) -> None:
    if properties.delivery_mode not in (None, 1, PERSISTENT):
        mode = properties.delivery_mode
        raise precondition_failed(f"invalid message: {{delivery_mode_unknown,{mode}}}")
    if properties.user_id is not None and properties.user_id != user:
        raise precondition_failed(
            f"user_id property set to '{properties.user_id}' but authenticated user was '{user}'"
        )
    if properties.expiration is not None:
        _check_expiration(properties.expiration)
    headers = properties.headers
    if headers:
        for name in ("CC", "BCC"):
            if name in headers and not isinstance(headers[name], list):
                raise precondition_failed(
                    f'invalid message: {{unacceptable_type_in_header,"{name}",longstr}}'
                )


def _check_expiration(written: str) -> None:
    digits = written[1:] if written[:1] in ("-", "+") else written
    leading = len(digits) - len(digits.lstrip("0123456789"))
    if not leading:
        why = "no_integer"
    elif leading < len(digits):
        why = f'{{leftover_string,"{digits[leading:]}"}}'
    elif int(written) < 0:
        why = f"{{value_negative,{int(written)}}}"
    elif int(written) > LONGEST_TTL_MS:
        why = f"{{value_too_large,{int(written)}}}"
    else:
        return
    raise precondition_failed(f"invalid expiration '{written}': {why}")
