"""Keys, their hashes and their partitions: the same everywhere and for ever; and fair shares."""

from __future__ import annotations

import json
import random
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rabbitflow import ConfigurationError, Consumer, Event, Retry
from rabbitflow.errors import EventError
from rabbitflow.ordering import Ordering, fair_share, key_hash
from rabbitflow.topology import check_consumer_name


@pytest.mark.parametrize(
    ("key", "hashed", "of_eight"),
    [
        ("order-1", "2599000e8c1b023d", 5),
        ("order-2", "1310a15d9619d99b", 3),
        ("42", "57b43cf02666687a", 2),
        ("Zürich", "707438faa779d508", 0),
    ],
)
def test_the_hash_of_a_key_never_changes(key: str, hashed: str, of_eight: int) -> None:
    """Another value would send a key to another partition in the middle of an upgrade."""
    assert key_hash(key) == hashed
    assert Ordering(8).partition(hashed) == of_eight


def test_keys_are_spread_evenly() -> None:
    ordering = Ordering(8)
    counts = Counter(ordering.partition(key_hash(f"order-{number}")) for number in range(8000))
    assert len(counts) == 8
    assert max(counts.values()) < 1.15 * min(counts.values())


@pytest.mark.parametrize(
    ("ordered_by", "body"),
    [
        ("orderId", {"data": {"orderId": "42"}, "key": "other"}),
        ("orderId", {"data": {"orderId": 42}}),
        ("order.id", {"data": {"order": {"id": "42"}}}),
        (None, {"data": None, "key": "42"}),
    ],
)
def test_a_key_is_a_field_of_the_data_or_the_events_own(ordered_by: str | None, body: Any) -> None:
    assert Ordering(8, ordered_by).hash(json.dumps(body).encode()) == key_hash("42")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xff\x00",
        b"[]",
        b"7",
        b'{"data": 7}',
        b'{"data": {}}',
        b'{"data": {"orderId": null}}',
        b'{"data": {"orderId": ""}}',
        b'{"data": {"orderId": true}}',
        b'{"data": {"orderId": 1.5}}',
        b'{"data": {"orderId": ["42"]}}',
        b"[" * 100_000,
    ],
)
def test_what_has_no_key_is_said_to_have_none(body: bytes) -> None:
    with pytest.raises(EventError):
        Ordering(8, "orderId").hash(body)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"partitions": 0}, "from 1 to 256"),
        ({"partitions": 257}, "from 1 to 256"),
        ({"ordered_by": "orderId"}, "takes a number of partitions"),
        ({"partitions": 8, "ordered_by": "order..id"}, "names a field"),
        ({"partitions": 8, "ordered_by": ""}, "names a field"),
    ],
)
def test_what_makes_no_order_is_refused(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError, match=f"consumer ledger.*{said}"):
        Consumer("ledger", **arguments)


def test_a_batch_is_refused_where_events_are_ordered() -> None:
    with pytest.raises(ConfigurationError, match="keeps an order"):
        Consumer("ledger", partitions=8).on_batch("ORDER_PLACED", size=10)


@pytest.mark.parametrize(
    "retry", [Retry.fixed(attempts=3, wait="6m"), Retry.exponential(attempts=50)]
)
def test_retries_that_would_be_waited_for_too_long_are_refused(retry: Retry) -> None:
    ledger = Consumer("ledger", partitions=8, retry=retry)

    @ledger.on("ORDER_PLACED")
    async def note(event: Event) -> None: ...

    with pytest.raises(ConfigurationError, match="for 600 s at most"):
        ledger.resolve()


def test_an_ordered_consumer_has_no_retry_queues() -> None:
    ledger = Consumer("ledger", partitions=8)

    @ledger.on("ORDER_PLACED")
    async def note(event: Event) -> None: ...

    assert ledger.resolve()
    assert ledger.retry_buckets_s() == []


@pytest.mark.parametrize("name", ["p0", "p3", "p255"])
def test_a_consumer_called_like_a_partition_is_refused(name: str) -> None:
    with pytest.raises(ConfigurationError, match="no consumer's name"):
        check_consumer_name(name)


@given(st.integers(1, 256), st.lists(st.booleans(), min_size=1, max_size=12), st.randoms())
def test_whoever_comes_or_goes_every_partition_finds_an_owner(
    partitions: int, changes: list[bool], rng: random.Random
) -> None:
    """Each process knows how many there are, gives up what is beyond its share and claims what is
    free, whenever its turn comes: after two rounds nothing is left to claim or to give up."""
    workers: dict[int, set[int]] = {0: set()}
    for number, comes in enumerate(changes, 1):
        if comes or len(workers) == 1:
            workers[number] = set()
        else:
            del workers[rng.choice(list(workers))]
        for _ in range(2):
            share = fair_share(partitions, len(workers))
            for one in rng.sample(list(workers), len(workers)):
                while len(workers[one]) > share:
                    workers[one].pop()
                free = set(range(partitions)).difference(*workers.values())
                workers[one] |= set(list(free)[: share - len(workers[one])])
        owned = [one for held in workers.values() for one in held]
        assert sorted(owned) == list(range(partitions))
        assert max(map(len, workers.values())) <= share
