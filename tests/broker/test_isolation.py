"""An event that kills its process is found and set aside; its neighbours do not suffer for it."""

from __future__ import annotations

import json
import resource
import time
import urllib.error
import urllib.request
from collections import Counter

import psutil
import pytest

from rabbitflow import Event, Publisher, control
from rabbitflow.topology import EXCEPTION_MESSAGE, REASON
from tests.harness.broker import Probe
from tests.harness.node import free_port
from tests.harness.waiting import eventually
from tests.harness.workers import Worker

RATING = """
    rating = Consumer("rating", concurrency=8, prefetch=10)
    @rating.on("ORDER_PLACED")
    async def rate(event: Event, context: Context) -> None:
        if event.data["number"] == 13:
            {death}
        await asyncio.sleep(0.01)
        ledger.write("rating", event.id, event.data["number"], context.attempt)
"""
PAYMENT = """
    payment = Consumer("payment")
    @payment.on("ORDER_PLACED")
    async def charge(event: Event, context: Context) -> None:
        ledger.write("payment", event.id, event.data["number"], context.attempt)
"""


@pytest.mark.parametrize(
    ("death", "cause"),
    [
        ("ctypes.string_at(0)", "signal 11 (SIGSEGV)"),
        ("os._exit(3)", "exit code 3"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "signal 9 (SIGKILL)"),
        ("time.sleep(60)", "its event loop stood still for"),
    ],
)
async def test_poison_is_dead_lettered_and_its_neighbours_are_handled(
    worker: Worker, publisher: Publisher, probe: Probe, death: str, cause: str
) -> None:
    worker.module("rating", RATING.format(death=death))
    worker.module("payment", PAYMENT)
    worker.start(RABBITFLOW_STALL_TIMEOUT_S="2")
    await worker.ready("rating", "payment")
    events = [Event(type="ORDER_PLACED", data={"number": number}) for number in range(50)]
    poison = events[13].id
    began = time.time()
    await publisher.publish_many(events)
    dead = probe.names.dead("rating")
    await eventually(lambda: probe.depth(dead) > 0, within_s=30, what=worker.log)
    await eventually(lambda: len(set(worker.ledger.ids("rating"))) == 49, within_s=20)
    message = probe.take(dead)
    assert message is not None
    headers, properties, body = message
    assert properties.message_id == poison
    assert body == events[13].encode()
    assert headers[REASON] == "crashed"
    assert cause in headers[EXCEPTION_MESSAGE]
    assert worker.said(f"event {poison} was alone in rating: strike") == 2, "it killed three"
    assert probe.depth(dead) == 0, "an innocent was set aside"
    assert set(worker.ledger.ids("rating")) == {event.id for event in events} - {poison}
    payments = worker.ledger.of("payment")
    assert Counter(effect.event_id for effect in payments) == Counter(e.id for e in events)
    assert max(effect.at for effect in payments) - began < 2.0


async def test_strikes_are_remembered_when_the_supervisor_is_started_again(
    worker: Worker, publisher: Publisher, probe: Probe
) -> None:
    worker.module("rating", RATING.format(death="os._exit(3)"))
    worker.start()
    await worker.ready("rating")
    await publisher.publish("ORDER_PLACED", {"number": 13})
    await eventually(lambda: worker.said("strike 1") == 1)
    worker.signal()
    worker.exit_code()
    strikes = 2 - max(n for n in (1, 2) if worker.said(f"strike {n}"))
    deaths = worker.said("rating died")
    worker.start()
    await eventually(lambda: probe.depth(probe.names.dead("rating")) == 1, within_s=20)
    assert worker.said("rating died") - deaths <= strikes + 1


