"""One channel: which method of a client is whose business."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pamqp.commands import Basic, Confirm, Exchange, Queue, Tx
from pamqp.commands import Channel as ChannelMethods

from rabbitflow.devbroker.consuming import Consuming
from rabbitflow.devbroker.declaring import Declaring
from rabbitflow.devbroker.frames import METHOD, Frame, Method, read_method, write_method
from rabbitflow.devbroker.publishing import Publishing
from rabbitflow.devbroker.replies import ChannelRefusal, ConnectionRefusal, not_implemented
from rabbitflow.devbroker.session import Session


class Channel:
    """A channel that is open, or that the broker has closed and the client not yet confirmed.

    Args:
        session: of its connection.
        number: of the channel.
    """

    def __init__(self, session: Session, number: int) -> None:
        self.is_closing = False
        self.is_closed = False
        self.number = number
        self._current: Method | None = None
        self._session = session
        self._publishing = Publishing(session, number)
        self._consuming = consuming = Consuming(session, number)
        self._declaring = declaring = Declaring(session, number)
        self._handlers: dict[type[Method], Callable[[Any], None]] = {
            Basic.Publish: self._publishing.begin,
            Basic.Ack: consuming.ack,
            Basic.Nack: consuming.nack,
            Basic.Reject: consuming.nack,
            Basic.Get: self._get,
            Basic.Consume: self._consume,
            Basic.Cancel: consuming.cancel,
            Basic.Qos: consuming.qos,
            Basic.Recover: consuming.recover,
            Basic.RecoverAsync: consuming.recover,
            Confirm.Select: self._publishing.select,
            Queue.Declare: declaring.declare_queue,
            Queue.Delete: declaring.delete_queue,
            Queue.Purge: declaring.purge,
            Queue.Bind: declaring.bind_queue,
            Queue.Unbind: declaring.unbind_queue,
            Exchange.Declare: declaring.declare_exchange,
            Exchange.Delete: declaring.delete_exchange,
            Exchange.Bind: declaring.bind_exchange,
            Exchange.Unbind: declaring.unbind_exchange,
            ChannelMethods.Open: self._open_again,
            ChannelMethods.Close: self._close,
            ChannelMethods.Flow: self._flow,
            # What a client answers to basic.cancel, which the broker does not wait for.
            Basic.CancelOk: lambda method: None,
            Tx.Select: self._transaction,
            Tx.Commit: self._transaction,
            Tx.Rollback: self._transaction,
        }

    def receive(self, frame: Frame) -> None:
        """Do what a frame asks for.

        Raises:
            ChannelRefusal: it ends the channel; :meth:`refuse` says so to the client.
            ConnectionRefusal: it ends the connection.
        """
        if frame.type != METHOD:
            if not self.is_closing:
                self._publishing.take(frame.type, frame.payload)
            return
        method = read_method(frame.payload)
        if self.is_closing:
            self._receive_while_closing(method)
            return
        if self._publishing.expected is not None:
            self._publishing.take(METHOD, b"")
        handler = self._handlers.get(type(method))
        if handler is None:
            raise ConnectionRefusal(503, "unimplemented method")
        self._current = method
        handler(method)

    def refuse(self, refusal: ChannelRefusal) -> None:
        """Close the channel from this side, because of the method it is at."""
        self._session.confirm()
        self.release()
        self.is_closing = True
        index = 0 if self._current is None else self._current.index
        close = ChannelMethods.Close(refusal.code, refusal.text, index >> 16, index & 0xFFFF)
        self._session.send(write_method(self.number, close))

    def release(self) -> None:
        """Give back what the channel holds."""
        self._publishing.abandon()
        self._consuming.release()

    def pump(self) -> None:
        """Take what waits, now that there is room."""
        self._consuming.pump()

    def _receive_while_closing(self, method: Method) -> None:
        # What was on its way when the channel was closed is dropped.
        if isinstance(method, ChannelMethods.CloseOk):
            self.is_closed = True
        elif isinstance(method, ChannelMethods.Close):
            self._session.send(write_method(self.number, ChannelMethods.CloseOk()))
            self.is_closed = True

    def _close(self, method: ChannelMethods.Close) -> None:
        # The client may open a channel of this number as soon as it reads the answer.
        self._session.confirm()
        self.release()
        self.is_closed = True
        self._session.send(write_method(self.number, ChannelMethods.CloseOk()))

    def _get(self, method: Basic.Get) -> None:
        queue = self._declaring.find(method.queue)
        self._session.check("read", "queue", queue.name)
        self._consuming.get(method, queue)

    def _consume(self, method: Basic.Consume) -> None:
        queue = self._declaring.find(method.queue)
        self._session.check("read", "queue", queue.name)
        self._consuming.consume(method, queue)

    def _flow(self, method: ChannelMethods.Flow) -> None:
        if not method.active:
            raise not_implemented("active=false")
        self._session.send(write_method(self.number, ChannelMethods.FlowOk(True)))

    def _open_again(self, method: ChannelMethods.Open) -> None:
        raise ConnectionRefusal(504, "second 'channel.open' seen")

    def _transaction(self, method: Method) -> None:
        raise not_implemented("this broker for development has no transactions")
