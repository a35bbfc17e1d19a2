"""Nobody pays for traces that nobody asked for."""

from __future__ import annotations

import subprocess
import sys

from rabbitflow.observe.tracing import tracing

WITHOUT_OPENTELEMETRY = """
import sys
sys.modules["opentelemetry"] = None  # as where it is not installed
import rabbitflow, rabbitflow.worker.child
from rabbitflow.observe.tracing import flush_traces, tracing
assert tracing() is None
flush_traces()
"""


def test_nothing_is_traced_where_opentelemetry_is_not_installed() -> None:
    subprocess.run([sys.executable, "-c", WITHOUT_OPENTELEMETRY], check=True, timeout=30)


def test_nothing_is_traced_where_nobody_set_opentelemetry_up() -> None:
    assert tracing() is None


def test_opentelemetry_is_not_imported_before_somebody_publishes_or_handles() -> None:
    code = "import sys, rabbitflow; assert 'opentelemetry' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)
