"""The alerts that ship: each is tested by Prometheus's own tool, and says what to do."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RULES = ROOT / "deploy/prometheus"
ALERTS = re.findall(r"- alert: (\w+)", (RULES / "alerts.yml").read_text())


def promtool(*arguments: str) -> None:
    tool = shutil.which("promtool")
    if tool is None:
        pytest.skip("no promtool is installed: apt-get install prometheus")
    done = subprocess.run(
        [tool, *arguments], cwd=RULES, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_prometheus_reads_the_scrape_configuration_and_the_alerts() -> None:
    promtool("check", "config", "prometheus.yml")


def test_every_alert_fires_when_it_should_and_not_otherwise() -> None:
    promtool("test", "rules", "alerts.test.yml")


@pytest.mark.parametrize("alert", ALERTS)
def test_an_alert_is_tested_firing_and_not_firing(alert: str) -> None:
    cases = (RULES / "alerts.test.yml").read_text().split("- alertname: ")
    mine = [case for case in cases if case.startswith(f"{alert}\n")]
    assert any("exp_alerts: []" in case for case in mine)
    assert any("exp_labels:" in case for case in mine)


@pytest.mark.parametrize("alert", ALERTS)
def test_an_alert_links_to_its_section_of_the_runbook(alert: str) -> None:
    assert f"runbook_url: docs/runbooks.md#{alert.lower()}\n" in (RULES / "alerts.yml").read_text()
    assert f"\n## {alert}\n" in (ROOT / "docs/runbooks.md").read_text()
