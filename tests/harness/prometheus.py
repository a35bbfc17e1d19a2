"""A real Prometheus, and what rabbitflow ships for it: alerts and a dashboard."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.harness.node import free_port

DEPLOY = Path(__file__).parents[2] / "deploy"
ALERTS = DEPLOY / "prometheus/alerts.yml"
DASHBOARD = DEPLOY / "grafana/rabbitflow.json"
START_WITHIN_S = 30.0


@dataclass(frozen=True)
class Sample:
    """One series of an answer, at one moment."""

    labels: Mapping[str, str]
    value: float


class Prometheus:
    """Scrapes every second, and knows the alerts.

    Args:
        directory: where it keeps its configuration and data.
        targets: the addresses of workers.
    """

    def __init__(self, directory: Path, targets: Sequence[str]) -> None:
        binary = shutil.which("prometheus")
        if binary is None:
            raise RuntimeError("no prometheus is installed; apt-get install prometheus")
        directory.mkdir(parents=True, exist_ok=True)
        configuration = directory / "prometheus.yml"
        # JSON is YAML.
        configuration.write_text(
            json.dumps(
                {
                    "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
                    "rule_files": [str(ALERTS)],
                    "scrape_configs": [
                        {"job_name": "rabbitflow", "static_configs": [{"targets": list(targets)}]}
                    ],
                }
            )
        )
        self._address = f"127.0.0.1:{free_port()}"
        self._log = directory / "prometheus.log"
        self._command = [
            binary,
            f"--config.file={configuration}",
            f"--storage.tsdb.path={directory / 'data'}",
            f"--web.listen-address={self._address}",
            "--log.level=warn",
        ]
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log)
        deadline = time.monotonic() + START_WITHIN_S
        while not self._is_ready():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"prometheus did not start: {self._log.read_text()}")
            time.sleep(0.1)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._process is not None
        self._process.terminate()
        self._process.wait(START_WITHIN_S)

    def query(self, expression: str) -> list[Sample]:
        """What an expression is now. An expression that can't be read is an error."""
        result = self._get("query", query=expression)["result"]
        return [Sample(found["metric"], float(found["value"][1])) for found in result]

    def by(self, label: str, expression: str) -> dict[str, float]:
        """What an expression is now, by one label."""
        return {found.labels[label]: found.value for found in self.query(expression)}

    def history(
        self, expression: str, start: float, end: float, step_s: float
    ) -> list[tuple[Mapping[str, str], list[tuple[float, float]]]]:
        """What an expression was: labels, and pairs of time and value."""
        data = self._get("query_range", query=expression, start=start, end=end, step=step_s)
        return [
            (found["metric"], [(float(at), float(value)) for at, value in found["values"]])
            for found in data["result"]
        ]

    def alerts(self) -> dict[str, str]:
        """The expression of every alert that it has loaded."""
        groups = self._get("rules")["groups"]
        return {rule["name"]: rule["query"] for group in groups for rule in group["rules"]}

    def _get(self, what: str, **parameters: Any) -> Any:
        url = f"http://{self._address}/api/v1/{what}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=30) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            with error:
                raise AssertionError(f"{parameters}: {error.read().decode()}") from error

    def _is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://{self._address}/-/ready", timeout=5):
                return True
        except OSError:
            return False


@dataclass(frozen=True)
class Panel:
    """A panel of the dashboard.

    Fields:
        row: under whose heading it stands.
        place: its left and upper edge, width and height; the dashboard is 24 wide.
        queries: as Prometheus reads them, with the legend of each.
    """

    row: str
    title: str
    kind: str
    unit: str
    place: tuple[int, int, int, int]
    queries: tuple[tuple[str, str], ...]


def panels(rate_interval: str) -> list[Panel]:
    """The panels of the dashboard for all jobs and consumers."""
    found: list[Panel] = []
    row = ""
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        if panel["type"] == "row":
            row = panel["title"]
            continue
        queries = tuple(
            (_filled(target["expr"], rate_interval), target["legendFormat"])
            for target in panel["targets"]
        )
        unit = panel["fieldConfig"]["defaults"]["unit"]
        place = panel["gridPos"]
        found.append(
            Panel(
                row,
                panel["title"],
                panel["type"],
                unit,
                (place["x"], place["y"], place["w"], place["h"]),
                queries,
            )
        )
    return found


def _filled(expression: str, rate_interval: str) -> str:
    for variable, value in (
        ("$__rate_interval", rate_interval),
        ("$job", ".*"),
        ("$consumer", ".*"),
    ):
        expression = expression.replace(variable, value)
    assert "$" not in expression, f"a variable is not known here: {expression}"
    return expression
