"""What a real Prometheus sees of a worker is what was done to it, figure by figure."""

from __future__ import annotations

import shutil
import signal
import urllib.request
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from rabbitflow import Event, Publisher, control
from rabbitflow.settings import Settings
from tests.harness.broker import Probe
from tests.harness.node import free_port
from tests.harness.prometheus import Prometheus, Sample, panels
from tests.harness.shop import EVENT_TYPES, SERVICES, TOO_EXPENSIVE, Shop, order, ride
from tests.harness.waiting import eventually
from tests.harness.workers import Worker

ORDERS, RIDES, DECLINED, GARBAGE, MISROUTED, KILLS = 60, 60, 5, 3, 7, 3
DONE = {
    "analytics": ORDERS + RIDES,
    "driver": RIDES,
    "inventory": ORDERS + 1,
    "payment": ORDERS + RIDES - DECLINED,
    "rating": RIDES,
}
MAILED = {"email": ORDERS, "notification": RIDES}
DEAD = {"payment": DECLINED + GARBAGE, "inventory": GARBAGE, "analytics": GARBAGE, "email": GARBAGE}
# Rides are announced later as well: two while nobody takes what payment says, one in a pause.
LEFT = {"surge": MISROUTED + RIDES + 3, "rating": 1}
RUNNING = tuple(name for name in SERVICES if name != "surge")
READY = 'rabbitflow_queue_messages{state="ready"}'
DIED = 'rabbitflow_child_restarts_total{reason="died"}'
WAITING_TO_RETRY = 'rabbitflow_queue_messages{state="retry"}'

METRICS = {
    "rabbitflow_events_published_total": {"event_type", "outcome"},
    "rabbitflow_publish_seconds": {"event_type"},
    "rabbitflow_events_handled_total": {"consumer", "event_type", "outcome"},
    "rabbitflow_handler_seconds": {"consumer", "event_type"},
    "rabbitflow_event_age_seconds": {"consumer", "event_type"},
    "rabbitflow_in_flight": {"consumer"},
    "rabbitflow_oldest_waiting_seconds": {"consumer"},
    "rabbitflow_queue_messages": {"consumer", "state"},
    "rabbitflow_consumer_up": {"consumer"},
    "rabbitflow_consumer_paused": {"consumer"},
    "rabbitflow_breaker_open": {"consumer"},
    "rabbitflow_child_restarts_total": {"consumer", "reason"},
    "rabbitflow_broker_connected": {"consumer", "role"},
    "rabbitflow_build_info": {"version"},
}


COUNTERS = (
    "rabbitflow_events_handled_total",
    "rabbitflow_events_published_total",
    "rabbitflow_child_restarts_total",
    "rabbitflow_handler_seconds_count",
    "rabbitflow_event_age_seconds_bucket",
)


@pytest.fixture
def swept(settings: Settings, probe: Probe) -> Settings:
    """Settings without an event log, in a namespace that the test leaves empty."""
    probe.leaves(SERVICES, EVENT_TYPES)
    return settings.model_copy(update={"event_log": False})


async def test_alerts_and_panels_show_what_was_injected(
    worker: Worker, swept: Settings, probe: Probe, tmp_path: Path
) -> None:
    if shutil.which("prometheus") is None:
        pytest.skip("no prometheus is installed: apt-get install prometheus")
    port, nobody = free_port(), f"127.0.0.1:{free_port()}"
    probe.declare_exchange("PAYMENT_COMPLETED")
    probe.tap("PAYMENT_COMPLETED")
    # surge is refused, because its queue has other arguments than it wants.
    probe.declare_queue(probe.names.queue("surge"))
    for _ in range(MISROUTED):
        probe.publish("", probe.names.queue("surge"), b"{}")
    with Prometheus(tmp_path / "prometheus", [f"127.0.0.1:{port}", nobody]) as prometheus:
        shop = Shop(worker, probe, prometheus, port)
        with shop.running():
            async with Publisher(settings=swept) as publisher:
                await worker.ready(*RUNNING)
                await eventually(lambda: shop.by_consumer(READY) == {"surge": MISROUTED})
                before = {
                    "RabbitflowWorkerDown": {nobody},
                    "RabbitflowConsumerAbsent": {"surge"},
                    "RabbitflowBacklogNotHandled": {"surge"},
                }
                await eventually(lambda: shop.alerting() == before)
                await load_is_counted(shop, publisher)
                await kills_are_seen_and_touch_nobody_else(shop)
                await failing_publishes_are_counted(shop, publisher)
                await a_pause_is_seen(shop, publisher, swept)
                after = {
                    **before,
                    "RabbitflowDeadLetters": set(DEAD),
                    "RabbitflowEventsLate": {"inventory"},
                    "RabbitflowRetryRatio": set(MAILED),
                    "RabbitflowRestartLoop": {"driver"},
                    "RabbitflowUnroutable": {"PAYMENT_COMPLETED"},
                    "RabbitflowPublishFailing": {"PAYMENT_COMPLETED"},
                    "RabbitflowConsumerPaused": {"rating"},
                }
                await eventually(lambda: shop.alerting() == after, what=f"{shop.alerting()}")
                the_dashboard_shows_it(shop)
        for counter in COUNTERS:
            backwards = prometheus.query(f"max(resets({counter}[10m]))")
            assert backwards[0].value == 0, counter


