"""rabbitflow: announce what happened, let others react. Event workers on RabbitMQ."""

from typing import TYPE_CHECKING, Any

from rabbitflow._version import __version__
from rabbitflow.breaker import Breaker
from rabbitflow.consumer import Consumer
from rabbitflow.context import Context
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
from rabbitflow.syncpublisher import SyncPublisher
from rabbitflow.upcast import Upcasters

if TYPE_CHECKING:
    from rabbitflow.store import EventStore

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


def __getattr__(name: str) -> Any:
    # The extra ``store`` is not needed, nor imported, by those who only publish and consume.
    if name == "EventStore":
        from rabbitflow.store import EventStore  # noqa: PLC0415

        return EventStore
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
