"""An AMQP 0-9-1 broker for development and tests, in memory: docs/devbroker.md."""

from rabbitflow.devbroker.access import User
from rabbitflow.devbroker.activity import Counters
from rabbitflow.devbroker.clock import Clock, LoopClock, VirtualClock
from rabbitflow.devbroker.server import DevBroker, QueueState, StoredMessage

__all__ = [
    "Clock",
    "Counters",
    "DevBroker",
    "LoopClock",
    "QueueState",
    "StoredMessage",
    "User",
    "VirtualClock",
]
