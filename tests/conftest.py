"""Both brokers for every test that talks to one, and a namespace of its own for each."""

from __future__ import annotations

import os
import secrets
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import hypothesis
import pytest
from pydantic import SecretStr
from yarl import URL

from rabbitflow import Publisher
from rabbitflow.settings import DEFAULT_URL, Settings, load_settings
from rabbitflow.store import EventStore
from tests.harness import postgres
from tests.harness.broker import Namespaces, Probe
from tests.harness.command import Command
from tests.harness.embedded import embedded_broker
from tests.harness.node import Broker, PrivateNode, answers_amqp, local_ctl, server_binary
from tests.harness.workers import Worker

# A busy machine is no fault of what is tested.
hypothesis.settings.register_profile("any-machine", deadline=None)
hypothesis.settings.load_profile("any-machine")

# A shell has what it starts in the background ignore SIGINT, and so do all processes below; some of
# them are to hear it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--faults-table", metavar="FILE", help="Write the tables of the fault suite into a page."
    )
    parser.addoption(
        "--processes-on-both", action="store_true", help="Run workers on the embedded broker too."
    )


RUNS_PROCESSES = {"worker", "rabbitflow", "publish", "installed"}
PROCESSES = "about processes of its own, which take seconds to run; on RabbitMQ only"


def has_rabbitmq() -> bool:
    """Whether there is a RabbitMQ to run against, or the means to start one."""
    return (
        "RABBITFLOW_TEST_URL" in os.environ
        or answers_amqp("localhost", 5672)
        or server_binary() is not None
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        "only_on(broker, reason): the test is skipped on the other broker;"
        " 'rabbitmq' or 'embedded'",
    )
    config.addinivalue_line("markers", "on_both: runs workers, and on both brokers all the same")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    everything = config.getoption("--processes-on-both") or not has_rabbitmq()
    for item in items:
        broker = item.callspec.params.get("rabbitmq") if hasattr(item, "callspec") else None
        only = item.get_closest_marker("only_on")
        if only is not None and broker not in (None, only.args[0]):
            item.add_marker(pytest.mark.skip(reason=only.kwargs["reason"]))
        runs_processes = not RUNS_PROCESSES.isdisjoint(getattr(item, "fixturenames", ()))
        wanted = everything or item.get_closest_marker("on_both")
        if broker == "embedded" and runs_processes and not wanted:
            item.add_marker(pytest.mark.skip(reason=PROCESSES))


@pytest.fixture(scope="session")
def namespaces() -> Namespaces:
    """The namespaces of this run; two processes that share the tests have different ones."""
    return Namespaces(f"test-{secrets.token_hex(3)}")


@pytest.fixture(scope="session")
def installed_rabbitmq(namespaces: Namespaces) -> Iterator[Broker]:
    """The RabbitMQ at RABBITFLOW_TEST_URL, else the one on localhost, else a private node.

    A test that leaves something there fails the run: where RabbitMQ 3 may open no more than the
    usual 1,024 files, it lets nobody in any more at some 300 quorum queues.
    """
    given = os.environ.get("RABBITFLOW_TEST_URL")
    if given:
        yield Broker(given, None)
    elif answers_amqp("localhost", 5672):
        yield (broker := Broker(DEFAULT_URL, local_ctl()))
        namespaces.check_empty(broker)
    elif not has_rabbitmq():
        pytest.skip("NO RABBITMQ: apt-get install rabbitmq-server, or set RABBITFLOW_TEST_URL")
    else:
        node = PrivateNode()
        try:
            node.start()
            yield (broker := Broker(node.url, node.ctl))
            namespaces.check_empty(broker)
        finally:
            node.remove()


@pytest.fixture(scope="session")
def embedded() -> Iterator[Broker]:
    """The embedded broker, in a process of its own."""
    with embedded_broker() as broker:
        yield broker


@pytest.fixture(scope="session", params=["rabbitmq", "embedded"])
def rabbitmq(request: pytest.FixtureRequest) -> Broker:
    """Each broker in turn, so that the embedded one can't drift from RabbitMQ."""
    # Not torn down in between: where processes share the tests by file, both are used in each file.
    name = "embedded" if request.param == "embedded" else "installed_rabbitmq"
    broker: Broker = request.getfixturevalue(name)
    return broker


