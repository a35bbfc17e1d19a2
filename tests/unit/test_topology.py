"""Names never collide, arguments are those that keep events, buckets bound the lateness."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rabbitflow import ConfigurationError
from rabbitflow.settings import Settings, load_settings
from rabbitflow.topology import (
    RETRY_BUCKETS_S,
    Names,
    Topology,
    bucket_for,
    check_consumer_name,
    consumer_topology,
    holding_queue,
    replacing_lock,
)

consumer_names = st.from_regex(r"[a-z][a-z0-9_-]{0,62}", fullmatch=True)


def arguments(topology: Topology, queue: str) -> dict[str, str | int]:
    return dict(next(found.arguments for found in topology.queues if found.name == queue))


def payment(**settings: object) -> Topology:
    return consumer_topology("payment", ["ORDER_PLACED"], [2, 1], Settings.model_validate(settings))


@given(st.floats(1, 65536 * 2, exclude_max=True))
def test_a_delay_waits_in_the_bucket_that_bounds_its_lateness(delay_s: float) -> None:
    bucket_s = bucket_for(delay_s)
    assert bucket_s in RETRY_BUCKETS_S
    assert bucket_s <= delay_s < 2 * bucket_s


def test_shorter_and_longer_delays_go_to_the_buckets_at_the_ends() -> None:
    assert bucket_for(0) == bucket_for(0.5) == 1
    assert bucket_for(1_000_000) == 65536


def is_accepted(check: Callable[[str], object], name: str) -> bool:
    try:
        check(name)
    except ConfigurationError:
        return False
    return True


# Words that the names are made of, beside any other: a collision is likeliest among these.
words = st.sampled_from(
    [
        "events",
        "dead",
        "paused",
        "workers",
        "migrating",
        "p0",
        "p3",
        "p3x",
        "lock",
        "retry",
        "log",
        "rabbitflow",
        "control",
        "a",
    ]
)
consumers = (words | consumer_names).filter(lambda name: is_accepted(check_consumer_name, name))
namespaces = st.none() | (
    (words | st.from_regex(r"[A-Za-z][A-Za-z0-9_-]{0,62}", fullmatch=True)).filter(
        lambda name: is_accepted(lambda namespace: load_settings(namespace=namespace), name)
    )
)
event_types = st.lists(words | st.sampled_from(["ORDER_PLACED", "1s"]), min_size=1, max_size=4).map(
    ".".join
)


PARTITIONS = (0, 3, 255)


def owned_queues(namespace: str | None, consumer: str, event_type: str) -> dict[str, object]:
    """Each queue's name, and the one thing it is for."""
    names = Names(namespace)
    owned: dict[str, object] = {
        names.queue(consumer): (namespace, consumer, "queue"),
        names.dead(consumer): (namespace, consumer, "dead"),
        names.workers(consumer): (namespace, consumer, "workers"),
        **{names.partition(consumer, n): (namespace, consumer, f"p{n}") for n in PARTITIONS},
        **{names.retry(consumer, k): (namespace, consumer, k) for k in RETRY_BUCKETS_S},
        names.log(event_type): (namespace, event_type, "log"),
    }
    replaced = {holding_queue(name): ("holding", owner) for name, owner in owned.items()}
    locks = {replacing_lock(name): ("lock", owner) for name, owner in owned.items()}
    locks |= {
        names.partition_lock(consumer, n): ("owner", namespace, consumer, n) for n in PARTITIONS
    }
    return owned | replaced | locks | {names.paused(consumer): (namespace, consumer, "paused")}


@given(namespaces, consumers, event_types, namespaces, consumers, event_types)
def test_no_two_queues_ever_have_the_same_name(
    one: str | None, consumer: str, event: str, other: str | None, consumer_2: str, event_2: str
) -> None:
    first, second = owned_queues(one, consumer, event), owned_queues(other, consumer_2, event_2)
    assert len(first) == 3 * (len(RETRY_BUCKETS_S) + 4 + len(PARTITIONS)) + len(PARTITIONS) + 1
    for name in first.keys() & second.keys():
        assert first[name] == second[name]


@given(namespaces, event_types, namespaces, event_types)
def test_no_two_exchanges_ever_have_the_same_name(
    one: str | None, event: str, other: str | None, event_2: str
) -> None:
    same = (one, event) == (other, event_2)
    assert (Names(one).exchange(event) == Names(other).exchange(event_2)) == same
    assert Names(one).exchange(event) != Names(other).control()
    assert Names(one).event_type(Names(one).exchange(event)) == event


