"""Draws the balance of an account over time, from its events.

pip install matplotlib
python -m examples.bank sqlite:///bank.db
python -m examples.bank.plot sqlite:///bank.db docs/images/balance.svg
"""

from __future__ import annotations

import asyncio
import sys
from datetime import UTC, datetime

import matplotlib as mpl
import matplotlib.pyplot as plt
from matplotlib.dates import DateFormatter

from rabbitflow import EventStore
from rabbitflow.store import Recorded
from workers.bank import Account, balance

UNTIL = datetime(2026, 4, 1, tzinfo=UTC)
ASKED = datetime(2026, 3, 15, 23, 59, 59, tzinfo=UTC)


async def read(url: str) -> tuple[list[Recorded], Account]:
    """Return the events of account-1, and the account as of March 15."""
    async with EventStore(url, create=False) as store:
        events = [recorded async for recorded in store.read("account-1", until=UNTIL)]
        return events, await store.rebuild("account-1", balance, until=ASKED)


def draw(events: list[Recorded], asked: Account, file: str) -> None:
    """Write the picture: a step at each event, a mark at the day that was asked for."""
    mpl.rcParams.update({"font.size": 10, "svg.hashsalt": "bank", "axes.spines.top": False})
    state, times, amounts = Account(), [], []
    figure, axes = plt.subplots(figsize=(8, 3.6), layout="constrained")
    for recorded in events:
        before, state = state, balance(state, recorded.event)
        times.append(recorded.event.timestamp)
        amounts.append(state.balance)
        change = state.balance - before.balance
        label = f"{change:+,}".replace("-", "\N{MINUS SIGN}") if change else "opened"
        offset = (6, 6) if change >= 0 else (6, -14)
        axes.annotate(label, (times[-1], amounts[-1]), offset, textcoords="offset points")
    axes.step([*times, UNTIL], [*amounts, amounts[-1]], where="post", color="tab:blue")
    axes.plot(times, amounts, "o", color="tab:blue")
    axes.plot(ASKED, asked.balance, "D", color="tab:red")
    axes.annotate(
        f"as of March 15: ₹{asked.balance:,}",
        (ASKED, asked.balance),
        (10, -26),
        textcoords="offset points",
        color="tab:red",
    )
    axes.set(
        title="account-1: the balance follows from the events", ylabel="₹", ylim=(-900, 19_500)
    )
    axes.xaxis.set_major_formatter(DateFormatter("%d %b"))
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.spines["right"].set_visible(False)
    figure.savefig(file, metadata={"Date": None} if file.endswith(".svg") else None)


if __name__ == "__main__":
    draw(*asyncio.run(read(sys.argv[1])), sys.argv[2])
