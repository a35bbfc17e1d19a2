"""What several processes keep in memory together, each page counted once.

Resident sizes that are added up count what processes share as often as there are processes: the
interpreter's code, and after a fork nearly everything. The kernel tells which page frame stands
behind an address (``/proc/PID/pagemap``, see proc(5)), to root alone.
"""

from __future__ import annotations

import math
import os
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path

_ENTRY_BYTES = 8
_IS_PRESENT = 1 << 63
_FRAME = (1 << 55) - 1
_LOWER_HALF_END = 1 << 47
"""The kernel's own mappings, such as vsyscall, lie above."""


def distinct_bytes(pids: Iterable[int]) -> float:
    """Return how much memory the processes hold together; NaN where that is not ours to know."""
    frames: set[int] = set()
    for pid in pids:
        try:
            frames.update(_frames(pid))
        except PermissionError:
            return math.nan
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended
    if 0 in frames:
        return math.nan  # the kernel shows frames to root alone
    return len(frames) * os.sysconf("SC_PAGE_SIZE")


def _frames(pid: int) -> Iterator[int]:
    page_bytes = os.sysconf("SC_PAGE_SIZE")
    with Path(f"/proc/{pid}/pagemap").open("rb") as pagemap:
        for mapping in Path(f"/proc/{pid}/maps").read_text().splitlines():
            start, end = (int(address, 16) for address in mapping.split()[0].split("-"))
            if end > _LOWER_HALF_END:
                continue
            pagemap.seek(start // page_bytes * _ENTRY_BYTES)
            entries = array("Q", pagemap.read((end - start) // page_bytes * _ENTRY_BYTES))
            yield from (entry & _FRAME for entry in entries if entry & _IS_PRESENT)
