"""Private brokers to break, a scene on them, and the table of what every fault did."""

from __future__ import annotations

import contextlib
import secrets
import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pika.exceptions
import pytest
from pydantic import SecretStr
from rich.console import Console
from rich.table import Table
from yarl import URL

from rabbitflow.settings import Settings
from tests.harness.broker import remove_namespace
from tests.harness.node import PrivateNode, answers_amqp, server_binary
from tests.harness.scene import CONSUMERS, EVENT_TYPE, Account, Scene
from tests.harness.table import FAULTS, HEADINGS, Row, write_table
from tests.harness.workers import Worker

Note = Callable[..., None]

FIRST = (
    "test_soak.py",
    "test_broker.py",
    "test_migration.py",
    "test_tls.py",
    "test_worker.py",
    "test_chaos.py",
    "test_cluster.py",
    "test_partitions.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest: the soak takes a quarter of all the time.

    Three processes take one file each and the next when they come near its end. The soak is a
    single test, so its process takes the fourth file along: a short one.
    """
    places = [i for i, item in enumerate(items) if item.path.parent == Path(__file__).parent]
    ours = [items[i] for i in places]
    rank = {name: at for at, name in enumerate(FIRST)}
    ours.sort(key=lambda item: rank.get(item.path.name, len(FIRST)))
    for i, item in zip(places, ours, strict=True):
        items[i] = item


@pytest.fixture(scope="session")
def first_node() -> Iterator[PrivateNode]:
    if server_binary() is None:
        pytest.skip("faults need a broker of their own: apt-get install rabbitmq-server")
    node = PrivateNode()
    try:
        node.start()
        yield node
    finally:
        node.remove()


@pytest.fixture
def node(first_node: PrivateNode) -> PrivateNode:
    """A broker that may be broken: it stands again when the next test begins."""
    if not answers_amqp("127.0.0.1", first_node.port):
        first_node.stop()
        first_node.start()
    return first_node


@pytest.fixture
def amqp_url(node: PrivateNode) -> str:
    """Faults happen to a private node only."""
    return node.url


@pytest.fixture
def user(node: PrivateNode) -> Iterator[tuple[str, str]]:
    """A user who may do everything, until a test says otherwise."""
    name, password = f"user-{secrets.token_hex(4)}", secrets.token_hex(8)
    node.ctl("add_user", name, password)
    node.ctl("set_permissions", name, ".*", ".*", ".*")
    yield name, password
    node.ctl("delete_user", name)


def as_user(settings: Settings, name: str, password: str, vhost: str = "/") -> Settings:
    url = URL(settings.broker_url).with_user(name).with_password(password).with_path(vhost)
    return settings.model_copy(update={"url": SecretStr(str(url))})


@pytest.fixture
def worker(settings: Settings, tmp_path: Path) -> Iterator[Worker]:
    """A worker that is not started yet; it is gone when the test ends."""
    with Worker(settings, tmp_path) as worker:
        yield worker


@pytest.fixture
async def scene(
    settings: Settings, worker: Worker, request: pytest.FixtureRequest
) -> AsyncIterator[Scene]:
    """A scene that has not begun yet. What it printed is kept when the test fails."""
    yield Scene(settings, worker)
    worker.__exit__(None, None, None)
    with contextlib.suppress(pika.exceptions.AMQPError, OSError):
        remove_namespace(settings, CONSUMERS, (EVENT_TYPE,))
    keep_logs = request.config.rootpath / ".faults" / request.node.name
    if request.node.stash.get(FAILED, False):
        keep_logs.mkdir(parents=True, exist_ok=True)
        for kept in (worker.output, worker.directory / "ledger.db"):
            if kept.exists():
                shutil.copy(kept, keep_logs)


FAILED = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> object:
    report = yield
    if report.when == "call":
        item.stash[FAILED] = report.failed
    return report


@pytest.fixture
def note(request: pytest.FixtureRequest) -> Note:
    """Note a fault for the table, and check what every one of them promises: nothing is lost."""

    def write(
        fault: str, promise: str, account: Account | None = None, recovery_s: float | None = None
    ) -> None:
        # A property of the report, which also comes home from another process.
        request.node.user_properties.append(
            (FAULTS, Row(fault, promise, account, recovery_s).cells())
        )
        if account is not None:
            assert account.confirmed, "nothing was confirmed, so nothing was shown"
            assert account.lost == 0, f"{account.lost} of {account.confirmed} events are lost"

    return write


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    properties = [
        told
        for outcome in ("passed", "failed")
        for report in terminalreporter.getreports(outcome)
        if report.when == "call"
        for told in report.user_properties
    ]
    target = terminalreporter.config.getoption("--faults-table")
    for kind, headings in HEADINGS.items():
        rows = [cells for name, cells in properties if name == kind]
        if not rows:
            continue
        table = Table(*headings, title=kind)
        for cells in rows:
            table.add_row(*cells)
        Console(width=170).print(table)
        if target:
            write_table(kind, rows, Path(target))
