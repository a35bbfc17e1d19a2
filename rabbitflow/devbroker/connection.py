"""One client's connection: bytes in, bytes out, and what ends it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

from pamqp import commands

from rabbitflow.devbroker.access import User
from rabbitflow.devbroker.activity import Activity
from rabbitflow.devbroker.channel import Channel
from rabbitflow.devbroker.clock import Clock, Timer
from rabbitflow.devbroker.frames import (
    ACCEPTED_HEADERS,
    HEARTBEAT,
    METHOD,
    PROTOCOL_HEADER,
    Frame,
    FrameReader,
    read_method,
    write_method,
)
from rabbitflow.devbroker.handshake import HANDSHAKE_WITHIN_S, Agreed, Handshake
from rabbitflow.devbroker.heartbeat import Heartbeat
from rabbitflow.devbroker.replies import ChannelRefusal, ConnectionRefusal
from rabbitflow.devbroker.sending import Sending
from rabbitflow.devbroker.session import Faults, Session
from rabbitflow.devbroker.vhost import VirtualHost

CLOSE_WITHIN_S = 5.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a connection needs of its broker.

    Fields:
        connections: all that are open; a connection adds and removes itself.
        heartbeat_clock: by which peers are given up: the real time, whatever messages see.
    """

    users: Mapping[str, User]
    vhosts: Mapping[str, VirtualHost]
    connections: set[Connection]
    activity: Activity
    faults: Faults
    heartbeat_s: int
    heartbeat_clock: Clock


