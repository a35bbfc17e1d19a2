"""The consumer: a name, its own queue, and the handlers for the event types it reacts to."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from rabbitflow.breaker import Breaker
from rabbitflow.cipher import Cipher
from rabbitflow.durations import Duration, seconds
from rabbitflow.errors import ConfigurationError
from rabbitflow.event import EventType
from rabbitflow.ordering import LONGEST_WAIT_S, Ordering
from rabbitflow.rate import Rate
from rabbitflow.retry import Retry
from rabbitflow.signature import HandlerFunction, Signature, resolve, where
from rabbitflow.topology import RETRY_BUCKETS_S, bucket_for, check_consumer_name
from rabbitflow.upcast import Upcasters

FunctionT = TypeVar("FunctionT", bound=HandlerFunction)

DEFAULT_RETRY = Retry.exponential(attempts=5, first=2, cap=300)
DEFAULT_TIMEOUT_S = 60.0
DEFAULT_BREAKER = Breaker(failure_rate=1.0, window=100, probe_after=0.1, cap=0.1)
"""After a hundred failures in a row ten events a second, until one succeeds: seldom enough that
their retries don't take the broker from the neighbours, often enough that a batch of events which
nothing can help doesn't hold up those behind it for long."""

_event_type = TypeAdapter(EventType)


@dataclass(frozen=True, slots=True)
class Batch:
    """At most ``size`` events a run, and none waits longer than ``within_s`` seconds for others."""

    size: int
    within_s: float


@dataclass(frozen=True, slots=True)
class Handler:
    """One function that reacts to one event type.

    Fields:
        event_type: what it reacts to.
        function: as written.
        timeout_s: how long one run may take, in seconds; None for no limit.
        retry: the policy of its failures.
        batch: how many events one run gets; None for one event a run.
        once: whether its work and the event's id are committed together.
    """

    event_type: str
    function: HandlerFunction
    timeout_s: float | None
    retry: Retry
    batch: Batch | None = None
    once: bool = False


