"""Whether events are traced: only where OpenTelemetry is installed and somebody set it up."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rabbitflow.observe.spans import Spans

FLUSH_WITHIN_S = 2.0


def tracing() -> Spans | None:
    """Return what makes spans, or None where there is nobody to tell of them.

    Asked once by whoever begins to publish or to handle, so that an event that is not traced costs
    one comparison. Set OpenTelemetry up before that: in the module that defines the consumer, or
    with ``opentelemetry-instrument``.
    """
    if not _may_be_set_up():
        return None
    try:
        from rabbitflow.observe.spans import Spans, is_set_up  # noqa: PLC0415
    except ModuleNotFoundError:
        return None
    return Spans() if is_set_up() else None


def flush_traces() -> None:
    """Send what was not sent yet, for a process that ends without its exit handlers."""
    if not _may_be_set_up():
        return
    try:
        from rabbitflow.observe.spans import flush  # noqa: PLC0415
    except ModuleNotFoundError:
        return
    flush(FLUSH_WITHIN_S)


def _may_be_set_up() -> bool:
    """Whether it is worth a look, which takes an import of 10 ms at each start of a process.

    Nobody sets OpenTelemetry up without importing it, but for its own reader of the environment
    (``opentelemetry.trace.get_tracer_provider``).
    """
    return "opentelemetry.trace" in sys.modules or "OTEL_PYTHON_TRACER_PROVIDER" in os.environ