class Connection(asyncio.Protocol):
    """Everything one client says is done in the turn of the event loop in which it is read."""

    def __init__(self, around: Surroundings) -> None:
        self.session: Session | None = None
        self._around = around
        self._handshake = Handshake(around.users, around.vhosts, around.heartbeat_s)
        self._reader = FrameReader()
        self._header = b""
        self._channels: dict[int, Channel] = {}
        self._channel_max = 0
        self._heartbeat: Heartbeat | None = None
        self._deadline: Timer | None = None
        self._is_closing = False
        self._transport: asyncio.Transport
        self._sending: Sending

    # What the event loop calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client is there."""
        self._transport = cast(asyncio.Transport, transport)
        self._sending = Sending(self._transport, self._on_sent, self._on_congestion)
        self._around.connections.add(self)
        self._around.activity.counters.connections += 1
        self._end_unless_within(HANDSHAKE_WITHIN_S)
        self._around.activity.touch()

    def data_received(self, data: bytes) -> None:
        """The client said something."""
        if self._heartbeat is not None:
            self._heartbeat.heard()
        try:
            if len(self._header) < len(PROTOCOL_HEADER):
                data = self._greet(data)
            for frame in self._reader.feed(data):
                self._receive(frame)
        except ConnectionRefusal as refusal:
            self._refuse(refusal)
        except Exception:
            # A fault of ours must not take the broker, and everybody else, along.
            logger.exception("a frame could not be handled")
            self._refuse(ConnectionRefusal(541, "the broker has a fault; see its log"))
        if self.session is not None:
            self.session.confirm()
        self._around.activity.touch()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone, or was sent away."""
        self._around.connections.discard(self)
        if self._deadline is not None:
            self._deadline.cancel()
        if self._heartbeat is not None:
            self._heartbeat.stop()
        self._sending.stop()
        self._release()
        self._around.activity.touch()

    def pause_writing(self) -> None:
        """The client reads more slowly than it is sent to."""
        self._sending.pause(is_paused=True)

    def resume_writing(self) -> None:
        """It has caught up."""
        self._sending.pause(is_paused=False)
        self._around.activity.touch()

    # What the broker asks

    def hush(self) -> None:
        """Hand out nothing more here: what others give back is not for a connection that ends."""
        if self.session is not None:
            self.session.is_congested = True

    def abort(self) -> None:
        """Reset the connection, as a network that fails does."""
        self._transport.abort()
        self._release()

    def close(self, code: int, text: str) -> None:
        """End the connection as an operator does."""
        self._refuse(ConnectionRefusal(code, text))

    def confirm(self) -> None:
        """Send the confirms that were held."""
        if self.session is not None:
            self.session.confirm()

    # Frames

    def _greet(self, data: bytes) -> bytes:
        """Read the protocol header, and return what follows it."""
        missing = len(PROTOCOL_HEADER) - len(self._header)
        self._header += data[:missing]
        if len(self._header) == len(PROTOCOL_HEADER):
            if self._header not in ACCEPTED_HEADERS:
                # The specification's answer to any other protocol, garbage included.
                self._transport.write(PROTOCOL_HEADER)
                self._end()
                return b""
            self._sending.send(write_method(0, self._handshake.start()))
        return data[missing:]

    def _receive(self, frame: Frame) -> None:
        if frame.channel == 0:
            self._receive_on_zero(frame)
        elif self._is_closing:
            return
        elif self.session is None:
            raise ConnectionRefusal(504, "no channel before the connection is open")
        else:
            self._receive_on_channel(frame, self.session)

    def _receive_on_zero(self, frame: Frame) -> None:
        if frame.type != METHOD:
            # A heartbeat; anything else there has no meaning, and RabbitMQ lets it pass.
            return
        method = read_method(frame.payload)
        if isinstance(method, commands.Connection.Close):
            self._sending.send(write_method(0, commands.Connection.CloseOk()))
            self._end()
        elif isinstance(method, commands.Connection.CloseOk):
            self._end()
        elif self._is_closing:
            return
        elif self.session is not None:
            raise ConnectionRefusal(504, "unexpected method in connection state running")
        elif isinstance(method, commands.Connection.TuneOk):
            self._handshake.tune(method)
        else:
            self._sending.send(write_method(0, self._handshake.answer(method)))
            if self._handshake.agreed is not None:
                self._open(self._handshake.agreed)

    def _open(self, agreed: Agreed) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self._reader.frame_max = agreed.frame_max
        self._channel_max = agreed.channel_max
        self.session = Session(
            send=self._sending.send,
            vhost=self._around.vhosts[agreed.vhost],
            user=agreed.user,
            users=self._around.users,
            counters=self._around.activity.counters,
            faults=self._around.faults,
            frame_max=agreed.frame_max,
            hears_cancels=agreed.hears_cancels,
        )
        if agreed.heartbeat_s:
            self._heartbeat = Heartbeat(
                self._around.heartbeat_clock,
                agreed.heartbeat_s,
                lambda: self._sending.send(HEARTBEAT),
                self.abort,
            )

    def _receive_on_channel(self, frame: Frame, session: Session) -> None:
        channel = self._channels.get(frame.channel)
        if channel is None:
            self._open_channel(frame, session)
            return
        try:
            channel.receive(frame)
        except ChannelRefusal as refusal:
            channel.refuse(refusal)
        if channel.is_closed:
            del self._channels[frame.channel]

    def _open_channel(self, frame: Frame, session: Session) -> None:
        method = read_method(frame.payload) if frame.type == METHOD else None
        if not isinstance(method, commands.Channel.Open):
            raise ConnectionRefusal(504, "expected 'channel.open'")
        if len(self._channels) >= self._channel_max:
            count = len(self._channels)
            raise ConnectionRefusal(
                530,
                f"number of channels opened ({count}) has reached the negotiated"
                f" channel_max ({self._channel_max})",
            )
        self._channels[frame.channel] = Channel(session, frame.channel)
        self._sending.send(write_method(frame.channel, commands.Channel.OpenOk()))

    # The end

    def _refuse(self, refusal: ConnectionRefusal) -> None:
        if self._is_closing:
            # It does not even end as it should.
            self._end()
            return
        self._is_closing = True
        self._release()
        if self._header in ACCEPTED_HEADERS:
            close = commands.Connection.Close(refusal.code, refusal.text, 0, 0)
            self._sending.send(write_method(0, close))
        self._end_unless_within(CLOSE_WITHIN_S)

    def _release(self) -> None:
        """Give back everything the client held, and delete what was its alone."""
        self.hush()
        channels, self._channels = self._channels, {}
        for channel in channels.values():
            channel.release()
        session = self.session
        if session is not None:
            for queue in list(session.vhost.queues.values()):
                if queue.declared.owner is session:
                    session.vhost.delete_queue(queue)

    def _end_unless_within(self, seconds: float) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        clock = self._around.heartbeat_clock
        self._deadline = clock.call_at(clock.now() + seconds, self._transport.abort)

    def _end(self) -> None:
        self._is_closing = True
        self._sending.flush()
        self._release()
        self._transport.close()

    def _on_congestion(self, is_congested: bool) -> None:
        if self.session is None or self._is_closing or self._transport.is_closing():
            return
        self.session.is_congested = is_congested
        if not is_congested:
            for channel in tuple(self._channels.values()):
                channel.pump()

    def _on_sent(self) -> None:
        if self._heartbeat is not None:
            self._heartbeat.sent()