class Consumer:
    """A reacting service: it owns one durable queue, its retries and its dead letters.

    Args:
        name: of the consumer and its queue: a-z, 0-9, ``_``, ``-``, at most 63.
        concurrency: how many events are handled at once in one process.
        prefetch: how many unacknowledged events the broker hands out; ``concurrency`` and half as
            many again where it is not given.
        retry: the policy of failures, for handlers without their own.
        timeout: how long a handler may run, in seconds or as ``"30s"``; None for no limit but the
            broker's own delivery time-out (30 minutes by default).
        breaker: when to take no more events, because they fail one and all; where it is not given,
            ten a second after a hundred failures in a row. None for never.
        rate_limit: how many events may begin, such as ``"50/s"`` or ``"600/m"``, in each process.
        upcasters: what turns old versions of events into new ones before handlers see them.
        database: of handlers with ``once=True``, ``postgresql://…`` or ``sqlite:///file.db``;
            ``RABBITFLOW_DATABASE_URL`` where it is not given.
        from_beginning: where the consumer is new on the broker, begin with what the event log
            keeps of its events; each comes once, also while publishers go on.
        partitions: keep the order of events that have one key, over all its processes: into so
            many queues the keys are spread, 1 to 256. See docs/scaling.md for what it takes.
        ordered_by: the field of the data that holds the key, such as ``"orderId"`` or
            ``"order.id"``; the event's own ``key`` where it is not given. Only with ``partitions``.
        publishes: the event types that its handlers announce: what ``rabbitflow topology`` lets
            its user write to, and declares. It limits nothing by itself.

    Raises:
        ConfigurationError: the name or a number does not fit.
    """

    def __init__(
        self,
        name: str,
        *,
        concurrency: int = 8,
        prefetch: int | None = None,
        retry: Retry = DEFAULT_RETRY,
        timeout: Duration | None = DEFAULT_TIMEOUT_S,
        breaker: Breaker | None = DEFAULT_BREAKER,
        rate_limit: str | None = None,
        upcasters: Upcasters | None = None,
        database: str | None = None,
        from_beginning: bool = False,
        partitions: int | None = None,
        ordered_by: str | None = None,
        publishes: Iterable[str] = (),
    ) -> None:
        if concurrency < 1:
            raise ConfigurationError(f"consumer {name}: concurrency is at least 1")
        if prefetch is not None and not concurrency <= prefetch <= 65535:
            raise ConfigurationError(
                f"consumer {name}: prefetch is between its concurrency ({concurrency}) and 65535"
            )
        self.name = check_consumer_name(name)
        self.concurrency = concurrency
        self.retry = _policy(name, retry)
        self.timeout_s = None if timeout is None else seconds(timeout)
        self.breaker = breaker
        self.rate = None if rate_limit is None else Rate.parse(rate_limit)
        self.database = database
        self.from_beginning = from_beginning
        self.ordering = _ordering(name, partitions, ordered_by)
        self.publishes = tuple(
            _checked(name, one)
            for one in ([publishes] if isinstance(publishes, str) else publishes)
        )
        self.module: str = sys._getframe(1).f_globals.get("__name__", "__main__")
        self._prefetch = prefetch
        self._upcasters = upcasters
        self._handlers: dict[str, Handler] = {}

    def __repr__(self) -> str:
        return f"Consumer({self.name!r}, handles {', '.join(self._handlers) or 'nothing'})"

    @property
    def prefetch(self) -> int:
        """How many unacknowledged events the broker hands to one process."""
        usual = self.slots + max(2, self.concurrency // 2)
        return usual if self._prefetch is None else max(self._prefetch, self.slots)

    @property
    def slots(self) -> int:
        """How many events may be begun and not settled in one process: those of a batch wait for
        each other, so there are as many as the largest batches need."""
        largest = max(
            (handler.batch.size for handler in self._handlers.values() if handler.batch), default=1
        )
        return self.concurrency * largest

    @property
    def partitions(self) -> int:
        """Into how many queues its events are spread; 0 where it keeps no order."""
        return 0 if self.ordering is None else self.ordering.partitions

    @property
    def handlers(self) -> Mapping[str, Handler]:
        """The handlers by event type."""
        return MappingProxyType(self._handlers)

    @property
    def event_types(self) -> tuple[str, ...]:
        """What it reacts to, in the order written."""
        return tuple(self._handlers)

    def on(
        self,
        *event_types: str,
        timeout: Duration | None = None,
        retry: Retry | None = None,
        once: bool = False,
    ) -> Callable[[FunctionT], FunctionT]:
        """Register the decorated function as the handler of ``event_types``.

        What it receives follows from its annotations: ``Event`` or ``Event[Model]`` is the
        envelope, :class:`Context` the context, any other type the event's data, validated.

        Args:
            timeout: of one run, in seconds or as ``"30s"``; the consumer's where not given.
            retry: the policy of this handler; the consumer's where not given.
            once: give it a session of the consumer's database (an argument annotated with
                SQLAlchemy's ``AsyncSession``, or ``Session`` for a plain ``def``), and commit its
                work together with the event's id, so that a duplicate has no second effect. What
                it announces through its context is kept in the same commit.

        Raises:
            ConfigurationError: no event type, a malformed one, or one that has a handler already.
        """
        return self._registering(event_types, timeout, retry, None, once=once)

    def on_batch(
        self,
        *event_types: str,
        size: int,
        within: Duration = 1.0,
        timeout: Duration | None = None,
        retry: Retry | None = None,
    ) -> Callable[[FunctionT], FunctionT]:
        """Register the decorated function for many events at once.

        It takes lists: ``list[Event[Model]]`` or ``list[Model]``, and ``list[Context]``, in the
        same order. Every event is settled for itself: raise :class:`BatchFailed` to name those that
        failed. When anything else is raised, each event of the batch is run once more alone, so
        that one bad event does not fail its neighbours.

        Args:
            size: at most so many events a run.
            within: how long the first event of a batch waits for others, in seconds or ``"500ms"``.
            timeout: of one run; the consumer's where not given.
            retry: the policy of this handler; the consumer's where not given.

        Raises:
            ConfigurationError: as :meth:`on`.
        """
        if self.ordering is not None:
            raise ConfigurationError(
                f"consumer {self.name} keeps an order, in which one event of a key ends before the"
                " next begins: that is no batch; use @on, or leave partitions out"
            )
        if size < 1:
            raise ConfigurationError(f"consumer {self.name}: a batch holds at least 1 event")
        return self._registering(event_types, timeout, retry, Batch(size, seconds(within)))

    def _registering(
        self,
        event_types: tuple[str, ...],
        timeout: Duration | None,
        retry: Retry | None,
        batch: Batch | None,
        *,
        once: bool = False,
    ) -> Callable[[FunctionT], FunctionT]:
        if not event_types or not all(isinstance(name, str) for name in event_types):
            raise ConfigurationError(
                f'consumer {self.name}: name the event types, @{self.name}.on("ORDER_PLACED")'
            )
        timeout_s = self.timeout_s if timeout is None else seconds(timeout)
        policy = self.retry if retry is None else _policy(self.name, retry)

        def register(function: FunctionT) -> FunctionT:
            for event_type in event_types:
                self._register(Handler(event_type, function, timeout_s, policy, batch, once))
            return function

        return register

    def _register(self, handler: Handler) -> None:
        _checked(self.name, handler.event_type)
        taken = self._handlers.get(handler.event_type)
        if taken is not None:
            raise ConfigurationError(
                f"consumer {self.name} handles {handler.event_type} twice:"
                f" {where(taken.function)} and {where(handler.function)}"
            )
        self._handlers[handler.event_type] = handler

    def resolve(self, cipher: Cipher | None = None) -> dict[str, Signature]:
        """Return how to call each handler, by event type; ``cipher`` reads encrypted fields.

        Raises:
            ConfigurationError: there is no handler, or one whose arguments can't be filled.
        """
        if not self._handlers:
            raise ConfigurationError(
                f"consumer {self.name} ({self.module}) handles nothing;"
                f' write @{self.name}.on("ORDER_PLACED") above a function'
            )
        signatures: dict[HandlerFunction, Signature] = {}
        for handler in self._handlers.values():
            if handler.function not in signatures:
                signatures[handler.function] = resolve(
                    handler.function,
                    is_batch=handler.batch is not None,
                    upcasters=self._upcasters_for(handler.function),
                    cipher=cipher,
                )
            if signatures[handler.function].takes_session and not handler.once:
                raise ConfigurationError(
                    f"handler {where(handler.function)} of {self.name} takes a session: write"
                    f' @{self.name}.on("{handler.event_type}", once=True)'
                )
            if self.ordering is not None:
                self._check_waits(handler)
        return {
            event_type: signatures[handler.function]
            for event_type, handler in self._handlers.items()
        }

    def _upcasters_for(self, function: HandlerFunction) -> Upcasters | None:
        # None where no event of the handler has old versions, so that its bodies are parsed once.
        event_types = [name for name, each in self._handlers.items() if each.function is function]
        if self._upcasters is not None and self._upcasters.concerns(event_types):
            return self._upcasters
        return None

    def _check_waits(self, handler: Handler) -> None:
        """Retries of an ordered consumer are waited for while the broker waits for the ack."""
        longest_s = sum(longest_s for _, longest_s in handler.retry.reachable_delays_s())
        if longest_s > LONGEST_WAIT_S:
            raise ConfigurationError(
                f"handler {where(handler.function)} of {self.name} may wait {longest_s:g} s for"
                f" its retries in all; an ordered consumer holds the later events of a key back"
                f" meanwhile, for {LONGEST_WAIT_S:g} s at most: fewer attempts, or shorter waits"
            )

    def longest_timeout_s(self) -> float | None:
        """Return how long a handler may run at most, in seconds; None where one has no limit."""
        limits = [handler.timeout_s for handler in self._handlers.values()]
        bounded = [limit for limit in limits if limit is not None]
        return max(bounded, default=None) if len(bounded) == len(limits) else None

    def retry_buckets_s(self) -> list[int]:
        """Return the retry buckets that the policies are seen to reach: none where events are
        ordered, as they wait in their process."""
        if self.ordering is not None:
            return []
        reached = {
            bucket_s
            for policy in {handler.retry for handler in self._handlers.values()}
            for shortest_s, longest_s in policy.reachable_delays_s()
            for bucket_s in RETRY_BUCKETS_S
            if bucket_for(shortest_s) <= bucket_s <= bucket_for(longest_s)
        }
        return sorted(reached)


def _checked(consumer: str, event_type: str) -> str:
    try:
        return _event_type.validate_python(event_type)
    except ValidationError:
        raise ConfigurationError(
            f"consumer {consumer}: {event_type!r} is no event type; it is 1 to 128 of"
            " A-Z, a-z, 0-9, '_', '.' and '-', a letter first"
        ) from None


def _ordering(consumer: str, partitions: int | None, ordered_by: str | None) -> Ordering | None:
    if partitions is None:
        if ordered_by is not None:
            raise ConfigurationError(
                f"consumer {consumer}: ordered_by takes a number of partitions, partitions=8"
            )
        return None
    try:
        return Ordering(partitions, ordered_by)
    except ConfigurationError as error:
        raise ConfigurationError(f"consumer {consumer}: {error}") from error


def _policy(consumer: str, value: Any) -> Retry:
    if not isinstance(value, Retry):
        raise ConfigurationError(
            f"consumer {consumer}: retry takes a Retry, such as Retry.exponential() or"
            f" Retry.none(), not {value!r}"
        )
    return value