async def load_is_counted(shop: Shop, publisher: Publisher) -> None:
    """Orders and rides; some cards are declined, some bodies are none, and no mail goes out."""
    await publisher.publish_many(
        order(number, TOO_EXPENSIVE if number < DECLINED else 5) for number in range(ORDERS)
    )
    await publisher.publish_many(ride(number) for number in range(RIDES))
    names = shop.probe.names
    for _ in range(GARBAGE):
        shop.probe.publish(names.exchange("ORDER_PLACED"), "", b"not JSON")
    hour_old = {"timestamp": datetime.now(UTC) - timedelta(hours=1)}
    old = order(ORDERS).model_copy(update=hour_old)
    shop.probe.publish("", names.queue("inventory"), old.encode())
    await eventually(lambda: shop.handled("succeeded") == DONE, within_s=30, what=shop.worker.log())
    assert shop.effects() == DONE
    await eventually(lambda: shop.handled("dead_lettered") == DEAD)
    assert {name: shop.probe.depth(names.dead(name)) for name in DEAD} == DEAD
    await eventually(lambda: shop.by_consumer(WAITING_TO_RETRY).keys() == MAILED.keys())
    shop.mailbox.is_full = False
    await eventually(lambda: shop.handled("succeeded") == DONE | MAILED, within_s=30)
    assert shop.effects() == DONE | MAILED
    assert sum(shop.handled("retried").values()) == shop.mailbox.refused
    assert shop.published("confirmed") == DONE["payment"]


async def kills_are_seen_and_touch_nobody_else(shop: Shop) -> None:
    """The process of driver is killed: it is down, not ready, and back."""
    counted = shop.handled("succeeded")
    others = shop.pids()
    del others["driver"]
    for kill in range(1, KILLS + 1):
        shop.worker.child("driver").kill()
        await eventually(lambda: shop.not_ready().get("driver") == "its process is down")
        assert 'rabbitflow_consumer_up{consumer="driver"} 0.0' in shop.get("/metrics")[1]
        assert shop.get("/healthz")[0] == 200
        await eventually(lambda: shop.not_ready().keys() == {"surge"}, within_s=20)
        await eventually(lambda kill=kill: shop.by_consumer(DIED) == {"driver": kill})
    assert shop.pids().items() >= others.items()
    assert shop.handled("succeeded") == counted


async def failing_publishes_are_counted(shop: Shop, publisher: Publisher) -> None:
    """Nobody takes what payment announces: first its queue is full, then there is none."""
    paid = shop.published("confirmed")
    tap = shop.probe.tap_name("PAYMENT_COMPLETED")
    shop.probe.delete_queue(tap)
    shop.probe.tap("PAYMENT_COMPLETED", {"x-max-length": 1, "x-overflow": "reject-publish"})
    shop.probe.publish("", tap, b"full")
    await publisher.publish_many(ride(RIDES + number) for number in range(2))
    await eventually(lambda: shop.published("failed") >= 2)
    shop.probe.delete_queue(tap)
    await eventually(lambda: shop.published("unroutable") >= 2)
    shop.probe.tap("PAYMENT_COMPLETED")
    await eventually(lambda: shop.published("confirmed") == paid + 2, within_s=30)
    failed = shop.published("failed") + shop.published("unroutable")
    assert shop.handled("retried")["payment"] == failed


