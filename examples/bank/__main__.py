"""A bank account that stores no balance, only what happened.

    python -m examples.bank [sqlite:///bank.db | postgresql://…]

Then look into it: rabbitflow store history account-1 --database sqlite:///bank.db
"""

from __future__ import annotations

import asyncio
import sys
from datetime import UTC, datetime

from rabbitflow import ConcurrencyError, Event, EventStore
from rabbitflow.store import verify
from workers.bank import Overdraft, balance, deposit, open_account, withdraw


def on(month: int, day: int) -> datetime:
    """An ordinary working hour of 2026."""
    return datetime(2026, month, day, 10, 30, tzinfo=UTC)


async def main(url: str) -> None:
    """Tell the story of account-1, and ask about it."""
    async with EventStore(url) as store:
        if await store.version("account-1"):
            sys.exit(f"there is an account-1 already in {store.database.shown}; name another one")
        await open_account(store, "account-1", "Asha", timestamp=on(3, 1), source="branch-7")
        await deposit(store, "account-1", 15_000, timestamp=on(3, 2), source="payroll")
        await withdraw(store, "account-1", 3_000, timestamp=on(3, 9), source="atm-12")
        await deposit(store, "account-1", 5_000, timestamp=on(3, 20), source="teller-1")
        await withdraw(store, "account-1", 7_000, timestamp=on(3, 28), source="atm-12")

        print("What happened:")
        async for recorded in store.read("account-1"):
            event = recorded.event
            amount = event.data.get("amount", 0)
            print(f"  {recorded.version}  {event.timestamp:%d %b}  {event.type:15} ₹{amount:>6,}")
        now = await store.rebuild("account-1", balance)
        then = await store.rebuild("account-1", balance, until=on(3, 15))
        print(f"The balance is ₹{now.balance:,}. On March 15 it was ₹{then.balance:,}.")

        try:
            await withdraw(store, "account-1", 10_001)
        except Overdraft as refused:
            print(f"Refused: {refused}.")

        seen = await store.version("account-1")
        tellers = [
            Event(type="MONEY_WITHDRAWN", data={"amount": 6_000}, source=f"teller-{number}")
            for number in (1, 2)
        ]
        outcomes = await asyncio.gather(
            *(store.append("account-1", event, expected_version=seen) for event in tellers),
            return_exceptions=True,
        )
        for event, outcome in zip(tellers, outcomes, strict=True):
            if isinstance(outcome, ConcurrencyError):
                print(f"{event.source} saw ₹10,000 too, but was second. Asking again:")
                try:
                    await withdraw(store, "account-1", 6_000, source=event.source)
                except Overdraft as refused:
                    print(f"  refused: {refused}.")
            else:
                print(f"{event.source} paid out ₹6,000.")

        found = await verify(store)
        print(f"{found.events} events, {len(found.faults)} of them tampered with.")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "sqlite:///bank.db"))
