"""Whether events are traced: only where OpenTelemetry is installed and somebody set it up."""

from __future__ import annotations

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
    try:
        from rabbitflow.observe.spans import Spans, is_set_up  # noqa: PLC0415
    except ModuleNotFoundError:
        return None
    return Spans() if is_set_up() else None


def flush_traces() -> None:
    """Send what was not sent yet, for a process that ends without its exit handlers."""
    try:
        from rabbitflow.observe.spans import flush  # noqa: PLC0415
    except ModuleNotFoundError:
        return
    flush(FLUSH_WITHIN_S)
