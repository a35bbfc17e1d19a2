"""The checks: pure functions from facts to findings."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum

from rabbitflow.doctor.facts import ConsumerFacts, Facts, ManagementFacts, Probe
from rabbitflow.topology import CONSUMER_DELIVERY_LIMIT, DELIVERY_LIMIT, Names, Queue
from rabbitflow.worker.suspects import CRASH_LIMIT

LOCAL_HOSTS = frozenset({"localhost", "127.0.0.1", "::1"})

# rabbitmq.com/docs/consumers#acknowledgement-timeout; AMQP does not tell what a broker has.
DELIVERY_TIMEOUT_S = 1800.0

CROWDED = 0.7
"""Of a RabbitMQ 3.x node's file handles: it keeps a tenth back, and connections take theirs."""


class Severity(StrEnum):
    """How bad it is: an error loses or stops something, a warning will, a note is good to know."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that somebody should know.

    Fields:
        severity: how bad it is.
        about: a consumer, a queue, or the broker.
        problem: what was seen.
        advice: what to do.
    """

    severity: Severity
    about: str
    problem: str
    advice: str


def findings(facts: Facts) -> list[Finding]:
    """Return everything the checks find, the worst first."""
    order = list(Severity)
    found = [finding for check in _CHECKS for finding in check(facts)]
    for consumer in facts.consumers:
        found += [finding for check in _CONSUMER_CHECKS for finding in check(consumer, facts)]
    return sorted(found, key=lambda finding: order.index(finding.severity))


def _error(about: str, problem: str, advice: str) -> Finding:
    return Finding(Severity.ERROR, about, problem, advice)


def _warning(about: str, problem: str, advice: str) -> Finding:
    return Finding(Severity.WARNING, about, problem, advice)


def _note(about: str, problem: str, advice: str) -> Finding:
    return Finding(Severity.NOTE, about, problem, advice)


def modules(facts: Facts) -> Iterator[Finding]:
    """Modules that can't be imported: their consumers can't be looked at."""
    for broken in facts.broken:
        yield _error(broken.module, broken.error, "mend the module; its consumers do not run")


def version(facts: Facts) -> Iterator[Finding]:
    """What the broker's version lacks."""
    broker = facts.broker
    name = f"{broker.product} {broker.version}"
    if broker.product != "RabbitMQ":
        yield _note("broker", f"this is {name}, not RabbitMQ", "use it for development and tests")
        return
    upgrade = "upgrade to RabbitMQ 4.x"
    if broker.release < (3, 8, 0) and facts.queue_type == "quorum":
        yield _error("broker", f"{name} has no quorum queues", f"{upgrade}, or set classic queues")
    elif broker.release < (3, 10, 0) and facts.queue_type == "quorum":
        yield _error(
            "broker",
            f"{name} dead-letters at most once: a retry that is due can be lost",
            upgrade,
        )
    if broker.release < (3, 9, 0) and facts.event_log:
        yield _error(
            "broker", f"{name} has no streams", f"{upgrade}, or set RABBITFLOW_EVENT_LOG=false"
        )
    if (3, 10, 0) <= broker.release < (3, 13, 0):
        yield _warning(
            "broker",
            f"{name} gets no fixes any more; killed within half a second after a quorum queue was"
            " declared, it may forget what it confirmed there (seen on 3.10.8)",
            f"{upgrade}; until then start workers well before the load",
        )


def way(facts: Facts) -> Iterator[Finding]:
    """Encryption, and whose credentials."""
    broker = facts.broker
    is_local = broker.host in LOCAL_HOSTS or broker.host.startswith("127.")
    if broker.user == "guest" and not is_local:
        yield _error(
            "broker",
            f"the default user guest is let in from another host ({broker.host})",
            "add a user of your own, and delete guest: rabbitmqctl delete_user guest",
        )
    if not broker.is_encrypted and not is_local:
        yield _warning(
            "broker",
            f"events and the password cross the network to {broker.host} unencrypted",
            "use amqps:// in RABBITFLOW_URL",
        )
    if broker.is_encrypted and not broker.is_verified:
        yield _warning(
            "broker",
            "its certificate is not verified, so anybody may pose as it",
            "remove no_verify_ssl from RABBITFLOW_URL, and name the authority with cafile",
        )


def publishing(facts: Facts) -> Iterator[Finding]:
    """Whether a retry and a dead letter of the largest size would be kept."""
    said = facts.broker.probe_said
    match facts.broker.probe:
        case Probe.TOO_LARGE:
            yield _error(
                "broker",
                f"it takes no message of {facts.max_body_bytes:,} bytes: {said}",
                "lower RABBITFLOW_MAX_BODY_BYTES, or raise max_message_size in rabbitmq.conf",
            )
        case Probe.REFUSED:
            yield _error(
                "broker",
                f"this user may not publish to queues, so retries and dead letters fail: {said}",
                "grant it write on amq.default: rabbitmqctl set_permissions",
            )
        case Probe.UNANSWERED:
            yield _error(
                "broker",
                f"a message was not confirmed ({said}): publishers stand still",
                "look for a memory or disk alarm: rabbitmq-diagnostics alarms",
            )


