"""What the checks judge: facts about broker, settings and consumers, without any judgement."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from rabbitflow.inspection import Difference
from rabbitflow.status import ConsumerStatus
from rabbitflow.worker.discovery import Broken, Found


class Probe(Enum):
    """What became of a message of the largest size, published to no queue at all."""

    CONFIRMED = "confirmed"
    TOO_LARGE = "refused as too large"
    REFUSED = "refused to this user"
    UNANSWERED = "not answered"


@dataclass(frozen=True, slots=True)
class BrokerFacts:
    """The broker and the way to it.

    Fields:
        product: as it calls itself.
        version: as it says, such as ``3.13.7``.
        host: of the URL.
        user: of the URL.
        is_encrypted: TLS.
        is_verified: whether its certificate is checked.
        probe: what became of a message of the largest size that events may have.
        probe_said: what the broker answered to it.
    """

    product: str
    version: str
    host: str
    user: str
    is_encrypted: bool
    is_verified: bool
    probe: Probe = Probe.CONFIRMED
    probe_said: str = ""

    @property
    def release(self) -> tuple[int, int, int]:
        """Major, minor and patch; zeros where the version says something else."""
        numbers = [int(part) for part in self.version.split("-")[0].split(".") if part.isdigit()]
        major, minor, patch = [*numbers, 0, 0, 0][:3]
        return major, minor, patch


@dataclass(frozen=True, slots=True)
class ConsumerFacts:
    """One consumer: what its module says, what the broker has.

    Fields:
        found: as its module defines it.
        status: as the broker counts it.
        difference: of its exchanges and queues.
        refusals: what the broker does not let this user do, in the broker's words.
        delivery_limit: of its queue, None where it has none or there is no queue.
    """

    found: Found
    status: ConsumerStatus
    difference: Difference = field(default_factory=Difference)
    refusals: tuple[str, ...] = ()
    delivery_limit: int | None = None


@dataclass(frozen=True, slots=True)
class FileHandles:
    """What RabbitMQ 3.x sets aside for quorum queues on one node, and how much it may open."""

    node: str
    reserved: int
    limit: int


@dataclass(frozen=True, slots=True)
class ManagementFacts:
    """What only the management API tells.

    Fields:
        bindings: (exchange, queue) pairs of this namespace.
        queues: how many messages wait in each queue of this namespace.
        alarms: nodes and what they lack, such as ``rabbit@a: memory``.
        handles: of each node, for the quorum queues of this virtual host.
    """

    bindings: frozenset[tuple[str, str]]
    queues: Mapping[str, int]
    alarms: tuple[str, ...] = ()
    handles: tuple[FileHandles, ...] = ()


@dataclass(frozen=True, slots=True)
class Facts:
    """Everything the checks are given.

    Fields:
        management: None where its URL was not given.
        unread: why the management API could not be read, where it was given.
        open_files: files of keys and credentials that every user of this host may read.
        announceable: the event types that a trusted key may announce, None where some key may
            announce all of them, or events need not be signed.
    """

    broker: BrokerFacts
    consumers: tuple[ConsumerFacts, ...]
    broken: tuple[Broken, ...]
    shutdown_timeout_s: float
    max_body_bytes: int
    queue_type: str
    event_log: bool
    declares: bool
    namespace: str | None
    management: ManagementFacts | None = None
    unread: str = ""
    open_files: tuple[Path, ...] = ()
    announceable: frozenset[str] | None = None
