"""A queue's arguments: which a queue type takes, what they mean, and where two sets differ."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from rabbitflow.devbroker.message import LONGEST_TTL_MS
from rabbitflow.devbroker.replies import (
    ChannelRefusal,
    named,
    not_implemented,
    precondition_failed,
)

Arguments = Mapping[str, Any]

_SHARED = {"x-queue-type", "x-max-length-bytes"}
_HOLDING = _SHARED | {
    "x-expires",
    "x-message-ttl",
    "x-dead-letter-exchange",
    "x-dead-letter-routing-key",
    "x-max-length",
    "x-overflow",
    "x-single-active-consumer",
}
_ACCEPTED = {
    "classic": _HOLDING
    | {"x-max-priority", "x-queue-mode", "x-queue-version", "x-queue-master-locator"},
    "quorum": _HOLDING
    | {
        "x-dead-letter-strategy",
        "x-delivery-limit",
        "x-max-in-memory-length",
        "x-max-in-memory-bytes",
        "x-quorum-initial-group-size",
        "x-queue-leader-locator",
    },
    "stream": _SHARED
    | {
        "x-max-age",
        "x-stream-max-segment-size-bytes",
        "x-initial-cluster-size",
        "x-queue-leader-locator",
    },
}
_LAST = ("x-delivery-limit", "x-queue-type")
_KNOWN = frozenset().union(*_ACCEPTED.values())

_AGE = re.compile(r"([0-9]+)([YMDhms])")
_AGE_UNITS_S = {"Y": 31_536_000, "M": 2_592_000, "D": 86_400, "h": 3_600, "m": 60, "s": 1}


@dataclass(frozen=True, slots=True)
class Policy:
    """What a queue's arguments ask of it. None is no limit.

    Fields:
        type: ``classic``, ``quorum`` or ``stream``.
        message_ttl_s: after which a message dies, once it is at the head.
        expires_s: after which an unused queue is deleted.
        max_length: messages that may wait.
        max_bytes: bytes that may wait, or that a stream keeps.
        overflow: ``drop-head``, ``reject-publish`` or ``reject-publish-dlx``.
        dead_letter_exchange: where what dies goes.
        dead_letter_routing_key: with which key; its own where None.
        keeps_until_taken: at-least-once: what dies stays until its next queue has it.
        delivery_limit: of returns; one more and the message dies.
        single_active_consumer: the first consumer gets everything.
        max_age_s: of what a stream keeps.
    """

    type: str
    message_ttl_s: float | None = None
    expires_s: float | None = None
    max_length: int | None = None
    max_bytes: int | None = None
    overflow: str = "drop-head"
    dead_letter_exchange: str | None = None
    dead_letter_routing_key: str | None = None
    keeps_until_taken: bool = False
    delivery_limit: int | None = None
    single_active_consumer: bool = False
    max_age_s: float | None = None

    @classmethod
    def of(cls, name: str, vhost: str, arguments: Arguments) -> Policy:
        """Read and check a queue's arguments.

        Raises:
            ChannelRefusal: 406, RabbitMQ would not take them.
            ConnectionRefusal: 540, it would, and this broker does not do what they ask.
        """
        kind = _check_type(name, vhost, arguments)
        for argument, value in arguments.items():
            if argument in _KNOWN and argument not in _ACCEPTED[kind]:
                raise precondition_failed(
                    f"invalid arg '{argument}' for {named('queue', name, vhost)}"
                    f" of queue type rabbit_{kind}_queue"
                )
            why = _VALUES[argument](value) if argument in _VALUES else None
            if why is not None:
                raise _invalid(argument, name, vhost, why)
        _check_dead_lettering(name, vhost, arguments)
        if "x-max-priority" in arguments:
            raise not_implemented("this broker for development has no priority queues")
        overflow = arguments.get("x-overflow", "drop-head")
        strategy = arguments.get("x-dead-letter-strategy")
        limit = arguments.get("x-delivery-limit")
        return cls(
            type=kind,
            message_ttl_s=_seconds(arguments.get("x-message-ttl")),
            expires_s=_seconds(arguments.get("x-expires")),
            max_length=arguments.get("x-max-length"),
            max_bytes=arguments.get("x-max-length-bytes"),
            overflow=overflow,
            dead_letter_exchange=arguments.get("x-dead-letter-exchange"),
            dead_letter_routing_key=arguments.get("x-dead-letter-routing-key"),
            # Without reject-publish RabbitMQ falls back to at-most-once.
            keeps_until_taken=strategy == "at-least-once" and overflow == "reject-publish",
            # RabbitMQ takes any value here, and none but a number has an effect.
            delivery_limit=limit if _is_integer(limit) else None,
            single_active_consumer=arguments.get("x-single-active-consumer", False),
            max_age_s=age_s(arguments["x-max-age"]) if "x-max-age" in arguments else None,
        )


def age_s(written: str) -> float | None:
    """Return how many seconds ``7D``, ``12h`` and the like are; None for anything else."""
    found = _AGE.fullmatch(written)
    return None if found is None else float(found[1]) * _AGE_UNITS_S[found[2]]


def inequivalent(
    kind: str, name: str, vhost: str, argument: str, received: Any, current: Any
) -> ChannelRefusal:
    """Declared again with another value: 406, in the words that clients read the values from."""
    if received is None:
        said = f"received none but current is {_with_type(current)}"
    elif current is None:
        said = f"received {_with_type(received)} but current is none"
    else:
        said = f"received '{_written(received)}' but current is '{_written(current)}'"
    return precondition_failed(
        f"inequivalent arg '{argument}' for {named(kind, name, vhost)}: {said}"
    )


def check_equal(name: str, vhost: str, received: Arguments, current: Arguments) -> None:
    """Compare the arguments a queue is declared with to the ones it has.

    Raises:
        ChannelRefusal: 406, naming the first that differs.
    """
    # What RabbitMQ does not know is not compared either. It compares the type first, if one is
    # asked for, and last if none is.
    first = ["x-queue-type"] if "x-queue-type" in received else []
    for argument in (*first, *sorted(_KNOWN - {"x-delivery-limit", "x-queue-type"}), *_LAST):
        wanted, has = received.get(argument), current.get(argument)
        if argument == "x-queue-type" and {wanted, has} == {None, "classic"}:
            continue
        if wanted != has:
            raise inequivalent("queue", name, vhost, argument, wanted, has)


def _check_type(name: str, vhost: str, arguments: Arguments) -> str:
    kind = arguments.get("x-queue-type", "classic")
    if not isinstance(kind, str):
        why = f"{{unacceptable_type,{_type_of(kind)}}}"
    elif kind not in _ACCEPTED:
        why = f"\"unsupported queue type '{kind}'\""
    else:
        return kind
    raise _invalid("x-queue-type", name, vhost, why)


def _check_dead_lettering(name: str, vhost: str, arguments: Arguments) -> None:
    for argument in ("x-dead-letter-exchange", "x-dead-letter-routing-key"):
        value = arguments.get(argument, "")
        if not isinstance(value, str):
            raise precondition_failed(
                f"invalid type '{_type_of(value)}' for arg '{argument}'"
                f" in {named('queue', name, vhost)}"
            )
    if "x-dead-letter-routing-key" in arguments and "x-dead-letter-exchange" not in arguments:
        why = "routing_key_but_no_dlx_defined"
        raise _invalid("x-dead-letter-routing-key", name, vhost, why)


def _invalid(argument: str, name: str, vhost: str, why: str) -> ChannelRefusal:
    return precondition_failed(f"invalid arg '{argument}' for {named('queue', name, vhost)}: {why}")


def _seconds(milliseconds: int | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1000


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _number(least: int, most: int | None = None) -> Callable[[Any], str | None]:
    def check(value: Any) -> str | None:
        if not _is_integer(value):
            return f'"expected integer, got {_type_of(value)}"'
        if value < 0:
            return f"{{value_negative,{value}}}"
        if value < least:
            return "{value_zero,0}"
        if most is not None and value > most:
            return f"{{value_too_large,{value}}}"
        return None

    return check


def _one_of(*allowed: str, otherwise: str) -> Callable[[Any], str | None]:
    return lambda value: None if value in allowed else otherwise


def _boolean(value: Any) -> str | None:
    return None if isinstance(value, bool) else f"{{unacceptable_type,{_type_of(value)}}}"


def _age(value: Any) -> str | None:
    if not isinstance(value, str):
        return f"{{unacceptable_type,{_type_of(value)}}}"
    return None if age_s(value) is not None else "invalid_max_age"


_VALUES: dict[str, Callable[[Any], str | None]] = {
    "x-message-ttl": _number(0, LONGEST_TTL_MS),
    "x-expires": _number(1, LONGEST_TTL_MS),
    "x-max-length": _number(0),
    "x-max-length-bytes": _number(0),
    "x-max-priority": _number(0),
    "x-overflow": _one_of(
        "drop-head", "reject-publish", "reject-publish-dlx", otherwise="invalid_overflow"
    ),
    "x-dead-letter-strategy": _one_of(
        "at-most-once", "at-least-once", otherwise="invalid_dlx_strategy"
    ),
    "x-single-active-consumer": _boolean,
    "x-max-age": _age,
}


def _type_of(value: object) -> str:
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int):
        return "signedint" if -(2**31) <= value < 2**31 else "long"
    names = {str: "longstr", float: "double", list: "array", dict: "table", type(None): "void"}
    return names.get(type(value), "binary")


def _written(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _with_type(value: object) -> str:
    return f"the value '{_written(value)}' of type '{_type_of(value)}'"