def management(facts: Facts) -> Iterator[Finding]:
    """What only the management API tells: alarms, orphans; or that nobody could look."""
    found = facts.management
    if found is None:
        yield _note(
            "broker",
            f"bindings, orphan queues and alarms were not looked at: {facts.unread}"
            if facts.unread
            else "bindings, orphan queues and alarms can't be read over AMQP",
            "set RABBITFLOW_MANAGEMENT_URL=http://user:password@host:15672",
        )
        return
    for alarm in found.alarms:
        yield _error("broker", f"alarm: {alarm}; publishers stand still", "free it, or add some")
    yield from _handles(facts, found)
    yield from _orphans(facts)


def _handles(facts: Facts, found: ManagementFacts) -> Iterator[Finding]:
    if facts.broker.release >= (4, 0, 0):
        return
    for node in found.handles:
        if node.reserved >= CROWDED * node.limit:
            yield _warning(
                "broker",
                f"{node.node} sets {node.reserved:,} of {node.limit:,} file handles aside for"
                " quorum queues; when they are used up it lets nobody in, not even rabbitmqctl",
                "raise its limit of open files (LimitNOFILE=65536 in its unit), or delete queues",
            )


def _orphans(facts: Facts) -> Iterator[Finding]:
    assert facts.management is not None
    names = Names(facts.namespace)
    known = {names.queue(consumer.found.name) for consumer in facts.consumers}
    for exchange, queue in sorted(facts.management.bindings):
        event_type = names.event_type(exchange)
        if event_type is None or queue in known or queue == names.log(event_type):
            continue
        yield _warning(
            queue,
            f"it is bound to {event_type} and no module here declares it;"
            f" {facts.management.queues.get(queue, 0):,} messages wait in it",
            "name its module too; or unbind it, let it run empty and delete it",
        )


def files(facts: Facts) -> Iterator[Finding]:
    """Secrets that every user of this host can read."""
    for path in facts.open_files:
        yield _error(
            str(path), "every user of this host may read or change it", f"chmod o-rwx {path}"
        )


def topology(consumer: ConsumerFacts, facts: Facts) -> Iterator[Finding]:
    """Missing or differing exchanges and queues."""
    name, module = consumer.found.name, consumer.found.module
    missing = consumer.difference.missing
    if missing:
        kinds = [f"{'queue' if isinstance(m, Queue) else 'exchange'} {m.name}" for m in missing]
        yield _error(
            name,
            f"not on the broker: {', '.join(kinds)}; events are not kept for it",
            f"start a worker of it, or run: rabbitflow topology apply {module}",
        )
    for mismatch in consumer.difference.mismatches:
        yield _error(
            name,
            f"{mismatch}: a worker that starts is refused",
            f"set the old value back, or run: rabbitflow topology migrate {name} {module}",
        )


def bindings(consumer: ConsumerFacts, facts: Facts) -> Iterator[Finding]:
    """Events that do not reach the queue, and events that no handler names."""
    if facts.management is None or consumer.status.ready is None:
        return
    names, name = Names(facts.namespace), consumer.found.name
    queue = names.queue(name)
    wanted = {names.exchange(event_type) for event_type in consumer.found.event_types}
    there = {exchange for exchange, bound in facts.management.bindings if bound == queue}
    for exchange in sorted(wanted - there):
        yield _error(
            name,
            f"{queue} is not bound to {exchange}: these events pass it by",
            f"run: rabbitflow topology apply {consumer.found.module}",
        )
    for exchange in sorted(there - wanted - {""}):
        yield _warning(
            name,
            f"{queue} is bound to {exchange}, which no handler names: dead letters, no-handler",
            f"unbind it, or write a handler for {names.event_type(exchange) or exchange}",
        )


def presence(consumer: ConsumerFacts, facts: Facts) -> Iterator[Finding]:
    """Queues that fill for nobody, consumers that the broker has forgotten, strangers."""
    status, name = consumer.status, consumer.found.name
    waiting = f"{status.ready or 0:,} events wait"
    match status.state:
        case "migrating":
            yield _warning(
                name,
                "its queues are being replaced, or that was interrupted; its workers wait",
                f"if nobody is at it: rabbitflow topology migrate {name} {consumer.found.module}",
            )
        case "paused":
            yield _warning(name, f"paused by an operator; {waiting}", f"rabbitflow resume {name}")
        case "absent":
            yield (_error if status.ready else _warning)(
                name,
                f"no process handles its events; {waiting}",
                f"rabbitflow worker {consumer.found.module}",
            )
        case "holding back":
            yield (_error if status.ready else _warning)(
                name,
                f"{status.workers} processes are there, the broker hands them nothing; {waiting}",
                "its circuit breaker is open, or the broker forgot it: look into its log;"
                " a worker notices the latter within 10 s",
            )
        case "running" if status.consuming > status.workers:
            yield _warning(
                name,
                f"{status.consuming} consumers on its queue, and {status.workers} of them are"
                " rabbitflow's: somebody else takes its events away",
                "find them: rabbitmqctl list_consumers",
            )


