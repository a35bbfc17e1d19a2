"""Where the spans of other processes are kept: one file, a span a line.

Imported by the handlers that tests write, so it knows nothing of the tests.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import (
    BatchSpanProcessor,
    SpanExporter,
    SpanExportResult,
)


class _FileExporter(SpanExporter):
    def __init__(self, path: str) -> None:
        self._path = path

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        lines = "".join(json.dumps(json.loads(span.to_json())) + "\n" for span in spans)
        with Path(self._path).open("a") as file:
            file.write(lines)
        return SpanExportResult.SUCCESS


def set_up() -> None:
    """Trace this process into the file of TEST_SPANS, as late as a user's own set-up may be."""
    provider = TracerProvider()
    exporter = _FileExporter(os.environ["TEST_SPANS"])
    provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=600_000))
    trace.set_tracer_provider(provider)


def spans_in(path: Path) -> list[dict[str, Any]]:
    """Every span that was exported."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
