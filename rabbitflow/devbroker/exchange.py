"""Exchanges: to which queues, or further exchanges, a routing key leads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from rabbitflow.devbroker.replies import ConnectionRefusal

TYPES = ("direct", "fanout", "topic", "headers")
PREDECLARED = {
    "": "direct",
    "amq.direct": "direct",
    "amq.fanout": "fanout",
    "amq.topic": "topic",
    "amq.headers": "headers",
    "amq.match": "headers",
}

Destination = tuple[str, str]
"""A kind, ``queue`` or ``exchange``, and a name."""


@dataclass(frozen=True, slots=True)
class Binding:
    """One way from an exchange to a destination. Two that are equal are one."""

    destination: Destination
    routing_key: str
    arguments: tuple[tuple[str, Any], ...] = ()


@dataclass(slots=True)
class Exchange:
    """An exchange and its bindings, in the order they were made."""

    name: str
    type: str
    durable: bool
    auto_delete: bool = False
    internal: bool = False
    arguments: dict[str, Any] = field(default_factory=dict)
    bindings: dict[str, Binding] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.type not in TYPES:
            raise ConnectionRefusal(503, f"invalid exchange type '{self.type}'")

    @property
    def alternate(self) -> str | None:
        """Where what it can't route goes."""
        name = self.arguments.get("alternate-exchange")
        return name if isinstance(name, str) else None

    def bind(self, binding: Binding) -> None:
        """Add a binding; one that is there already stays."""
        # Arguments may hold lists and tables, which have no hash; their repr is as good a key.
        self.bindings.setdefault(repr(binding), binding)

    def unbind(self, binding: Binding) -> bool:
        """Remove a binding; return whether it was there."""
        return self.bindings.pop(repr(binding), None) is not None

    def remove_destination(self, destination: Destination) -> bool:
        """Remove every binding to ``destination``; return whether there was one."""
        gone = [key for key, each in self.bindings.items() if each.destination == destination]
        for key in gone:
            del self.bindings[key]
        return bool(gone)

    def matches(self, routing_key: str, headers: dict[str, Any]) -> Iterator[Destination]:
        """Yield where a message goes, some of them perhaps twice."""
        matching = _MATCHING[self.type]
        for binding in self.bindings.values():
            if matching(binding, routing_key, headers):
                yield binding.destination


def _direct(binding: Binding, routing_key: str, headers: dict[str, Any]) -> bool:
    return binding.routing_key == routing_key


def _fanout(binding: Binding, routing_key: str, headers: dict[str, Any]) -> bool:
    return True


def _topic(binding: Binding, routing_key: str, headers: dict[str, Any]) -> bool:
    """``*`` is one word, ``#`` any number of them, none included."""
    words = _words(routing_key)
    # How many words may be used up so far. No pattern takes longer than patterns times words.
    used = {0}
    for wanted in _words(binding.routing_key):
        if wanted == "#":
            used = set(range(min(used), len(words) + 1))
        else:
            used = {n + 1 for n in used if n < len(words) and wanted in ("*", words[n])}
        if not used:
            return False
    return len(words) in used


def _headers(binding: Binding, routing_key: str, headers: dict[str, Any]) -> bool:
    wanted = [(name, value) for name, value in binding.arguments if not name.startswith("x-")]
    how = dict(binding.arguments).get("x-match", "all")
    # A wanted header without a value (void) asks only that it is there.
    found = (name in headers and value in (None, headers[name]) for name, value in wanted)
    return any(found) if str(how).startswith("any") else all(found)


_MATCHING: dict[str, Callable[[Binding, str, dict[str, Any]], bool]] = {
    "direct": _direct,
    "fanout": _fanout,
    "topic": _topic,
    "headers": _headers,
}


def _words(key: str) -> list[str]:
    return key.split(".") if key else []
