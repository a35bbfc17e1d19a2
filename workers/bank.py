"""Bank: no balance is stored, only what happened to an account; the balance follows from it."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from rabbitflow import Event, EventStore
from rabbitflow.store import Appended
from workers.payloads import Payload


class Overdraft(Exception):
    """There is less in the account than was asked for."""


class Money(Payload):
    """MONEY_DEPOSITED, MONEY_WITHDRAWN: whole rupees."""

    amount: Annotated[int, Field(gt=0)]


class Account(Payload):
    """What is known of an account."""

    owner: str = ""
    balance: int = 0


def balance(account: Account, event: Event[Any]) -> Account:
    """The account after an event."""
    match event.type:
        case "ACCOUNT_OPENED":
            return account.model_copy(update={"owner": event.data["owner"]})
        case "MONEY_DEPOSITED":
            return account.model_copy(update={"balance": account.balance + event.data["amount"]})
        case "MONEY_WITHDRAWN":
            return account.model_copy(update={"balance": account.balance - event.data["amount"]})
    return account


async def open_account(store: EventStore, stream: str, owner: str, **envelope: Any) -> Appended:
    """Open an account with nothing in it; refused where it is open already."""
    event: Event[Any] = Event(type="ACCOUNT_OPENED", data={"owner": owner}, **envelope)
    return await store.append(stream, event, expected_version=0)


async def deposit(store: EventStore, stream: str, amount: int, **envelope: Any) -> Appended:
    """Put money in. Nothing to check, so it does not matter who else writes."""
    event: Event[Any] = Event(type="MONEY_DEPOSITED", data=Money(amount=amount), **envelope)
    return await store.append(stream, event)


async def withdraw(store: EventStore, stream: str, amount: int, **envelope: Any) -> Appended:
    """Take money out, and never more than there is, however many tellers do so at once."""
    event: Event[Any] = Event(type="MONEY_WITHDRAWN", data=Money(amount=amount), **envelope)

    def decide(account: Account) -> Event[Any]:
        if amount > account.balance:
            raise Overdraft(f"{stream} holds ₹{account.balance:,}, less than ₹{amount:,}")
        return event

    return await store.decide(stream, balance, decide)
