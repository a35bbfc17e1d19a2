"""The example services with everything around them: mail server, Prometheus, their own ledger."""

from __future__ import annotations

import json
import sqlite3
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, Envelope, Session

from rabbitflow import Event
from tests.harness.broker import Probe
from tests.harness.node import free_port
from tests.harness.prometheus import Prometheus
from tests.harness.workers import Worker

SERVICES = (
    "analytics",
    "driver",
    "email",
    "inventory",
    "notification",
    "payment",
    "rating",
    "surge",
)
EVENT_TYPES = ("ORDER_PLACED", "RIDE_COMPLETED", "PAYMENT_COMPLETED")
EXAMPLES = Path(__file__).parents[2] / "examples"
TOO_EXPENSIVE = 200_000


class Mailbox:
    """Takes mails, or says that it is full and counts how often it did."""

    def __init__(self) -> None:
        self.is_full = True
        self.refused = 0

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:  # noqa: N802
        if not self.is_full:
            return "250 OK"
        self.refused += 1
        return "452 full"


class Shop:
    """The running services, seen from all sides.

    Args:
        worker: not started yet.
        probe: the broker.
        prometheus: scrapes the worker.
        port: of the worker's status server.
    """

    def __init__(self, worker: Worker, probe: Probe, prometheus: Prometheus, port: int) -> None:
        self.worker = worker
        self.probe = probe
        self.prometheus = prometheus
        self.mailbox = Mailbox()
        self._database = worker.directory / "effects.db"
        self._port = port

    @contextmanager
    def running(self) -> Iterator[None]:
        """Run the services, and the mail server that two of them need."""
        with closing(sqlite3.connect(self._database)) as connection:
            # Eight services that switch a new file over at once lock each other out (and retry).
            connection.execute("PRAGMA journal_mode = WAL")
        mails = Controller(self.mailbox, hostname="127.0.0.1", port=free_port())
        mails.start()
        self.worker.start(
            modules=("workers",),
            RABBITFLOW_METRICS_PORT=str(self._port),
            RABBITFLOW_EVENT_LOG="false",
            RABBITFLOW_DEMO_DB=str(self._database),
            SMTP_URL=f"smtp://127.0.0.1:{mails.port}",
        )
        try:
            yield
        finally:
            mails.stop()

    def get(self, path: str) -> tuple[int, str]:
        """What the worker's status server answers."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._port}{path}") as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def not_ready(self) -> dict[str, str]:
        """Who keeps /readyz from being 200, and why."""
        status, body = self.get("/readyz")
        answer = json.loads(body)
        assert (status == 200) == answer["ready"] == (not answer["not_ready"])
        return answer["not_ready"]  # type: ignore[no-any-return]

    def effects(self) -> dict[str, int]:
        """How many events each service has done something about, in its own database."""
        with closing(sqlite3.connect(self._database, timeout=30)) as connection:
            query = "SELECT consumer, count(*) FROM effects GROUP BY consumer"
            return dict(connection.execute(query).fetchall())

    def pids(self) -> dict[str, int]:
        """Who runs which consumer."""
        return {name: self.worker.child(name).pid for name in SERVICES if name != "surge"}

    def by_consumer(self, query: str) -> dict[str, float]:
        """What Prometheus has, without those for whom it is 0."""
        found = self.prometheus.by("consumer", query)
        return {name: value for name, value in found.items() if value}

    def handled(self, outcome: str) -> dict[str, float]:
        """How many events each consumer has handled with an outcome."""
        selected = f'rabbitflow_events_handled_total{{outcome="{outcome}"}}'
        return self.by_consumer(f"sum by (consumer) ({selected})")

    def published(self, outcome: str) -> float:
        """How many publishes of the services ended with an outcome."""
        selected = f'rabbitflow_events_published_total{{outcome="{outcome}"}}'
        return self.prometheus.query(f"sum({selected})")[0].value

    def alerting(self) -> dict[str, set[str]]:
        """Which alerts would fire once their time is over, and for whom."""
        found: dict[str, set[str]] = {}
        for alert, expression in self.prometheus.alerts().items():
            for sample in self.prometheus.query(expression):
                labels = sample.labels
                whom = labels.get("consumer") or labels.get("event_type") or labels["instance"]
                found.setdefault(alert, set()).add(whom)
        return found


def order(number: int, amount: int = 5) -> Event[Any]:
    """An order as the brief's, with a number of its own. No card pays TOO_EXPENSIVE."""
    data = json.loads((EXAMPLES / "order.json").read_text())["data"]
    changes = {"orderId": f"ORD-{number}", "amount": amount}
    return Event(type="ORDER_PLACED", data={**data, **changes})


def ride(number: int) -> Event[Any]:
    """A ride as the brief's, with a number of its own."""
    data = json.loads((EXAMPLES / "ride.json").read_text())
    return Event(type="RIDE_COMPLETED", data={**data, "rideId": f"R-{number}"})