def dead_letters(consumer: ConsumerFacts, facts: Facts) -> Iterator[Finding]:
    """Events that failed for good."""
    if consumer.status.dead:
        name = consumer.found.name
        yield _warning(
            name,
            f"{consumer.status.dead:,} dead letters",
            f"rabbitflow dlq list {name}; once mended: rabbitflow dlq replay {name}",
        )


def timeouts(consumer: ConsumerFacts, facts: Facts) -> Iterator[Finding]:
    """Time-outs that beat each other."""
    found, name = consumer.found, consumer.found.name
    longest_s = found.longest_timeout_s
    limit = f"the broker's delivery time-out ({DELIVERY_TIMEOUT_S / 60:g} min by default)"
    if longest_s is None:
        yield _warning(
            name,
            f"a handler has no time-out: beyond {limit} its channel is closed and the event"
            " delivered again",
            "give it timeout=, or raise consumer_timeout in rabbitmq.conf",
        )
        return
    # The last of the prefetched events waits for those before it.
    rounds = math.ceil(found.prefetch / found.concurrency) if found.prefetch else 1
    held_s = rounds * longest_s
    if held_s + facts.shutdown_timeout_s >= DELIVERY_TIMEOUT_S:
        yield _error(
            name,
            f"an event may be held for {held_s:g} s ({rounds} times {longest_s:g} s) and"
            f" {facts.shutdown_timeout_s:g} s of stopping, beyond {limit}",
            "shorten the time-out or the prefetch, or raise consumer_timeout in rabbitmq.conf",
        )
    elif longest_s > facts.shutdown_timeout_s:
        yield _note(
            name,
            f"a handler may run {longest_s:g} s, a stopping worker waits"
            f" {facts.shutdown_timeout_s:g} s: what is not done by then is handled again",
            "raise RABBITFLOW_SHUTDOWN_TIMEOUT_S if that is not wanted",
        )


def delivery_limit(consumer: ConsumerFacts, facts: Facts) -> Iterator[Finding]:
    """The queue's delivery limit against the strikes that prove which event kills its process."""
    limit, name = consumer.delivery_limit, consumer.found.name
    migrate = f"rabbitflow topology migrate {name} {consumer.found.module}"
    if limit is not None and limit < 0:
        yield _error(
            name,
            f"{DELIVERY_LIMIT}={limit}: RabbitMQ 3.10.8 drops an event the first time it is given"
            " back",
            f"let the queue run empty, then: {migrate}",
        )
    elif limit is not None and limit <= 2 * CRASH_LIMIT:
        yield _error(
            name,
            f"{DELIVERY_LIMIT}={limit}: an event that kills its process takes its neighbours to"
            f" the dead letters before {CRASH_LIMIT} strikes prove it guilty",
            f"{migrate} (it sets {CONSUMER_DELIVERY_LIMIT})",
        )
    if consumer.found.retries_for_ever:
        yield _note(
            name,
            "its retry policy does not end within 100 attempts: an event that never succeeds is"
            " never seen among the dead letters",
            "add stop_after_attempt or max_age",
        )


def permissions(consumer: ConsumerFacts, facts: Facts) -> Iterator[Finding]:
    """What the broker does not let this user do."""
    for refusal in consumer.refusals:
        yield _error(
            consumer.found.name,
            refusal,
            "grant it: rabbitmqctl set_permissions; or let an administrator run topology apply and"
            " start workers with --no-declare",
        )


def producers(consumer: ConsumerFacts, facts: Facts) -> Iterator[Finding]:
    """Events that it handles and that no trusted key may announce."""
    if facts.announceable is None:
        return
    for event_type in consumer.found.event_types:
        if event_type not in facts.announceable:
            yield _error(
                consumer.found.name,
                f"no trusted key may announce {event_type}: all of them become dead letters",
                "add the producer's line to RABBITFLOW_TRUSTED_KEYS_FILE:"
                f" rabbitflow keys public FILE --type {event_type}",
            )


_CHECKS: tuple[Callable[[Facts], Iterator[Finding]], ...] = (
    modules,
    version,
    way,
    publishing,
    management,
    files,
)
_CONSUMER_CHECKS: tuple[Callable[[ConsumerFacts, Facts], Iterator[Finding]], ...] = (
    topology,
    bindings,
    presence,
    dead_letters,
    timeouts,
    delivery_limit,
    permissions,
    producers,
)
