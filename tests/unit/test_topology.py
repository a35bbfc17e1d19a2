"""Names never collide, arguments are those that keep events, buckets bound the lateness."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rabbitflow.settings import Settings
from rabbitflow.topology import (
    RETRY_BUCKETS_S,
    Names,
    Topology,
    bucket_for,
    consumer_topology,
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


@given(consumer_names, consumer_names)
def test_no_two_objects_ever_have_the_same_name(one: str, another: str) -> None:
    names = Names("ns")
    queues = [
        name
        for consumer in {one, another}
        for name in (
            names.queue(consumer),
            names.dead(consumer),
            names.paused(consumer),
            *(names.retry(consumer, bucket_s) for bucket_s in RETRY_BUCKETS_S),
        )
    ]
    queues += [names.log("ORDER_PLACED"), names.log("ORDER_PLACED.log")]
    assert len(set(queues)) == len(queues)


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


def test_a_namespace_prefixes_every_name() -> None:
    topology = payment(namespace="shop")
    names = [found.name for found in (*topology.exchanges, *topology.queues)]
    assert all(name.startswith("shop.") for name in names)
    assert Names("shop").event_type("shop.events.A.B") == "A.B"
    assert Names("shop").event_type("events.A") is None
