"""A channel's declarations: exchanges, queues and bindings, made, checked and removed."""

from __future__ import annotations

from typing import Any

from pamqp.commands import Exchange as ExchangeMethods
from pamqp.commands import Queue as QueueMethods

from rabbitflow.devbroker.exchange import PREDECLARED, Binding, Exchange
from rabbitflow.devbroker.frames import Method, short, write_method, write_raw
from rabbitflow.devbroker.replies import (
    ChannelRefusal,
    named,
    not_implemented,
    precondition_failed,
)
from rabbitflow.devbroker.session import Session
from rabbitflow.devbroker.stream import Queue


class Declaring:
    """What one channel declares.

    Args:
        session: of its connection.
        channel: its number.
    """

    def __init__(self, session: Session, channel: int) -> None:
        self._session = session
        self._channel = channel
        self._latest_queue: str | None = None

    def find(self, name: str | None) -> Queue:
        """Return a queue; without a name, the one this channel declared last.

        Raises:
            ChannelRefusal: 404 or 405.
        """
        if not name:
            if self._latest_queue is None:
                raise ChannelRefusal(404, "no previously declared queue")
            name = self._latest_queue
        return self._session.vhost.queue(name, self._session)

    # Queues

    def declare_queue(self, method: QueueMethods.Declare) -> None:
        """Make a queue, or check that it is there."""
        session, name = self._session, method.queue or ""
        if method.passive:
            queue = session.vhost.queue(name, session)
            session.vhost.touch(queue)
        else:
            session.check("configure", "queue", name)
            arguments: dict[str, Any] = method.arguments or {}
            if "x-dead-letter-exchange" in arguments and name not in session.vhost.queues:
                session.check("read", "queue", name)
                session.check("write", "exchange", str(arguments["x-dead-letter-exchange"]))
            queue = session.vhost.declare_queue(
                name,
                arguments,
                durable=bool(method.durable),
                auto_delete=bool(method.auto_delete),
                owner=session if method.exclusive else None,
                connection=session,
            )
        self._latest_queue = queue.name
        if not method.nowait:
            counts = queue.ready.to_bytes(4, "big") + queue.consumers.shown.to_bytes(4, "big")
            arguments_raw = short(queue.name) + counts
            session.send(write_raw(self._channel, QueueMethods.DeclareOk.index, arguments_raw))

    def delete_queue(self, method: QueueMethods.Delete) -> None:
        """Delete a queue; harmless where there is none."""
        session, name = self._session, method.queue or self._latest_queue or ""
        session.check("configure", "queue", name)
        count = 0
        if name in session.vhost.queues:
            queue = session.vhost.queue(name, session)
            self._check_deletable(queue, method)
            count = session.vhost.delete_queue(queue)
        self._reply(QueueMethods.DeleteOk(count), nowait=method.nowait)

    def _check_deletable(self, queue: Queue, method: QueueMethods.Delete) -> None:
        what = named("queue", queue.name, self._session.vhost.name)
        if queue.declared.policy.type == "quorum" and (method.if_unused or method.if_empty):
            flag = "if-unused" if method.if_unused else "if-empty"
            raise not_implemented(
                f"cannot delete {what}. queue.delete operations with {flag} flag set are not"
                " supported by quorum queues"
            )
        if queue.declared.policy.type == "stream":
            return
        if method.if_unused and queue.consumers:
            raise precondition_failed(f"{what} in use")
        if method.if_empty and queue.ready:
            raise precondition_failed(f"{what} not empty")

    def purge(self, method: QueueMethods.Purge) -> None:
        """Drop what waits in a queue."""
        queue = self.find(method.queue)
        self._session.check("read", "queue", queue.name)
        self._reply(QueueMethods.PurgeOk(queue.purge()), nowait=method.nowait)

    # Bindings

    def bind_queue(self, method: QueueMethods.Bind) -> None:
        """Bind a queue to an exchange."""
        queue = self.find(method.queue)
        binding = _binding("queue", queue.name, method.routing_key, method.arguments)
        self._bind(method.exchange, binding, remove=False)
        self._reply(QueueMethods.BindOk(), nowait=method.nowait)

    def unbind_queue(self, method: QueueMethods.Unbind) -> None:
        """Undo a queue's binding; harmless where there is none."""
        name = method.queue or self._latest_queue or ""
        binding = _binding("queue", name, method.routing_key, method.arguments)
        self._bind(method.exchange, binding, remove=True)
        self._reply(QueueMethods.UnbindOk(), nowait=False)

    def bind_exchange(self, method: ExchangeMethods.Bind) -> None:
        """Bind an exchange to another."""
        destination = method.destination or ""
        self._session.vhost.exchange(destination)
        binding = _binding("exchange", destination, method.routing_key, method.arguments)
        self._bind(method.source, binding, remove=False)
        self._reply(ExchangeMethods.BindOk(), nowait=method.nowait)

    def unbind_exchange(self, method: ExchangeMethods.Unbind) -> None:
        """Undo an exchange's binding; harmless where there is none."""
        binding = _binding(
            "exchange", method.destination or "", method.routing_key, method.arguments
        )
        self._bind(method.source, binding, remove=True)
        self._reply(ExchangeMethods.UnbindOk(), nowait=method.nowait)

    def _bind(self, exchange: str | None, binding: Binding, *, remove: bool) -> None:
        session, source = self._session, exchange or ""
        kind, name = binding.destination
        _refuse_default(source)
        if kind == "exchange":
            _refuse_default(name)
        session.check("write", kind, name)
        session.check("read", "exchange", source)
        if remove:
            session.vhost.unbind(source, binding)
        else:
            session.vhost.bind(source, binding)

    # Exchanges

    def declare_exchange(self, method: ExchangeMethods.Declare) -> None:
        """Make an exchange, or check that it is there."""
        session, name = self._session, method.exchange or ""
        _refuse_default(name)
        if method.passive:
            session.vhost.exchange(name)
        else:
            session.check("configure", "exchange", name)
            session.vhost.declare_exchange(
                Exchange(
                    name,
                    method.exchange_type or "direct",
                    durable=bool(method.durable),
                    auto_delete=bool(method.auto_delete),
                    internal=bool(method.internal),
                    arguments=dict(method.arguments or {}),
                )
            )
        self._reply(ExchangeMethods.DeclareOk(), nowait=method.nowait)

    def delete_exchange(self, method: ExchangeMethods.Delete) -> None:
        """Delete an exchange; harmless where there is none."""
        session, name = self._session, method.exchange or ""
        _refuse_default(name)
        session.check("configure", "exchange", name)
        what = named("exchange", name, session.vhost.name)
        if name in PREDECLARED:
            raise ChannelRefusal(403, f"deletion of system {what} not allowed")
        exchange = session.vhost.exchanges.get(name)
        if exchange is not None and method.if_unused and exchange.bindings:
            raise precondition_failed(f"{what} in use")
        session.vhost.delete_exchange(name)
        self._reply(ExchangeMethods.DeleteOk(), nowait=method.nowait)

    def _reply(self, method: Method, *, nowait: bool | None) -> None:
        if not nowait:
            self._session.send(write_method(self._channel, method))


def _binding(
    kind: str, name: str, routing_key: str | None, arguments: dict[str, Any] | None
) -> Binding:
    written = tuple(sorted((arguments or {}).items()))
    return Binding((kind, name), routing_key or "", written)


def _refuse_default(exchange: str) -> None:
    if not exchange:
        raise ChannelRefusal(403, "operation not permitted on the default exchange")
