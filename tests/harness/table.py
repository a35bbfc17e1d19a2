"""The tables of the fault suite: what every fault did, and what payment noticed of rating's."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from tests.harness.scene import Account, percentile

Cells = tuple[str, ...]

FAULTS = "faults"
NEIGHBOURS = "neighbours"
HEADINGS: dict[str, Cells] = {
    FAULTS: (
        "fault",
        "promise",
        "confirmed",
        "lost",
        "twice",
        "dead letters",
        "recovered in",
        "payment p99",
    ),
    NEIGHBOURS: ("rating", "payment p50, healthy", "then", "payment p99, healthy", "then"),
}


@dataclass(frozen=True)
class Row:
    """One fault, and what it did."""

    fault: str
    promise: str
    account: Account | None = None
    recovery_s: float | None = None

    def cells(self) -> Cells:
        """What the table shows."""
        account = self.account
        return (
            self.fault,
            self.promise,
            *(
                ("", "", "", "")
                if account is None
                else map(str, (account.confirmed, account.lost, account.duplicated, account.dead))
            ),
            "" if self.recovery_s is None else f"{self.recovery_s:.1f} s",
            "" if account is None else f"{account.payment_p99_ms:,.0f} ms",
        )


@dataclass(frozen=True)
class Neighbour:
    """Payment's latencies in milliseconds, before a fault hit rating and while it did.

    Healthy is the median of several looks: a disk that stands still in one of them says nothing.
    """

    fault: str
    healthy_ms: list[list[float]]
    broken_ms: list[float]

    def percentiles(self, percent: int) -> tuple[float, float]:
        """What so many percent stay below, before and while."""
        healthy = median(percentile(look_ms, percent) for look_ms in self.healthy_ms)
        return healthy, percentile(self.broken_ms, percent)

    @property
    def is_within_twice(self) -> bool:
        """Whether the 99th percentile is at most twice the healthy one."""
        healthy, broken = self.percentiles(99)
        return broken <= 2 * healthy

    def cells(self) -> Cells:
        """What the table shows."""
        values = (*self.percentiles(50), *self.percentiles(99))
        return (self.fault, *(f"{value:.1f} ms" for value in values))


def write_table(kind: str, rows: Iterable[Cells], page: Path) -> None:
    """Put a table between its marks in a page.

    Raises:
        ValueError: the page has no such marks.
    """
    lines = [HEADINGS[kind], tuple("---" for _ in HEADINGS[kind]), *rows]
    table = "".join(f"| {' | '.join(cells)} |\n" for cells in lines)
    begin, end = f"<!-- {kind}: the table begins -->", f"<!-- {kind}: the table ends -->"
    text = page.read_text(encoding="utf-8")
    before, _, rest = text.partition(begin)
    _, mark, after = rest.partition(end)
    if not mark:
        raise ValueError(f"{page} has no place for the table: {begin} … {end}")
    page.write_text(f"{before}{begin}\n\n{table}\n{end}{after}", encoding="utf-8")
