"""The errors rabbitflow raises: one small tree, each saying what, where and what to do next."""

from collections.abc import Mapping


class RabbitflowError(Exception):
    """The root: catch this to catch everything rabbitflow raises on purpose."""


class ConfigurationError(RabbitflowError):
    """Something in code or settings that no retry mends: a handler, a name, an argument."""


class EventError(RabbitflowError):
    """An event that can't be built, written as JSON, or read from a body."""


class BrokerError(RabbitflowError):
    """The broker refused, or did not answer."""


class BrokerUnavailable(BrokerError):
    """No broker could be reached within the time allowed. Nothing was sent."""


class AccessRefused(BrokerError):
    """The broker answered and refused: credentials, virtual host or permission."""


class Unroutable(BrokerError):
    """The broker has no queue or event log that would keep this event. It was not kept."""


class PublishTimeout(BrokerError):
    """No confirm came in time. The event may still be delivered: publish it again with the same id
    and let consumers drop the duplicate, or look for its id before you do."""


class PublishRefused(BrokerError):
    """The broker answered the publish with a nack: it did not keep the message."""


class TopologyMismatch(ConfigurationError):
    """A queue or exchange exists with other arguments than the ones wanted (AMQP reply 406)."""


class StoreError(RabbitflowError):
    """The event store refused, or its database did. Nothing of the call was stored."""


class StoreUnavailable(StoreError):
    """The store's database could not be reached, was too busy, or went away. Appending the same
    events (the same ids) again is safe: what was stored before is not stored twice."""


class ConcurrencyError(StoreError):
    """Another writer was first: the stream is not at the version the append expected.

    Read the stream again, decide anew, append again.
    """

    def __init__(self, stream: str, expected: int, actual: int) -> None:
        super().__init__(
            f"stream {stream!r} is at version {actual}, not {expected}: another writer was first;"
            " read it again, decide anew, append again"
        )
        self.stream = stream
        self.expected = expected
        self.actual = actual


class DuplicateEvent(StoreError):
    """An event of that id is already stored, in another place. An id names one event."""


class ProjectionFailed(StoreError):
    """A projection's own code raised. The transaction was rolled back: it stands where it stood."""


class RetryLater(RabbitflowError):
    """Raised by a handler: give this event back and deliver it again after ``seconds``.

    It counts as an attempt, so the policy's limit still ends it.
    """

    def __init__(self, seconds: float, reason: str = "") -> None:
        if not 0 <= seconds < float("inf"):
            raise ValueError(f"RetryLater takes seconds of 0 or more, not {seconds}")
        super().__init__(reason or f"the handler asked for a retry in {seconds:g} s")
        self.seconds = seconds


class DeadLetter(RabbitflowError):
    """Raised by a handler: retrying can't help, keep this event among the dead letters."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class AlreadyHandled(RabbitflowError):
    """Raised by a handler: this event's effect is there already; acknowledge it, and count it as a
    duplicate. Handlers with ``once=True`` need not raise it."""


class BatchFailed(RabbitflowError):
    """Raised by a batch handler: these events failed, the others of the batch are done.

    Args:
        errors: what went wrong, by event id. Each event is retried or dead-lettered for itself.
    """

    def __init__(self, errors: Mapping[str, Exception]) -> None:
        super().__init__(f"{len(errors)} events of the batch failed")
        self.errors = dict(errors)


class HandlerTimeout(RabbitflowError, TimeoutError):
    """A handler ran longer than its time-out."""


class HandlerExit(RabbitflowError):
    """A handler called ``sys.exit``. A handler ends itself, not its worker."""
