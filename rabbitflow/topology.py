"""What stands on the broker: every exchange, queue, argument and header name, in one place.

Names and reasons are in docs/architecture.md. Nothing here is deprecated on RabbitMQ 3.13 or 4.x.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from rabbitflow.errors import ConfigurationError

if TYPE_CHECKING:
    from rabbitflow.settings import Settings

CONSUMER_NAME_PATTERN = re.compile(r"[a-z][a-z0-9_-]{0,62}")

_RESERVED_NAMES = frozenset({"backfill", "dead", "migrating", "paused", "workers"})
_PARTITION_NAME = re.compile(r"p[0-9]+")

MOST_PARTITIONS = 256
"""Each is a queue, looked at by every process."""

RETRY_BUCKETS_S: tuple[int, ...] = tuple(1 << power for power in range(17))
"""1 s to 65,536 s (18 h). A longer delay waits in the last bucket with its own expiration."""

LONGEST_DELAY_S = 10 * 365 * 86_400
"""Over ten years of expiration RabbitMQ answers 406, and closes the channel."""

# Unset means "no limit" on 3.x and 20 on 4.x; -1 drops the message on its first return on 3.10.8.
CONSUMER_DELIVERY_LIMIT = 50
HOLDING_DELIVERY_LIMIT = 1_000_000

HEADERS_LIMIT_BYTES = 65_536
"""All headers of a message: above 131,064 bytes RabbitMQ closes the whole connection."""

HEADER_PREFIX = "x-rabbitflow-"
ATTEMPT = "x-rabbitflow-attempt"
FIRST_FAILED_AT = "x-rabbitflow-first-failed-at"
REPLAYS = "x-rabbitflow-replays"
REPLAYED_FROM_LOG = "x-rabbitflow-from-log"
"""The offset in its event log of a copy that a replay made."""
LOG_MARK = "x-rabbitflow-log-mark"
"""On a message in an event log that is no event: it says how far the log went at some moment."""
BACKFILL_NOTE = "x-rabbitflow-backfill-note"
"""On a message in the journal of a back-fill that is no event: how far the past is copied."""
ORDERED_BY = "x-rabbitflow-ordered-by"
"""The hash of the key whose events are kept in order."""
HELD_EXPIRATION = "x-rabbitflow-held-expiration"
COPIED_OFFSET = "x-rabbitflow-copied-offset"
REASON = "x-rabbitflow-reason"
EXCEPTION_TYPE = "x-rabbitflow-exception-type"
EXCEPTION_MESSAGE = "x-rabbitflow-exception-message"
TRACEBACK = "x-rabbitflow-traceback"
FAILED_AT = "x-rabbitflow-failed-at"
EVENT_TYPE = "x-rabbitflow-event-type"
EXCHANGE = "x-rabbitflow-exchange"
CONSUMER = "x-rabbitflow-consumer"
HOST = "x-rabbitflow-host"
VERSION = "x-rabbitflow-version"
SIGNED_BY = "x-rabbitflow-signed-by"
SIGNATURE = "x-rabbitflow-signature"

CAUSE_HEADERS = (
    REASON,
    EXCEPTION_TYPE,
    EXCEPTION_MESSAGE,
    TRACEBACK,
    FAILED_AT,
    EVENT_TYPE,
    EXCHANGE,
    CONSUMER,
    HOST,
    VERSION,
)
DELIVERY_COUNT = "x-delivery-count"
ACQUIRED_COUNT = "x-acquired-count"
STREAM_OFFSET = "x-stream-offset"
"""As a header of a delivery where it lies in its stream; as an argument where to begin."""
DEATH = "x-death"
FIRST_DEATH_EXCHANGE = "x-first-death-exchange"

# Brokers before 4.0.1 read these on a republished message as a dead-letter cycle and drop it.
BROKER_DEATH_HEADERS = frozenset(
    {
        DEATH,
        DELIVERY_COUNT,
        ACQUIRED_COUNT,
        "x-opt-deaths",
        FIRST_DEATH_EXCHANGE,
        "x-first-death-queue",
        "x-first-death-reason",
        "x-last-death-exchange",
        "x-last-death-queue",
        "x-last-death-reason",
    }
)

# RabbitMQ routes a message to the queues named here too (rabbitmq.com/docs/sender-selected).
SENDER_SELECTED_HEADERS = frozenset({"CC", "BCC"})

QUEUE_TYPE = "x-queue-type"
DELIVERY_LIMIT = "x-delivery-limit"
CONSUMER_PRIORITY = "x-priority"
SINGLE_ACTIVE_CONSUMER = "x-single-active-consumer"

# How a stream is consumed from its oldest event on.
FROM_FIRST = {STREAM_OFFSET: "first"}

DEFAULT_EXCHANGE = "amq.default"
"""What permissions call the exchange without a name."""
SERVER_NAMED = "amq.gen-"
"""How the name of a queue begins that the broker named."""

Arguments = Mapping[str, str | int]
QueueType = Literal["quorum", "classic"]


@dataclass(frozen=True, slots=True)
class Exchange:
    """A durable exchange."""

    name: str
    type: Literal["fanout", "direct"] = "fanout"


@dataclass(frozen=True, slots=True)
class Queue:
    """A durable queue and the arguments it is declared with."""

    name: str
    arguments: Arguments = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Binding:
    """A queue bound to an event's exchange."""

    queue: str
    exchange: str