@pytest.fixture(scope="session")
def amqp_url(rabbitmq: Broker) -> str:
    """Where the RabbitMQ of the tests listens."""
    return rabbitmq.url


@pytest.fixture
def powerless(rabbitmq: Broker, settings: Settings) -> Iterator[Settings]:
    """The settings of a user who may read and write, and declare nothing."""
    if rabbitmq.powerless_url is not None:
        yield settings.model_copy(update={"url": SecretStr(rabbitmq.powerless_url)})
        return
    if rabbitmq.ctl is None:
        pytest.skip("a user without permissions takes rabbitmqctl on the broker's own machine")
    user, password = settings.namespace or "", secrets.token_hex(8)
    rabbitmq.ctl("add_user", user, password)
    try:
        rabbitmq.ctl("set_permissions", user, "^$", ".*", ".*")
        url = URL(rabbitmq.url).with_user(user).with_password(password)
        yield settings.model_copy(update={"url": SecretStr(str(url))})
    finally:
        rabbitmq.ctl("delete_user", user)


@pytest.fixture
def settings(
    amqp_url: str,
    namespaces: Namespaces,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Settings:
    """Settings with a namespace that nobody else uses."""
    for name in list(os.environ):
        # RABBITFLOW_FAST=0 runs all tests on the public path of the client library.
        if name.startswith("RABBITFLOW_") and name not in (
            "RABBITFLOW_TEST_URL",
            "RABBITFLOW_FAST",
        ):
            monkeypatch.delenv(name)
    return load_settings(
        url=amqp_url,
        namespace=namespaces.another(),
        state_dir=tmp_path / "state",
        metrics_port=0,
    )


CONSUMERS = ("payment", "inventory", "email", "rating")
EVENT_TYPES = ("ORDER_PLACED", "RIDE_COMPLETED", "PAYMENT_COMPLETED")


@pytest.fixture
def probe(settings: Settings) -> Iterator[Probe]:
    """A foreign client, which also removes what the test left on the broker."""
    probe = Probe(settings)
    probe.leaves(CONSUMERS, EVENT_TYPES)
    yield probe
    probe.sweep()


@pytest.fixture
def worker(settings: Settings, probe: Probe, tmp_path: Path) -> Iterator[Worker]:
    """A worker that is not started yet; it is gone when the test ends."""
    with Worker(settings, tmp_path) as worker:
        yield worker


@pytest.fixture
async def publisher(settings: Settings, probe: Probe) -> AsyncIterator[Publisher]:
    """A publisher in the test's own namespace."""
    async with Publisher(settings=settings) as publisher:
        yield publisher


NO_POSTGRES = "NO POSTGRESQL: apt-get install postgresql or set RABBITFLOW_TEST_POSTGRES_URL"


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str | None]:
    """RABBITFLOW_TEST_POSTGRES_URL, else the PostgreSQL on localhost, else a private cluster, else
    None: tests that need one are skipped."""
    running = postgres.running_url()
    installed = postgres.binaries()
    if running is not None:
        yield running
    elif installed is None:
        yield None
    else:
        with postgres.private_cluster(installed) as url:
            yield url


@pytest.fixture
def postgres_url(postgres_server: str | None) -> Iterator[str]:
    """A schema of the test's own on a real PostgreSQL."""
    if postgres_server is None:
        pytest.skip(NO_POSTGRES)
    with postgres.schema(postgres_server) as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database: every test of the store runs on both kinds."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/events.db"
    url: str = request.getfixturevalue("postgres_url")
    return url


@pytest.fixture
async def store(store_url: str) -> AsyncIterator[EventStore]:
    """An open event store with nothing in it."""
    async with EventStore(store_url) as store:
        yield store


@pytest.fixture
def rabbitflow(settings: Settings, tmp_path: Path) -> Command:
    """The command, in a directory of its own."""
    return Command(settings, tmp_path)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say in one line what was not tried, for want of a PostgreSQL."""
    skipped = [
        report
        for report in terminalreporter.stats.get("skipped", [])
        if isinstance(report.longrepr, tuple) and NO_POSTGRES in report.longrepr[2]
    ]
    if skipped:
        terminalreporter.write_line(f"{NO_POSTGRES} ({len(skipped)} tests skipped)", red=True)