async def test_a_crash_loop_of_one_consumer_does_not_delay_another(
    worker: Worker, publisher: Publisher
) -> None:
    in_child = "rabbitflow.worker.child"
    worker.module(
        "rating",
        RATING.format(death="pass") + f"    if {in_child!r} in sys.orig_argv: os._exit(4)\n",
    )
    worker.module("payment", PAYMENT)
    worker.start()
    await worker.ready("payment")
    sent_at = {}
    number = 0
    while worker.said("rating died (exit code 4)") < 4:
        number += 1
        event = await publisher.publish("ORDER_PLACED", {"number": number})
        sent_at[event.id] = time.time()
        # One by one: a broker that confirms faster than a ledger writes makes a queue of its own.
        await eventually(lambda number=number: len(worker.ledger.of("payment")) == number)
    late = [effect.at - sent_at[effect.event_id] for effect in worker.ledger.of("payment")]
    assert max(late) < 0.5


async def test_a_child_that_cannot_be_started_is_tried_again_and_its_neighbour_runs_on(
    worker: Worker, publisher: Publisher
) -> None:
    worker.module("rating", RATING.format(death="pass"))
    worker.module("payment", PAYMENT)
    worker.start()
    await worker.ready("rating")
    await worker.ready("payment")
    supervisor = psutil.Process(worker.pid)
    limits = supervisor.rlimit(resource.RLIMIT_NOFILE)
    supervisor.rlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
    worker.child("rating").kill()
    await eventually(lambda: worker.said("rating can't be started, and is tried again") > 1)
    await publisher.publish("ORDER_PLACED", {"number": 1})
    await eventually(lambda: worker.ledger.of("payment"))
    supervisor.rlimit(resource.RLIMIT_NOFILE, limits)
    await eventually(lambda: worker.ledger.of("rating"))
    assert worker.said("Too many open files")
    assert not worker.said("Traceback")


async def test_metrics_and_readiness_follow_a_killed_child(
    worker: Worker, publisher: Publisher
) -> None:
    port = free_port()
    worker.module("rating", RATING.format(death="pass"))
    worker.module("payment", PAYMENT)
    worker.start(RABBITFLOW_METRICS_PORT=str(port))

    def get(path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}") as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def sample(line: str) -> float:
        found = [row for row in get("/metrics")[1].splitlines() if row.startswith(line)]
        return float(found[0].rsplit(" ", 1)[1]) if found else 0.0

    await worker.ready("rating", "payment")
    await eventually(lambda: get("/readyz")[0] == 200)
    await publisher.publish_many(
        Event(type="ORDER_PLACED", data={"number": number}) for number in range(20)
    )
    labels = 'consumer="rating",event_type="ORDER_PLACED",outcome="succeeded"'
    handled = f"rabbitflow_events_handled_total{{{labels}}}"
    await eventually(lambda: sample(handled) == 20)
    worker.child("rating").kill()
    await eventually(lambda: get("/readyz")[0] == 503)
    assert json.loads(get("/readyz")[1])["consumers"] == {"rating": False, "payment": True}
    assert sample('rabbitflow_consumer_up{consumer="rating"}') == 0
    assert sample('rabbitflow_consumer_up{consumer="payment"}') == 1
    assert get("/healthz")[0] == 200
    await eventually(lambda: get("/readyz")[0] == 200)
    assert sample(handled) == 20, "a counter never goes backwards"
    assert sample('rabbitflow_child_restarts_total{consumer="rating",reason="died"}') == 1
    assert get("/nosuch")[0] == 404


async def test_a_paused_consumer_keeps_its_events_also_when_started_again(
    worker: Worker, publisher: Publisher, probe: Probe
) -> None:
    worker.module("payment", PAYMENT)
    worker.start()
    await worker.ready("payment")
    await control.pause("payment", worker.settings)
    await eventually(lambda: worker.said("payment is paused by an operator") == 1)
    event = await publisher.publish("ORDER_PLACED", {"number": 1})
    worker.signal()
    assert worker.exit_code() == 0
    worker.start()
    await eventually(lambda: worker.said("payment is paused by an operator") == 2)
    assert probe.depth(probe.names.queue("payment")) == 1
    assert worker.ledger.ids("payment") == []
    assert await control.resume("payment", worker.settings)
    await eventually(lambda: worker.ledger.ids("payment") == [event.id])
    assert not await control.resume("payment", worker.settings)


