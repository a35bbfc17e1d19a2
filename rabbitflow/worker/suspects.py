"""Poison: which delivery killed its process, proven by letting it run alone.

After a crash every prefetched delivery comes back counted, guilty or not. So a count only raises
suspicion: a suspect runs alone, its id noted in a file that outlives the process. If the process
dies then, that id gets a strike.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CRASH_LIMIT = 3
KEPT_STRIKES = 1_000
_NOTE_BYTES = 1_024


@dataclass(frozen=True, slots=True)
class Strike:
    """How often an event killed the process it ran alone in, and how the last one ended."""

    count: int
    cause: str


class SuspectNote:
    """A file in which a child notes the id that it runs alone, before it runs it.

    The page cache outlives the process, so a plain write is enough: it is read after the process
    died, not after the machine did.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def write(self, event_id: str) -> None:
        """Note that ``event_id`` begins to run alone."""
        noted = event_id.encode()[:_NOTE_BYTES]
        os.pwrite(self._file, noted.ljust(_NOTE_BYTES, b"\0"), 0)

    def survived(self) -> None:
        """Note that it ended, and the process with it did not."""
        os.pwrite(self._file, b"\0" * _NOTE_BYTES + b"\1", 0)

    def clear(self) -> None:
        """Forget everything: a new process begins."""
        os.pwrite(self._file, b"\0" * (_NOTE_BYTES + 1), 0)

    @property
    def has_progress(self) -> bool:
        """Whether an event that ran alone in this process ended before the process did."""
        return os.pread(self._file, 1, _NOTE_BYTES) == b"\1"

    def read(self) -> str | None:
        """Return the id that was running alone, or None."""
        return os.pread(self._file, _NOTE_BYTES, 0).rstrip(b"\0").decode(errors="replace") or None

    def close(self) -> None:
        """Close the file and remove it."""
        os.close(self._file)
        self._path.unlink(missing_ok=True)


class Strikes:
    """The strikes of one consumer, kept in a small file so that a restart remembers them."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._strikes = _load(path)

    def __getitem__(self, event_id: str) -> Strike:
        return self._strikes.get(event_id, Strike(0, ""))

    def add(self, event_id: str, cause: str) -> Strike:
        """Count a strike and keep it. Raises OSError when the file can't be written."""
        strike = Strike(self[event_id].count + 1, cause)
        self._strikes.pop(event_id, None)
        self._strikes[event_id] = strike
        while len(self._strikes) > KEPT_STRIKES:
            del self._strikes[next(iter(self._strikes))]
        self._path.parent.mkdir(parents=True, exist_ok=True)
        part = self._path.with_suffix(".part")
        part.write_text(json.dumps(self.as_json()), encoding="utf-8")
        part.replace(self._path)
        return strike

    def as_json(self) -> dict[str, list[Any]]:
        """Return what a child is told of at its start."""
        return {
            event_id: [strike.count, strike.cause] for event_id, strike in self._strikes.items()
        }


def strikes_from_json(strikes: Mapping[str, list[Any]]) -> dict[str, Strike]:
    """Return what :meth:`Strikes.as_json` wrote."""
    return {
        event_id: Strike(int(count), str(cause)) for event_id, (count, cause) in strikes.items()
    }


def _load(path: Path) -> dict[str, Strike]:
    try:
        return strikes_from_json(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError, AttributeError):
        # Half a file after a power cut. Strikes are evidence, not state: they are found again.
        return {}