async def a_pause_is_seen(shop: Shop, publisher: Publisher, settings: Settings) -> None:
    """rating is paused; its queue keeps what comes."""
    await control.pause("rating", settings)
    await eventually(lambda: shop.by_consumer("rabbitflow_consumer_paused") == {"rating": 1})
    await publisher.publish(ride(RIDES + 2))
    await eventually(lambda: shop.by_consumer(READY) == LEFT)


def the_dashboard_shows_it(shop: Shop) -> None:
    """Every query of every panel is read, and answers; the figures are those that were made."""
    shown: dict[str, list[Sample]] = {}
    for panel in panels("1m"):
        for query, _ in panel.queries:
            samples = shop.prometheus.query(query)
            assert samples, f"{panel.title} shows nothing: {query}"
            shown[f"{panel.row}: {panel.title}"] = samples

    def figure(panel: str) -> float:
        (sample,) = shown[panel]
        return sample.value

    def figures(panel: str) -> dict[str, float]:
        return {sample.labels["consumer"]: sample.value for sample in shown[panel]}

    assert figures("In one look: Consumers") == {name: float(name != "surge") for name in SERVICES}
    assert figures("In one look: Paused") == {"rating": 1}
    assert figure("In one look: Dead letters") == sum(DEAD.values())
    assert figure("In one look: Waiting") == sum(LEFT.values())
    assert figure("In one look: Unroutable, 10 min") >= 2
    dead = figures("Queues: Dead letters")
    assert {name: count for name, count in dead.items() if count} == DEAD
    assert figures("Queues: Processes started again")["driver"] >= KILLS
    assert {sample.labels["outcome"] for sample in shown["Publishing: Published"]} >= {"confirmed"}


@pytest.fixture
def served(worker: Worker) -> Callable[[], str]:
    """A worker of one consumer is started; returns what reads its metrics."""
    port = free_port()
    worker.module(
        "payment",
        """
        payment = Consumer("payment")
        @payment.on("ORDER_PLACED")
        async def charge(event: Event, context: Context) -> None:
            await context.publish("PAYMENT_COMPLETED", {})
        """,
    )
    worker.start(RABBITFLOW_METRICS_PORT=str(port))

    def read() -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            return str(answer.read().decode())

    return read


async def test_counters_go_on_over_a_reload(
    worker: Worker, publisher: Publisher, served: Callable[[], str]
) -> None:
    labels = 'consumer="payment",event_type="ORDER_PLACED",outcome="succeeded"'
    await worker.ready("payment")
    await publisher.publish_many(Event(type="ORDER_PLACED", data={}) for _ in range(5))
    handled = f"rabbitflow_events_handled_total{{{labels}}}"
    await eventually(lambda: f"{handled} 5.0" in served())
    worker.signal(signal.SIGHUP)
    await worker.ready("payment", times=2)
    await publisher.publish("ORDER_PLACED", {})
    await eventually(lambda: f"{handled} 6.0" in served())
    published = (
        'rabbitflow_events_published_total{event_type="PAYMENT_COMPLETED",outcome="confirmed"}'
    )
    assert f"{published} 6.0" in served()


async def test_metrics_have_the_names_and_labels_that_are_documented(
    worker: Worker, publisher: Publisher, served: Callable[[], str]
) -> None:
    await worker.ready("payment")
    await publisher.publish("ORDER_PLACED", {})
    await eventually(lambda: names_and_labels(served()) == METRICS, what=f"{METRICS}")
    documented = (Path(__file__).parents[2] / "docs/observability.md").read_text()
    for name, labels in METRICS.items():
        assert f"`{name}" in documented
        assert all(f"`{label}`" in documented for label in labels)


def names_and_labels(text: str) -> dict[str, set[str]]:
    """What a worker shows, the histograms' own parts left out."""
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            name = family.name if family.type == "histogram" else sample.name
            found.setdefault(name, set()).update(sample.labels.keys() - {"le"})
    return found
