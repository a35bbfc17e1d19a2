"""The table of the fault suite: fault, promise, events sent, lost, duplicated, recovery."""

from __future__ import annotations

from dataclasses import dataclass

from tests.harness.scene import Account

HEADINGS = (
    "fault",
    "promise",
    "confirmed",
    "lost",
    "twice",
    "dead letters",
    "recovered in",
    "payment p99",
)


@dataclass(frozen=True)
class Row:
    """One fault, and what it did."""

    fault: str
    promise: str
    account: Account | None = None
    recovery_s: float | None = None

    def cells(self) -> tuple[str, ...]:
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


def as_markdown(rows: list[tuple[str, ...]]) -> str:
    """The table as the docs have it."""
    lines = [HEADINGS, tuple("---" for _ in HEADINGS), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)
