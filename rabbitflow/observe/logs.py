"""Log lines on standard error, as text for people or as JSON for machines."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, Literal, Protocol, TextIO

LogFormat = Literal["text", "json"]

FIELDS = (
    "consumer",
    "event_id",
    "event_type",
    "attempt",
    "correlation_id",
    "batch_size",
    "reason",
)
"""What a record may carry beside its message."""


class Described(Protocol):
    """What is being handled: the context of one event, or those of a batch."""

    def log_fields(self) -> Mapping[str, object]:
        """What every log record of its handler carries."""
        ...


being_handled: ContextVar[Described | None] = ContextVar("being_handled", default=None)
"""What the current task or thread handles. Whoever logs there, its records carry the fields."""


class _OfTheEvent(logging.Filter):
    """Puts the event that is being handled into every record that does not name one itself."""

    def filter(self, record: logging.LogRecord) -> bool:
        handled = being_handled.get()
        if handled is not None and not hasattr(record, "event_id"):
            for name, value in handled.log_fields().items():
                record.__dict__.setdefault(name, value)
        return True


class _TextFormatter(logging.Formatter):
    default_msec_format = "%s.%03d"

    def __init__(self, layout: str = "%(asctime)s %(levelname)-7s %(message)s") -> None:
        super().__init__(layout)

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        line = super().formatMessage(record)
        fields = _fields_of(record)
        # Some messages name their event already; they need no second telling.
        if str(fields.get("event_id")) in record.message:
            return line
        return " ".join([line, *(f"{name}={value}" for name, value in fields.items())])


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_fields_of(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


class _JournalFormatter(logging.Formatter):
    """Text with a priority before each line, as sd-daemon(3) says; the journal has its own time."""

    _PRIORITIES = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4))

    def __init__(self) -> None:
        super().__init__()
        self._text = _TextFormatter("%(message)s")

    def format(self, record: logging.LogRecord) -> str:
        level = record.levelno
        usual = 6 if level >= logging.INFO else 7
        priority = next((urgent for least, urgent in self._PRIORITIES if level >= least), usual)
        # The journal makes an entry of every line, so each one of a traceback needs it.
        lines = self._text.format(record).splitlines()
        return "\n".join(f"<{priority}>{line}" for line in lines)


def _fields_of(record: logging.LogRecord) -> dict[str, object]:
    found = ((name, getattr(record, name, None)) for name in FIELDS)
    return {name: value for name, value in found if value is not None}


def is_journal(stream: TextIO) -> bool:
    """Whether what is written to ``stream`` goes to systemd's journal."""
    named = os.environ.get("JOURNAL_STREAM", "")
    try:
        found = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return named == f"{found.st_dev}:{found.st_ino}"


def configure_logging(log_format: str = "text", level: str = "INFO") -> None:
    """Send the log to standard error. Called by the commands, never on import."""
    handler = logging.StreamHandler(sys.stderr)
    if log_format == "json":
        handler.setFormatter(_JsonFormatter())
    else:
        handler.setFormatter(_JournalFormatter() if is_journal(sys.stderr) else _TextFormatter())
    handler.addFilter(_OfTheEvent())
    logging.basicConfig(level=level, handlers=[handler], force=True)
