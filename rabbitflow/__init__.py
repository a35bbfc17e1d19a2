"""rabbitflow: announce what happened, let others react. Event workers on RabbitMQ."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from rabbitflow._version import __version__

if TYPE_CHECKING:
    from rabbitflow.breaker import Breaker
    from rabbitflow.consumer import Consumer
    from rabbitflow.context import Context
    from rabbitflow.encryption import Encrypted
    from rabbitflow.errors import (
        AccessRefused,
        AlreadyHandled,
        BatchFailed,
        BrokerError,
        BrokerUnavailable,
        ConcurrencyError,
        ConfigurationError,
        DeadLetter,
        DuplicateEvent,
        EventError,
        PublishRefused,
        PublishTimeout,
        RabbitflowError,
        RetryLater,
        StoreError,
        StoreUnavailable,
        TopologyMismatch,
        Unroutable,
    )
    from rabbitflow.event import Event
    from rabbitflow.publisher import Publisher
    from rabbitflow.retry import Retry
    from rabbitflow.store import EventStore
    from rabbitflow.syncpublisher import SyncPublisher
    from rabbitflow.upcast import Upcasters

__all__ = [
    "AccessRefused",
    "AlreadyHandled",
    "BatchFailed",
    "Breaker",
    "BrokerError",
    "BrokerUnavailable",
    "ConcurrencyError",
    "ConfigurationError",
    "Consumer",
    "Context",
    "DeadLetter",
    "DuplicateEvent",
    "Encrypted",
    "Event",
    "EventError",
    "EventStore",
    "PublishRefused",
    "PublishTimeout",
    "Publisher",
    "RabbitflowError",
    "Retry",
    "RetryLater",
    "StoreError",
    "StoreUnavailable",
    "SyncPublisher",
    "TopologyMismatch",
    "Unroutable",
    "Upcasters",
    "__version__",
]

_PLACES = {
    "AccessRefused": "rabbitflow.errors",
    "AlreadyHandled": "rabbitflow.errors",
    "BatchFailed": "rabbitflow.errors",
    "Breaker": "rabbitflow.breaker",
    "BrokerError": "rabbitflow.errors",
    "BrokerUnavailable": "rabbitflow.errors",
    "ConcurrencyError": "rabbitflow.errors",
    "ConfigurationError": "rabbitflow.errors",
    "Consumer": "rabbitflow.consumer",
    "Context": "rabbitflow.context",
    "DeadLetter": "rabbitflow.errors",
    "DuplicateEvent": "rabbitflow.errors",
    "Encrypted": "rabbitflow.encryption",
    "Event": "rabbitflow.event",
    "EventError": "rabbitflow.errors",
    "EventStore": "rabbitflow.store",
    "PublishRefused": "rabbitflow.errors",
    "PublishTimeout": "rabbitflow.errors",
    "Publisher": "rabbitflow.publisher",
    "RabbitflowError": "rabbitflow.errors",
    "Retry": "rabbitflow.retry",
    "RetryLater": "rabbitflow.errors",
    "StoreError": "rabbitflow.errors",
    "StoreUnavailable": "rabbitflow.errors",
    "SyncPublisher": "rabbitflow.syncpublisher",
    "TopologyMismatch": "rabbitflow.errors",
    "Unroutable": "rabbitflow.errors",
    "Upcasters": "rabbitflow.upcast",
}


def __getattr__(name: str) -> Any:
    # Imported when first asked for: who only supervises, or asks for --help, needs neither the
    # client library nor pydantic, and nobody but its users needs the extra ``store``.
    place = _PLACES.get(name)
    if place is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(place), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
