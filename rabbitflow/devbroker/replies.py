"""How the broker refuses: RabbitMQ's reply codes and texts, as exceptions."""

from __future__ import annotations

NAMES = {
    403: "ACCESS_REFUSED",
    404: "NOT_FOUND",
    405: "RESOURCE_LOCKED",
    406: "PRECONDITION_FAILED",
    501: "FRAME_ERROR",
    502: "SYNTAX_ERROR",
    503: "COMMAND_INVALID",
    504: "CHANNEL_ERROR",
    505: "UNEXPECTED_FRAME",
    530: "NOT_ALLOWED",
    540: "NOT_IMPLEMENTED",
    541: "INTERNAL_ERROR",
}


class Refusal(Exception):
    """An AMQP error: a code and the text that RabbitMQ would write."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(code, text)
        self.code = code
        # A reply text is a short string: 255 bytes (AMQP 0-9-1, section 4.2.5.3).
        self.text = f"{NAMES[code]} - {text}".encode()[:255].decode(errors="ignore")


class ChannelRefusal(Refusal):
    """Closes the channel it was asked on."""


class ConnectionRefusal(Refusal):
    """Closes the whole connection."""


def named(kind: str, name: str, vhost: str) -> str:
    """Return a queue or an exchange as RabbitMQ's texts name it."""
    return f"{kind} '{name}' in vhost '{vhost}'"


def not_found(kind: str, name: str, vhost: str) -> ChannelRefusal:
    """There is no such queue or exchange."""
    return ChannelRefusal(404, f"no {named(kind, name, vhost)}")


def locked(name: str, vhost: str) -> ChannelRefusal:
    """The queue is exclusive, and another connection's."""
    return ChannelRefusal(
        405,
        f"cannot obtain exclusive access to locked {named('queue', name, vhost)}. It could be"
        " originally declared on another connection or the exclusive property value does not"
        " match that of the original declaration.",
    )


def only_consumed(name: str, vhost: str) -> ChannelRefusal:
    """405, basic.get on a quorum queue with a single active consumer."""
    return ChannelRefusal(
        405,
        f"cannot obtain access to locked {named('queue', name, vhost)}. basic.get operations are"
        " not supported by quorum queues with single active consumer",
    )


def precondition_failed(text: str) -> ChannelRefusal:
    """What was asked for does not fit what is there."""
    return ChannelRefusal(406, text)


def not_implemented(text: str) -> ConnectionRefusal:
    """RabbitMQ, or this broker, does not do that."""
    return ConnectionRefusal(540, text)
