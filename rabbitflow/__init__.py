"""rabbitflow: announce what happened, let others react. Event workers on RabbitMQ."""

from rabbitflow._version import __version__
from rabbitflow.breaker import Breaker
from rabbitflow.consumer import Consumer
from rabbitflow.context import Context
from rabbitflow.errors import (
    AccessRefused,
    BatchFailed,
    BrokerError,
    BrokerUnavailable,
    ConfigurationError,
    DeadLetter,
    EventError,
    PublishRefused,
    PublishTimeout,
    RabbitflowError,
    RetryLater,
    TopologyMismatch,
    Unroutable,
)
from rabbitflow.event import Event
from rabbitflow.publisher import Publisher, SyncPublisher
from rabbitflow.retry import Retry

__all__ = [
    "AccessRefused",
    "BatchFailed",
    "Breaker",
    "BrokerError",
    "BrokerUnavailable",
    "ConfigurationError",
    "Consumer",
    "Context",
    "DeadLetter",
    "Event",
    "EventError",
    "PublishRefused",
    "PublishTimeout",
    "Publisher",
    "RabbitflowError",
    "Retry",
    "RetryLater",
    "SyncPublisher",
    "TopologyMismatch",
    "Unroutable",
    "__version__",
]
