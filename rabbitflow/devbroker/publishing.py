"""A channel's publishes: content that arrives in pieces, returns, confirms."""

from __future__ import annotations

import struct

from pamqp.commands import Basic, Confirm

from rabbitflow.devbroker.frames import BODY, HEADER, short, write_content, write_method, write_raw
from rabbitflow.devbroker.message import Content, Message
from rabbitflow.devbroker.replies import ChannelRefusal, ConnectionRefusal, named
from rabbitflow.devbroker.session import Session

_NO_ROUTE = struct.pack(">H", 312) + short("NO_ROUTE")


class Publishing:
    """What one channel publishes.

    Args:
        session: of its connection.
        channel: its number.
    """

    def __init__(self, session: Session, channel: int) -> None:
        self._session = session
        self._channel = channel
        self._content: Content | None = None
        self._confirms = False
        self._published = 0
        self._confirmed = 0
        self._outcomes: list[bool] = []

    @property
    def expected(self) -> int | None:
        """The type of the frame that must come next, or None where it is a method."""
        if self._content is None:
            return None
        return HEADER if self._content.header is None else BODY

    def begin(self, method: Basic.Publish) -> None:
        """A publish; its content comes in the frames that follow."""
        self._content = Content(method)

    def take(self, kind: int, payload: bytes) -> None:
        """Take a frame of content.

        Raises:
            ConnectionRefusal: 505, it is not the one that must come next.
        """
        content = self._content
        if content is None:
            raise ConnectionRefusal(505, "expected method frame, got non method frame instead")
        if kind != self.expected:
            what = "header" if content.header is None else "body"
            raise ConnectionRefusal(
                505,
                f"expected content {what} for class 60, got non content {what} frame instead",
            )
        if kind == HEADER:
            content.take_header(payload)
        else:
            content.take_body(payload)
        if content.is_complete:
            self._content = None
            self._publish(content)

    def _publish(self, content: Content) -> None:
        session = self._session
        exchange = content.publish.exchange or ""
        session.check("write", "exchange", exchange)
        if session.vhost.exchange(exchange).internal:
            what = named("exchange", exchange, session.vhost.name)
            raise ChannelRefusal(403, f"cannot publish to internal {what}")
        message = content.message(session.user)
        outcome = session.vhost.publish(message)
        if not outcome.routed:
            session.counters.unroutable += 1
            if content.publish.mandatory:
                self._give_back(message)
        session.counters.refused += not outcome.taken
        if self._confirms:
            if not self._outcomes:
                session.confirming.append(self)
            self._outcomes.append(outcome.taken)
            self._published += 1

    def _give_back(self, message: Message) -> None:
        arguments = _NO_ROUTE + short(message.exchange) + short(message.routing_key)
        self._session.send(
            write_raw(self._channel, Basic.Return.index, arguments)
            + write_content(self._channel, message.raw, message.body, self._session.frame_max)
        )

    def select(self, method: Confirm.Select) -> None:
        """Confirm what is published from now on."""
        self._confirms = True
        if not method.nowait:
            self._session.send(write_method(self._channel, Confirm.SelectOk()))

    def confirm(self) -> None:
        """Send what is due: one frame for each run of publishes that went the same way."""
        outcomes, self._outcomes = self._outcomes, []
        run = 0
        for number, taken in enumerate(outcomes, 1):
            run += 1
            if number < len(outcomes) and outcomes[number] == taken:
                continue
            self._confirmed += run
            tag, multiple = self._confirmed, run > 1
            self._session.send(
                write_method(
                    self._channel, Basic.Ack(tag, multiple) if taken else Basic.Nack(tag, multiple)
                )
            )
            run = 0

    def abandon(self) -> None:
        """The channel is gone: what is not confirmed yet never will be."""
        self._outcomes.clear()
        self._content = None