@dataclass(frozen=True, slots=True)
class Topology:
    """Exchanges, queues and bindings that are declared together, in this order."""

    exchanges: tuple[Exchange, ...] = ()
    queues: tuple[Queue, ...] = ()
    bindings: tuple[Binding, ...] = ()

    def __add__(self, other: Topology) -> Topology:
        """Return both, what they share once."""
        return Topology(
            tuple(dict.fromkeys(self.exchanges + other.exchanges)),
            tuple({queue.name: queue for queue in self.queues + other.queues}.values()),
            tuple(dict.fromkeys(self.bindings + other.bindings)),
        )


@dataclass(frozen=True, slots=True)
class Names:
    """The names of one namespace. Consumers' names hold no dot, so none of these collide."""

    namespace: str | None = None

    def _of(self, name: str) -> str:
        return f"{self.namespace}.{name}" if self.namespace else name

    def exchange(self, event_type: str) -> str:
        """The fanout exchange of an event type."""
        return self._of(f"events.{event_type}")

    def event_type(self, exchange: str) -> str | None:
        """The event type whose exchange this is, or None where it is no event's exchange."""
        prefix = self._of("events.")
        return exchange.removeprefix(prefix) if exchange.startswith(prefix) else None

    def log(self, event_type: str) -> str:
        """The stream that keeps what was announced."""
        return self._of(f"events.{event_type}.log")

    def queue(self, consumer: str) -> str:
        """The consumer's queue."""
        return self._of(consumer)

    def retry(self, consumer: str, bucket_s: int) -> str:
        """The queue in which the consumer's retries of about ``bucket_s`` seconds wait."""
        return self._of(f"{consumer}.retry.{bucket_s}s")

    def partition(self, consumer: str, number: int) -> str:
        """The queue of one partition of the consumer's events."""
        return self._of(f"{consumer}.p{number}")

    def partition_lock(self, consumer: str, number: int) -> str:
        """The exclusive queue of the process that handles a partition."""
        return self._of(f"{consumer}.p{number}.lock")

    def dead(self, consumer: str) -> str:
        """The consumer's dead letters."""
        return self._of(f"{consumer}.dead")

    def dead_lock(self, consumer: str) -> str:
        """The exclusive queue that whoever works on the consumer's dead letters holds meanwhile."""
        return self._of(f"{consumer}.dead.lock")

    def paused(self, consumer: str) -> str:
        """The queue whose existence says that the consumer is paused, on every host."""
        return self._of(f"{consumer}.paused")

    def backfill(self, consumer: str) -> str:
        """The journal of a consumer's back-fill, and the exchange that feeds both it and the queue.
        The journal exists while the past is not copied yet."""
        return self._of(f"{consumer}.backfill")

    def backfill_lock(self, consumer: str) -> str:
        """The exclusive queue of whoever copies the past to a consumer."""
        return self._of(f"{consumer}.backfill.lock")

    def workers(self, consumer: str) -> str:
        """The queue on which every process that may hold the consumer's events has a consumer of
        its own: how many there are is how many a broker counts on it."""
        return self._of(f"{consumer}.workers")

    def migrating(self, consumer: str) -> str:
        """The queue that stands in for the consumer's own while that one is replaced. Workers that
        see it do not begin."""
        return holding_queue(self.queue(consumer))

    def control(self) -> str:
        """The exchange on which operators pause and resume consumers on every host."""
        return self._of("rabbitflow.control")


def holding_queue(queue: str) -> str:
    """The queue that keeps the messages of ``queue`` while that one is replaced."""
    return f"{queue}.migrating"


def replacing_lock(queue: str) -> str:
    """The exclusive queue that whoever replaces ``queue`` has, so that nobody else begins."""
    return f"{queue}.migrating.lock"


def bucket_for(delay_s: float) -> int:
    """Return the retry bucket of a delay: k with k <= delay < 2k, the ends taking what lies beyond.

    A message waits behind a longer one of its bucket at most, so it is late by less than its own
    delay.
    """
    bucket_s = RETRY_BUCKETS_S[0]
    for candidate_s in RETRY_BUCKETS_S:
        if candidate_s <= delay_s:
            bucket_s = candidate_s
    return bucket_s


def event_topology(event_type: str, settings: Settings) -> Topology:
    """Return what an event type needs to be announced: its exchange and its log."""
    names = Names(settings.namespace)
    exchange = Exchange(names.exchange(event_type))
    if not settings.event_log:
        return Topology(exchanges=(exchange,))
    log = Queue(
        names.log(event_type),
        {
            QUEUE_TYPE: "stream",
            "x-max-age": settings.event_log_max_age,
            "x-max-length-bytes": settings.event_log_max_bytes,
        },
    )
    return Topology((exchange,), (log,), (Binding(log.name, exchange.name),))