@pytest.mark.parametrize("name", ["dead", "paused", "workers", "migrating"])
def test_a_consumer_called_like_another_ones_queue_is_refused(name: str) -> None:
    with pytest.raises(ConfigurationError, match="no consumer's name"):
        check_consumer_name(name)


def test_the_longest_names_fit_into_an_amqp_short_string() -> None:
    names = Names("n" * 63)
    assert len(names.log("E" * 128)) <= 255
    assert len(names.retry("c" * 63, 65536)) <= 255


def test_a_consumers_queue_counts_deliveries_and_never_refuses_its_publisher() -> None:
    assert arguments(payment(), "payment") == {
        "x-queue-type": "quorum",
        "x-delivery-limit": 50,
        "x-dead-letter-exchange": "",
        "x-dead-letter-routing-key": "payment.dead",
        "x-dead-letter-strategy": "at-least-once",
        "x-overflow": "reject-publish",
    }


def test_a_retry_queue_gives_back_to_its_consumer_alone() -> None:
    found = arguments(payment(), "payment.retry.2s")
    assert found["x-dead-letter-exchange"] == ""
    assert found["x-dead-letter-routing-key"] == "payment"
    assert found["x-dead-letter-strategy"] == "at-least-once"
    assert found["x-delivery-limit"] == 1_000_000
    assert found["x-overflow"] == "reject-publish"


@pytest.mark.parametrize("queue_type", ["quorum", "classic"])
def test_no_queue_of_a_consumer_has_a_limit_that_could_refuse_or_drop(queue_type: str) -> None:
    topology = payment(queue_type=queue_type, event_log=False)
    for queue in topology.queues:
        assert not {"x-max-length", "x-max-length-bytes", "x-message-ttl"} & set(queue.arguments)
        assert "x-expires" not in queue.arguments


def test_dead_letters_are_kept_without_a_time_limit() -> None:
    assert arguments(payment(), "payment.dead") == {
        "x-queue-type": "quorum",
        "x-delivery-limit": 1_000_000,
    }


def test_the_event_log_is_a_stream_bound_beside_the_consumers() -> None:
    topology = payment()
    assert arguments(topology, "events.ORDER_PLACED.log") == {
        "x-queue-type": "stream",
        "x-max-age": "7D",
        "x-max-length-bytes": 5_000_000_000,
    }
    bound = {(binding.exchange, binding.queue) for binding in topology.bindings}
    assert bound == {
        ("events.ORDER_PLACED", "events.ORDER_PLACED.log"),
        ("events.ORDER_PLACED", "payment"),
    }


def test_the_event_log_can_be_turned_off() -> None:
    assert not [queue for queue in payment(event_log=False).queues if queue.name.endswith(".log")]


def test_classic_queues_get_no_argument_that_only_quorum_queues_know() -> None:
    for queue in payment(queue_type="classic", event_log=False).queues:
        assert queue.arguments["x-queue-type"] == "classic"
        assert not {"x-delivery-limit", "x-dead-letter-strategy"} & set(queue.arguments)
    classic = payment(queue_type="classic")
    assert arguments(classic, "payment")["x-dead-letter-routing-key"] == "payment.dead"
    assert arguments(classic, "payment.retry.2s")["x-dead-letter-routing-key"] == "payment"


def test_what_two_consumers_share_is_declared_once() -> None:
    both = payment() + consumer_topology("rating", ["ORDER_PLACED"], [], Settings())
    assert [exchange.name for exchange in both.exchanges] == ["events.ORDER_PLACED"]
    assert len(both.queues) == len({queue.name for queue in both.queues})
    assert len(both.bindings) == 3


def test_all_retry_buckets_are_declared_once_and_in_order() -> None:
    topology = consumer_topology("payment", ["A"], [4, 1, 4, 2], Settings(event_log=False))
    retries = [queue.name for queue in topology.queues if ".retry." in queue.name]
    assert retries == ["payment.retry.1s", "payment.retry.2s", "payment.retry.4s"]


def test_a_namespace_prefixes_every_name() -> None:
    topology = payment(namespace="shop")
    names = [found.name for found in (*topology.exchanges, *topology.queues)]
    assert all(name.startswith("shop.") for name in names)
    assert Names("shop").event_type("shop.events.A.B") == "A.B"
    assert Names("shop").event_type("events.A") is None
