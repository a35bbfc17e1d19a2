"""The tables of the fault suite: what every fault did, and what payment noticed of rating's."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

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
    """Payment's latencies in milliseconds, before a fault hit rating and while it did."""

    fault: str
    healthy_ms: list[float]
    broken_ms: list[float]

    @property
    def p99_ms(self) -> tuple[float, float]:
        """The 99th percentiles, before and while."""
        return percentile(self.healthy_ms, 99), percentile(self.broken_ms, 99)

    def cells(self) -> Cells:
        """What the table shows."""
        medians = percentile(self.healthy_ms, 50), percentile(self.broken_ms, 50)
        return (self.fault, *(f"{value:.1f} ms" for value in (*medians, *self.p99_ms)))


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