async def test_a_pause_that_nobody_heard_because_a_process_had_just_died_takes_effect(
    worker: Worker, publisher: Publisher
) -> None:
    """Who takes the place of one that died is told of pauses only when it has lived a while."""
    worker.module("payment", PAYMENT)
    worker.start()
    await worker.ready("payment")
    worker.child("payment").kill()
    await worker.ready("payment", times=2)
    await control.pause("payment", worker.settings)
    await eventually(lambda: worker.said("payment is paused by an operator") == 1)
    event = await publisher.publish("ORDER_PLACED", {"number": 1})
    assert await control.resume("payment", worker.settings)
    await eventually(lambda: worker.ledger.ids("payment") == [event.id], within_s=5)


async def test_while_its_breaker_is_open_a_consumer_spends_no_attempts(
    worker: Worker, publisher: Publisher, probe: Probe
) -> None:
    worker.module(
        "payment",
        """
        payment = Consumer("payment", concurrency=2, retry=Retry.fixed(attempts=4, wait="1s"),
                           breaker=Breaker(window=4, probe_after="300ms", cap="600ms"))
        @payment.on("ORDER_PLACED")
        async def charge(event: Event, context: Context) -> None:
            if not Path("mended").exists():
                raise ConnectionError("the bank is down")
            ledger.write("payment", event.id, event.data["number"], context.attempt)
        """,
    )
    port = free_port()
    worker.start(RABBITFLOW_METRICS_PORT=str(port))

    def is_open() -> bool:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
            return 'rabbitflow_breaker_open{consumer="payment"} 1.0' in answer.read().decode()

    await worker.ready("payment")
    assert not is_open()
    await publisher.publish_many(
        Event(type="ORDER_PLACED", data={"number": number}) for number in range(40)
    )
    await eventually(lambda: worker.said("4 of its last 4 events failed") == 1)
    await eventually(is_open)
    (worker.directory / "mended").touch()
    await eventually(lambda: len(worker.ledger.of("payment")) == 40, within_s=30)
    await eventually(lambda: worker.said("its circuit breaker closed") == 1)
    await eventually(lambda: not is_open())
    assert probe.depth(probe.names.dead("payment")) == 0


async def test_no_more_events_begin_than_the_rate_limit_allows(
    worker: Worker, publisher: Publisher
) -> None:
    worker.module(
        "payment",
        """
        payment = Consumer("payment", rate_limit="40/s")
        @payment.on("ORDER_PLACED")
        async def charge(event: Event) -> None:
            ledger.write("payment", event.id)
        """,
    )
    worker.start()
    await worker.ready("payment")
    await publisher.publish_many(
        Event(type="ORDER_PLACED", data={"number": number}) for number in range(60)
    )
    await eventually(lambda: len(worker.ledger.of("payment")) == 60)
    began = [effect.at for effect in worker.ledger.of("payment")]
    # A tenth of a second's worth may start together.
    assert began[-1] - began[0] >= (60 - 1) / 40 - 0.1 - 0.1


async def test_a_batch_is_settled_event_by_event(
    worker: Worker, publisher: Publisher, probe: Probe
) -> None:
    worker.module(
        "payment",
        """
        payment = Consumer("payment", retry=Retry.none())
        @payment.on_batch("ORDER_PLACED", size=10, within="200ms")
        async def charge(events: list[Event]) -> None:
            if any(event.data["number"] == 3 for event in events):
                raise ValueError("three")
            for event in events:
                ledger.write("payment", event.id, len(events))
        """,
    )
    worker.start()
    await worker.ready("payment")
    events = [Event(type="ORDER_PLACED", data={"number": number}) for number in range(25)]
    await publisher.publish_many(events)
    await eventually(lambda: len(worker.ledger.of("payment")) == 24)
    assert set(worker.ledger.ids("payment")) == {event.id for event in events} - {events[3].id}
    assert max(effect.number for effect in worker.ledger.of("payment")) == 10
    await eventually(lambda: probe.depth(probe.names.dead("payment")) == 1)
    message = probe.take(probe.names.dead("payment"))
    assert message is not None
    assert message[1].message_id == events[3].id
