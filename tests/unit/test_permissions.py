"""Patterns match what a user needs and nothing of a neighbour's."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rabbitflow import ConfigurationError, Consumer
from rabbitflow.permissions import Grant, Reacting, grants
from rabbitflow.settings import load_settings
from rabbitflow.topology import Names, check_consumer_name

SETTINGS = load_settings(namespace="shop")
NAMES = Names("shop")


def reacting(
    name: str,
    *event_types: str,
    publishes: tuple[str, ...] = (),
    partitions: int | None = None,
) -> Reacting:
    consumer = Consumer(name, publishes=publishes, partitions=partitions)
    consumer.on(*event_types)(lambda event: None)
    return consumer


PAYMENT = reacting("payment", "ORDER_PLACED", publishes=("PAYMENT_COMPLETED",))
RATING = reacting("rating", "RIDE_COMPLETED")


def by_user(*consumers: Reacting, **options: object) -> dict[str, Grant]:
    producers = options.pop("producers", {})
    found = grants(consumers, producers, SETTINGS, **options)  # type: ignore[arg-type]
    return {grant.user: grant for grant in found}


def test_consumers_and_producers_may_create_and_delete_nothing() -> None:
    granted = by_user(PAYMENT, RATING)
    operator = granted.pop("operator")
    assert {grant.configure for grant in granted.values()} == {"^$"}
    assert re.search(operator.configure, NAMES.dead("payment"))
    assert not re.search(operator.configure, "other.payment")


def test_an_ordered_consumer_may_lock_and_read_its_partitions_and_no_others() -> None:
    granted = by_user(reacting("ledger", "ORDER_PLACED", partitions=4), PAYMENT)["ledger"]
    for number in range(4):
        assert re.search(granted.configure, NAMES.partition_lock("ledger", number))
        assert re.search(granted.read, NAMES.partition("ledger", number))
        assert not re.search(granted.configure, NAMES.partition("ledger", number))
    assert not re.search(granted.configure, NAMES.partition_lock("ledger", 4))
    assert not re.search(granted.configure, NAMES.partition_lock("payment", 0))
    assert not re.search(granted.read, NAMES.partition("payment", 0))


def test_a_consumer_writes_what_it_says_that_it_publishes() -> None:
    granted = by_user(PAYMENT, RATING)
    announced = NAMES.exchange("PAYMENT_COMPLETED")
    assert re.search(granted["payment"].write, announced)
    assert not re.search(granted["rating"].write, announced)
    assert not re.search(granted["payment"].write, NAMES.exchange("ORDER_PLACED"))


def test_without_named_producers_one_may_announce_what_anybody_reacts_to() -> None:
    producer = by_user(PAYMENT, RATING)["producer"]
    assert re.search(producer.write, NAMES.exchange("ORDER_PLACED"))
    assert re.search(producer.write, NAMES.exchange("RIDE_COMPLETED"))
    assert not re.search(producer.write, "amq.default")
    checkout = by_user(PAYMENT, RATING, producers={"checkout": ["ORDER_PLACED"]})["checkout"]
    assert not re.search(checkout.write, NAMES.exchange("RIDE_COMPLETED"))


def test_two_parts_for_one_user_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="would be the user of several"):
        by_user(PAYMENT, producers={"payment": ["ORDER_PLACED"]})
    assert "team-payment" in by_user(PAYMENT, user_prefix="team-")


def test_a_command_is_quoted_for_the_shell() -> None:
    line = by_user(RATING)["rating"].command("/")
    assert line.startswith("rabbitmqctl set_permissions -p / rating '^$' '^(amq")


def test_what_is_no_event_type_is_not_published() -> None:
    with pytest.raises(ConfigurationError, match="is no event type"):
        Consumer("payment", publishes=["no type"])


def is_consumer_name(name: str) -> bool:
    try:
        check_consumer_name(name)
    except ConfigurationError:
        return False
    return True


names = st.from_regex(r"[a-z][a-z0-9_-]{0,9}", fullmatch=True).filter(is_consumer_name)


@given(names, names)
def test_no_consumer_may_read_the_queue_of_another(mine: str, other: str) -> None:
    if mine == other:
        return
    read = by_user(reacting(mine, "A"), producers={"p.p": ["A"]})[mine].read
    assert re.search(read, NAMES.queue(mine))
    for name in (NAMES.queue(other), NAMES.dead(other), NAMES.retry(other, 1), NAMES.dead(mine)):
        assert not re.search(read, name)
