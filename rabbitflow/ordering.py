"""Ordering: what an event's key is, and which partition the events of a key go to."""

from __future__ import annotations

import re
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from pydantic_core import from_json

from rabbitflow.errors import ConfigurationError, EventError
from rabbitflow.nesting import refuse_deep
from rabbitflow.topology import MOST_PARTITIONS

LONGEST_WAIT_S = 600.0
"""How long an event may wait for its retries in all, with the later ones of its key behind it: well
below the 30 minutes after which a broker takes deliveries back."""

_HASH_BYTES = 8
_FIELD = re.compile(r"[^.\s]+(\.[^.\s]+)*")


@dataclass(frozen=True, slots=True)
class Ordering:
    """The order of a consumer's events: one after the other for each key.

    Fields:
        partitions: into how many queues the keys are spread.
        ordered_by: the field of an event's data that holds its key, such as ``order.id``; None for
            the key of the event itself.

    Raises:
        ConfigurationError: a number or a name does not fit.
    """

    partitions: int
    ordered_by: str | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.partitions <= MOST_PARTITIONS:
            raise ConfigurationError(
                f"partitions is a number from 1 to {MOST_PARTITIONS}, not {self.partitions}"
            )
        if self.ordered_by is not None and _FIELD.fullmatch(self.ordered_by) is None:
            raise ConfigurationError(
                "ordered_by names a field of the event's data, such as 'orderId' or 'order.id',"
                f" not {self.ordered_by!r}"
            )

    @property
    def place(self) -> str:
        """Where the key is in a body."""
        return "key" if self.ordered_by is None else f"data.{self.ordered_by}"

    def hash(self, body: bytes) -> str:
        """Return the hash of the key in ``body``, as it is on the wire: 16 hexadecimal digits.

        Raises:
            EventError: there is no such key, or one that is neither text nor a whole number.
        """
        try:
            refuse_deep(body)
            found: Any = from_json(body)
        except (ValueError, RecursionError) as error:
            raise EventError(f"the body is not JSON: {error}") from error
        for name in self.place.split("."):
            found = found.get(name) if isinstance(found, dict) else None
        if isinstance(found, bool) or not isinstance(found, str | int) or found == "":
            raise EventError(
                f"{self.place}: no text and no whole number is there, so the event has no place"
                " in an order"
            )
        return key_hash(str(found))

    def partition(self, hashed: str) -> int:
        """Return the number of the partition in which the events of a key are."""
        return int(hashed, 16) % self.partitions


def key_hash(key: str) -> str:
    """Return the hash of a key: the same in every process, version and on every machine."""
    return blake2b(key.encode("utf-8", "surrogatepass"), digest_size=_HASH_BYTES).hexdigest()


def fair_share(partitions: int, workers: int) -> int:
    """Return how many partitions one of ``workers`` processes handles at most: no other rule makes
    the largest share smaller, and all together have enough hands for every partition."""
    return -(-partitions // max(1, workers))