def consumer_topology(
    consumer: str,
    event_types: Iterable[str],
    retry_buckets_s: Iterable[int],
    settings: Settings,
    partitions: int = 0,
) -> Topology:
    """Return everything a consumer needs: its events' exchanges, its queue, retries, dead letters,
    and where it is ordered its partitions.

    No queue has a max-length: behind a fanout a full queue nacks the publisher, so one consumer's
    backlog would break all the others.
    """
    names = Names(settings.namespace)
    queue, dead = names.queue(consumer), names.dead(consumer)
    arguments = _dead_lettering(settings.queue_type, dead, CONSUMER_DELIVERY_LIMIT)
    if partitions:
        arguments = {**arguments, SINGLE_ACTIVE_CONSUMER: True}
    queues = [
        Queue(queue, arguments),
        Queue(dead, _holding(settings.queue_type)),
        *(Queue(names.partition(consumer, number), arguments) for number in range(partitions)),
        *workers_topology(consumer, settings).queues,
    ]
    queues += [
        Queue(
            names.retry(consumer, bucket_s),
            _dead_lettering(settings.queue_type, queue, HOLDING_DELIVERY_LIMIT),
        )
        for bucket_s in sorted(set(retry_buckets_s))
    ]
    topology = Topology(queues=tuple(queues))
    for event_type in event_types:
        topology += event_topology(event_type, settings)
        topology += Topology(bindings=(Binding(queue, names.exchange(event_type)),))
    return topology


def pause_topology(consumer: str, settings: Settings) -> Topology:
    """Return the mark that says a consumer is paused. It is a queue because that is what a broker
    remembers, and what anybody may look for without any permission."""
    names = Names(settings.namespace)
    return Topology(queues=(Queue(names.paused(consumer), _holding(settings.queue_type)),))


def journal_topology(consumer: str, settings: Settings) -> Topology:
    """Return the journal of a consumer's back-fill. It is a stream: whoever goes on after a kill
    reads it from its beginning, and a quorum queue hands out 2,000 unsettled messages at most."""
    journal = Names(settings.namespace).backfill(consumer)
    return Topology(queues=(Queue(journal, {QUEUE_TYPE: "stream"}),))


def bridge_topology(consumer: str, settings: Settings) -> Topology:
    """Return the exchange by which a live event reaches a consumer's queue and the journal of its
    back-fill in one routing, or neither of them."""
    names = Names(settings.namespace)
    bridge = names.backfill(consumer)
    return Topology(
        exchanges=(Exchange(bridge),),
        bindings=(
            Binding(names.backfill(consumer), bridge),
            Binding(names.queue(consumer), bridge),
        ),
    )


def workers_topology(consumer: str, settings: Settings) -> Topology:
    """Return the queue that counts the processes which may hold a consumer's events. Nothing is
    ever published to it."""
    names = Names(settings.namespace)
    return Topology(queues=(Queue(names.workers(consumer), _holding(settings.queue_type)),))


def holding(queue: Queue, settings: Settings) -> Queue:
    """Return the queue that keeps the messages of ``queue`` while that one is replaced."""
    if queue.arguments.get(QUEUE_TYPE) == "stream":
        return Queue(holding_queue(queue.name), queue.arguments)
    return Queue(holding_queue(queue.name), _holding(settings.queue_type))


def control_topology(settings: Settings) -> Topology:
    """Return the exchange over which running workers hear that a consumer was paused or resumed."""
    return Topology(exchanges=(Exchange(Names(settings.namespace).control()),))


def _dead_lettering(queue_type: QueueType, target: str, delivery_limit: int) -> Arguments:
    arguments: dict[str, str | int] = {
        QUEUE_TYPE: queue_type,
        "x-dead-letter-exchange": "",
        "x-dead-letter-routing-key": target,
        "x-overflow": "reject-publish",
    }
    if queue_type == "quorum":
        # At-least-once dead-lettering needs reject-publish (rabbitmq.com/docs/quorum-queues).
        arguments["x-dead-letter-strategy"] = "at-least-once"
        arguments[DELIVERY_LIMIT] = delivery_limit
    return arguments


def _holding(queue_type: QueueType) -> Arguments:
    if queue_type == "quorum":
        return {QUEUE_TYPE: "quorum", DELIVERY_LIMIT: HOLDING_DELIVERY_LIMIT}
    return {QUEUE_TYPE: queue_type}


def check_consumer_name(name: str) -> str:
    """Return ``name``, or raise ConfigurationError where it could collide with another's queues."""
    if name in _RESERVED_NAMES or _PARTITION_NAME.fullmatch(name):
        raise ConfigurationError(
            f"{name!r} is no consumer's name: in a namespace called like another consumer its queue"
            f" would be that consumer's {name} queue"
        )
    if CONSUMER_NAME_PATTERN.fullmatch(name) is None:
        raise ConfigurationError(
            f"a consumer's name is 1 to 63 of a-z, 0-9, '_' and '-', a letter first; not {name!r}"
        )
    return name
