"""Announce an event, and every consumer reacts, each once, whatever happens to its neighbours."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from urllib.parse import urlsplit

import pika
import psutil
import pytest

from rabbitflow import Event, Publisher
from rabbitflow.settings import Settings
from tests.harness.broker import Probe, remove_namespace
from tests.harness.waiting import eventually
from tests.harness.workers import Worker

REACTS = """
    {name} = Consumer("{name}", concurrency={concurrency})
    @{name}.on("ORDER_PLACED")
    async def react(event: Event, context: Context) -> None:
        {before}
        ledger.write("{name}", event.id, event.data["number"], context.attempt)
"""


def reacts(name: str, before: str = "pass", concurrency: int = 8) -> str:
    return REACTS.format(name=name, before=before, concurrency=concurrency)


def orders(count: int) -> list[Event]:  # type: ignore[type-arg]
    return [Event(type="ORDER_PLACED", data={"number": number}) for number in range(count)]


@pytest.mark.on_both
async def test_one_event_reaches_every_consumer_once(worker: Worker, publisher: Publisher) -> None:
    names = ("payment", "inventory", "email", "rating")
    for name in names:
        worker.module(name, reacts(name))
    worker.start()
    await worker.ready(*names)
    event = await publisher.publish("ORDER_PLACED", {"number": 1})
    for name in names:
        await eventually(lambda name=name: worker.ledger.ids(name) == [event.id])
    worker.signal()
    assert worker.exit_code() == 0
    assert all(worker.ledger.ids(name) == [event.id] for name in names)


@pytest.mark.on_both
async def test_sync_and_async_handlers_get_what_they_ask_for(
    worker: Worker, publisher: Publisher
) -> None:
    worker.module(
        "payment",
        """
        from pydantic import BaseModel
        class Order(BaseModel):
            number: int
        payment = Consumer("payment")
        @payment.on("ORDER_PLACED")
        def charge(order: Order, context: Context) -> None:
            done = context.publish_sync("PAYMENT_COMPLETED", {"number": order.number})
            ledger.write("payment", done.causation_id, order.number)
        email = Consumer("email")
        @email.on("PAYMENT_COMPLETED")
        async def thank(event: Event[Order]) -> None:
            ids = event.causation_id + " " + event.correlation_id
            ledger.write("email", ids, event.data.number)
        """,
    )
    worker.start()
    await worker.ready("payment", "email")
    event = await publisher.publish("ORDER_PLACED", {"number": 7}, correlation_id="c-1")
    await eventually(lambda: worker.ledger.ids("email") == [f"{event.id} c-1"])
    assert worker.ledger.ids("payment") == [event.id]


@pytest.mark.parametrize(
    "death",
    [
        "ctypes.string_at(0)",
        "sys.exit(3)",
        "os._exit(3)",
        "os.kill(os.getpid(), signal.SIGKILL)",
    ],
)
async def test_a_rating_consumer_that_dies_does_not_touch_payment(
    worker: Worker, publisher: Publisher, death: str
) -> None:
    worker.module("payment", reacts("payment"))
    worker.module("rating", reacts("rating", f"{death} if event.data['number'] == 50 else None"))
    worker.start()
    await worker.ready("payment", "rating")
    sent_at = {}
    for event in orders(200):
        await publisher.publish(event)
        sent_at[event.id] = time.time()
    await eventually(lambda: len(worker.ledger.of("payment")) >= 200, within_s=20)
    effects = worker.ledger.of("payment")
    assert Counter(effect.event_id for effect in effects) == Counter(list(sent_at))
    assert max(effect.at - sent_at[effect.event_id] for effect in effects) < 1.0


async def test_a_killed_child_is_replaced_and_its_events_come_again(
    worker: Worker, publisher: Publisher
) -> None:
    worker.module("payment", reacts("payment", "await asyncio.sleep(0.01)"))
    worker.module("rating", reacts("rating"))
    worker.start()
    await worker.ready("payment", "rating")
    rating_pid = worker.child("rating").pid
    await publisher.publish_many(orders(500))
    await eventually(lambda: len(worker.ledger.of("payment")) > 50)
    worker.child("payment").kill()
    await eventually(lambda: len(set(worker.ledger.ids("payment"))) == 500, within_s=30)
    assert worker.child("rating").pid == rating_pid
    again = Counter(worker.ledger.ids("payment"))
    assert sum(count - 1 for count in again.values()) <= 12, "more came again than were in flight"


@pytest.mark.parametrize(
    "fault", ["raise ValueError('boom')", "sys.exit(9)", "os._exit(9)", "import nosuch"]
)
async def test_a_module_that_cannot_be_imported_leaves_the_others_running(
    worker: Worker, publisher: Publisher, fault: str
) -> None:
    worker.module("broken", fault)
    worker.module("payment", reacts("payment"))
    worker.start()
    await worker.ready("payment")
    event = await publisher.publish("ORDER_PLACED", {"number": 1})
    await eventually(lambda: worker.ledger.ids("payment") == [event.id])
    assert worker.said("module services.broken is not run: ") == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_worker_stopped_under_load_loses_nothing_and_does_nothing_twice(
    worker: Worker, publisher: Publisher, number: signal.Signals
) -> None:
    worker.module("payment", reacts("payment", "await asyncio.sleep(0.001)"))
    worker.start()
    await worker.ready("payment")
    await publisher.publish_many(orders(3000))
    await eventually(lambda: len(worker.ledger.of("payment")) > 200)
    worker.signal(number)
    assert worker.exit_code() == 0
    handled = len(worker.ledger.of("payment"))
    assert handled < 3000, "it was not stopped under load"
    worker.start()
    await eventually(lambda: len(worker.ledger.of("payment")) >= 3000, within_s=30)
    worker.signal()
    assert worker.exit_code() == 0
    assert Counter(worker.ledger.ids("payment")).most_common(1)[0][1] == 1
    assert len(set(worker.ledger.ids("payment"))) == 3000


async def test_a_second_signal_stops_at_once_and_gives_the_rest_back(
    worker: Worker, publisher: Publisher, probe: Probe
) -> None:
    worker.module(
        "payment", reacts("payment", "print('begun', flush=True); await asyncio.sleep(30)")
    )
    worker.start()
    await worker.ready("payment")
    await publisher.publish_many(orders(3))
    await eventually(lambda: worker.said("begun") == 3)
    began = time.monotonic()
    worker.signal()
    await eventually(lambda: worker.said("payment stops; 3 events are still in it") == 1)
    worker.signal()
    assert worker.exit_code() == 0
    assert time.monotonic() - began < 10
    assert probe.depth(probe.names.queue("payment")) == 3


async def test_events_not_finished_within_the_shutdown_timeout_go_back(
    worker: Worker, publisher: Publisher, probe: Probe
) -> None:
    worker.module(
        "payment", reacts("payment", "print('begun', flush=True); await asyncio.sleep(30)")
    )
    worker.start("--shutdown-timeout", "0.5")
    await worker.ready("payment")
    await publisher.publish_many(orders(2))
    await eventually(lambda: worker.said("begun") == 2)
    worker.signal()
    assert worker.exit_code(15) == 0
    assert worker.said("stops with 2 events unfinished") == 1
    assert probe.depth(probe.names.queue("payment")) == 2


@pytest.mark.parametrize("consumers", [["payment"], ["payment", "email"]])
async def test_a_supervisor_that_is_killed_leaves_nobody_behind(
    worker: Worker, consumers: list[str]
) -> None:
    for name in consumers:
        worker.module(name, reacts(name))
    worker.start()
    for name in consumers:
        await worker.ready(name)
    children = worker.children()
    forks = any("rabbitflow.worker.forkserver" in child.cmdline() for child in children)
    assert forks == (len(consumers) > 1)
    psutil.Process(worker.pid).kill()
    worker.exit_code()
    await eventually(lambda: not any(child.is_running() for child in children))


async def test_a_worker_is_stopped_while_it_starts(worker: Worker, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import sys, time\n"
        "if 'rabbitflow.worker.forkserver' in sys.orig_argv:\n"
        "    print('the server starts', flush=True)\n"
        "    time.sleep(3600)\n"
    )
    for name in ("payment", "email"):
        worker.module(name, reacts(name))
    worker.start(PYTHONPATH=f"{tmp_path}:{worker.environment()['PYTHONPATH']}")
    await eventually(lambda: worker.said("the server starts"), within_s=30)
    worker.signal()
    assert worker.exit_code() == 0
    assert not worker.said("died")


async def test_a_hang_up_starts_everything_anew(worker: Worker, publisher: Publisher) -> None:
    worker.module("payment", reacts("payment"))
    worker.start()
    await worker.ready("payment")
    first = worker.child("payment").pid
    worker.module("email", reacts("email"))
    worker.signal(signal.SIGHUP)
    await worker.ready("payment", times=2)
    await worker.ready("email")
    assert worker.child("payment").pid != first


async def test_a_change_of_code_is_run_when_reload_is_asked_for(
    worker: Worker, publisher: Publisher
) -> None:
    worker.module("payment", reacts("payment"))
    worker.start("--reload")
    await worker.ready("payment")
    worker.module("payment", reacts("payment", "event = event.model_copy(update={'id': 'new'})"))
    await worker.ready("payment", times=2)
    await publisher.publish("ORDER_PLACED", {"number": 1})
    await eventually(lambda: worker.ledger.ids("payment") == ["new"])


async def test_two_processes_share_the_events_of_a_consumer(
    worker: Worker, publisher: Publisher
) -> None:
    worker.module("payment", reacts("payment", "await asyncio.sleep(0.005)", concurrency=1))
    worker.start("--processes", "2", "--concurrency", "2")
    await worker.ready("payment", times=2)
    await publisher.publish_many(orders(100))
    await eventually(lambda: len(worker.ledger.of("payment")) == 100)
    assert len({effect.pid for effect in worker.ledger.of("payment")}) == 2


async def test_everything_runs_in_one_process_for_a_debugger(
    worker: Worker, publisher: Publisher
) -> None:
    for name in ("payment", "email"):
        worker.module(name, reacts(name))
    worker.start("--single-process")
    await worker.ready("payment", "email")
    event = await publisher.publish("ORDER_PLACED", {"number": 1})
    await eventually(
        lambda: worker.ledger.ids("payment") == worker.ledger.ids("email") == [event.id]
    )
    assert worker.ledger.of("payment")[0].pid == worker.pid
    worker.signal()
    assert worker.exit_code() == 0


async def test_a_namespace_keeps_to_itself(
    worker: Worker, publisher: Publisher, settings: Settings
) -> None:
    worker.module("payment", reacts("payment"))
    worker.start()
    await worker.ready("payment")
    other = settings.model_copy(update={"namespace": f"{settings.namespace}-b"})
    async with Publisher(settings=other) as stranger:
        await stranger.publish("ORDER_PLACED", {"number": 1})
    event = await publisher.publish("ORDER_PLACED", {"number": 2})
    await eventually(lambda: worker.ledger.ids("payment") == [event.id])
    remove_namespace(other, (), ("ORDER_PLACED",))


BODY = json.dumps(
    {"type": "ORDER_PLACED", "timestamp": "2026-04-03T10:30:00Z", "data": {"number": 9}}
)


async def test_an_event_published_with_pika_is_handled(worker: Worker, probe: Probe) -> None:
    worker.module("payment", reacts("payment"))
    worker.start()
    await worker.ready("payment")
    probe.publish(
        probe.names.exchange("ORDER_PLACED"),
        "",
        BODY.encode(),
        pika.BasicProperties(message_id="from-pika"),
    )
    await eventually(lambda: worker.ledger.ids("payment") == ["from-pika"])


@pytest.mark.skipif(shutil.which("amqp-publish") is None, reason="amqp-tools is not installed")
async def test_an_event_published_with_amqp_tools_is_handled(
    worker: Worker, probe: Probe, settings: Settings
) -> None:
    worker.module("payment", reacts("payment"))
    worker.start()
    await worker.ready("payment")
    broker = urlsplit(settings.broker_url)
    subprocess.run(
        [
            "amqp-publish",
            f"--server={broker.hostname}",
            f"--port={broker.port or 5672}",
            f"--exchange={probe.names.exchange('ORDER_PLACED')}",
            f"--body={BODY}",
        ],
        check=True,
    )
    await eventually(lambda: [effect.number for effect in worker.ledger.of("payment")] == [9])


def started(worker: Worker, *modules: str) -> tuple[int, str]:
    code = worker.run_to_end(modules=modules or ("services",))
    return code, worker.log()


def test_two_consumers_of_one_name_are_refused(worker: Worker) -> None:
    worker.module("one", reacts("payment"))
    worker.module("two", reacts("payment"))
    code, log = started(worker)
    assert code == 78
    assert "two consumers are named 'payment', in services.one and services.two" in log


def test_a_consumer_without_handlers_is_refused(worker: Worker) -> None:
    worker.module("payment", "payment = Consumer('payment')")
    code, log = started(worker)
    assert code == 78
    assert "consumer payment (services.payment) handles nothing" in log


def test_a_handler_that_cannot_be_called_is_refused_with_file_and_line(worker: Worker) -> None:
    worker.module(
        "payment",
        """
        payment = Consumer("payment")
        @payment.on("ORDER_PLACED")
        def charge(order): ...
        """,
    )
    code, log = started(worker)
    assert code == 78
    assert "services/payment.py:" in log
    assert "argument 'order' has no annotation" in log
    assert "Traceback" not in log


def test_a_module_that_does_not_exist_is_refused(worker: Worker) -> None:
    code, log = started(worker, "services.nosuch")
    assert code == 78
    assert "No module named 'services.nosuch'" in log
    assert "Traceback" not in log


def test_a_package_without_consumers_is_refused(worker: Worker) -> None:
    code, log = started(worker)
    assert code == 78
    assert "no consumer is defined in services" in log


def test_a_queue_with_other_arguments_is_refused_in_one_line(worker: Worker, probe: Probe) -> None:
    queue = probe.names.queue("payment")
    probe.declare_queue(queue, {"x-queue-type": "quorum", "x-delivery-limit": 5})
    worker.module("payment", reacts("payment"))
    code, log = started(worker)
    assert code == 78
    assert f"queue {queue} exists with x-" in log
    assert log.count("exists with") == 1
    assert "Traceback" not in log


def test_a_wrong_password_is_refused_and_shown_nowhere(worker: Worker) -> None:
    worker.module("payment", reacts("payment"))
    broker = urlsplit(worker.settings.broker_url)
    worker.start(RABBITFLOW_URL=f"amqp://guest:s3cret@{broker.hostname}:{broker.port}/")
    assert worker.exit_code() == 78
    assert "refused the user name or the password" in worker.log()
    assert "s3cret" not in worker.log()


async def test_no_password_is_in_the_arguments_of_any_process(worker: Worker) -> None:
    worker.module("payment", reacts("payment"))
    worker.start()
    await worker.ready("payment")
    for process in [psutil.Process(worker.pid), *worker.children()]:
        assert "guest:guest" not in " ".join(process.cmdline())
    assert "guest:guest" not in worker.log()


async def test_without_a_broker_a_worker_says_so_and_waits_for_it(worker: Worker) -> None:
    worker.module("payment", reacts("payment"))
    worker.start(RABBITFLOW_URL="amqp://guest:guest@127.0.0.1:1/")
    await eventually(lambda: worker.said("no broker answers at amqp://guest@127.0.0.1:1/") > 1)
    worker.signal()
    assert worker.exit_code() == 0
    assert "Traceback" not in worker.log()


def test_without_declaring_what_is_missing_is_named(worker: Worker, probe: Probe) -> None:
    worker.module("payment", reacts("payment"))
    assert worker.run_to_end("--no-declare") == 78
    assert f"not on the broker: exchange {probe.names.exchange('ORDER_PLACED')}" in worker.log()
    assert "rabbitflow topology apply" in worker.log()


async def test_what_an_administrator_applied_is_enough(
    worker: Worker, publisher: Publisher
) -> None:
    worker.module("payment", reacts("payment"))
    applied = subprocess.run(
        [sys.executable, "-m", "rabbitflow", "topology", "apply", "services"],
        cwd=worker.directory,
        env=worker.environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert "exchanges" in applied.stdout
    worker.start("--no-declare")
    await worker.ready("payment")
    event = await publisher.publish("ORDER_PLACED", {"number": 1})
    await eventually(lambda: worker.ledger.ids("payment") == [event.id])
