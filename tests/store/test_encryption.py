"""The store keeps encrypted fields as the wire does; a key that is destroyed forgets them."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from pydantic import BaseModel
from sqlalchemy import text

from rabbitflow import Encrypted, Event, EventError, Upcasters
from rabbitflow.cipher import Cipher
from rabbitflow.cli import main
from rabbitflow.keyfiles import SECRET, Key, write_keys
from rabbitflow.store import EventStore, applies
from rabbitflow.store.verification import verify

CARD = "4111-1111-1111-1111"
OLD_KEY, NEW_KEY = (Key(name, SECRET, name.encode().ljust(32)) for name in ("old", "new"))
OLD, NEW = Cipher([OLD_KEY]), Cipher([NEW_KEY])


class Paid(BaseModel):
    amount: int
    card: Encrypted[str]


class Account(BaseModel):
    total: int = 0
    card: Encrypted[str] | None = None

    @applies("PAID")
    def paid(self, paid: Paid) -> Account:
        return Account(total=self.total + paid.amount, card=paid.card)


def payments(count: int) -> list[Event[Any]]:
    return [Event(type="PAID", data=Paid(amount=number, card=CARD)) for number in range(count)]


async def test_a_state_is_rebuilt_from_encrypted_events(store_url: str) -> None:
    upcasters = Upcasters()
    upcasters.on("PAID", version=1)(lambda data: {**data, "amount": data["amount"] * 2})
    async with EventStore(store_url, cipher=OLD, snapshot_every=1) as store:
        await store.append("account-1", payments(4))
        for _ in range(2):
            account = await store.rebuild("account-1", Account)
            assert account == Account(total=6, card=Encrypted(CARD))
        async with store.engine.connect() as connection:
            kept = (await connection.execute(text("SELECT data FROM rabbitflow_events"))).scalars()
            assert not any(CARD in data for data in kept)
            snapshots = text("SELECT count(*) FROM rabbitflow_snapshots")
            assert (await connection.execute(snapshots)).scalar() == 0
        recorded = [recorded async for recorded in store.read("account-1")]
        assert recorded[0].event.data["card"] == Encrypted(CARD)
        assert CARD not in repr(recorded)
    async with EventStore(store_url, cipher=OLD, upcasters=upcasters) as store:
        assert (await store.rebuild("account-1", Account)).total == 12


async def test_the_command_folds_with_the_key_and_shows_asterisks(
    store_url: str, tmp_path: Path
) -> None:
    async with EventStore(store_url, cipher=OLD) as store:
        await store.append("account-1", payments(3))
    write_keys(tmp_path / "keys", [OLD_KEY])
    key = {"RABBITFLOW_ENCRYPTION_KEYS_FILE": str(tmp_path / "keys")}

    async def said(command: str, *arguments: str, **env: str) -> Result:
        given = ["store", command, "account-1", *arguments, "--json", "--database", store_url]
        return await asyncio.to_thread(CliRunner().invoke, main, given, env=env)

    fold = ("--fold", f"{__name__}:Account")
    shown = await said("state", *fold, **key)
    assert json.loads(shown.output)["state"] == {"total": 3, "card": "**********"}
    refused = await said("state", *fold)
    assert refused.exit_code == 2
    assert "read without a key" in refused.output
    kept = await said("history", **key)
    assert all(
        one["event"]["data"]["card"].startswith("rfe1.old.") for one in json.loads(kept.output)
    )


async def test_without_a_cipher_nothing_is_appended_in_clear(store: EventStore) -> None:
    with pytest.raises(EventError, match="there is no key for it here"):
        await store.append("account-1", payments(1))
    assert await store.position() == 0


async def test_a_destroyed_key_forgets_the_field_and_leaves_history_whole(store_url: str) -> None:
    async with EventStore(store_url, cipher=OLD) as store:
        await store.append("account-1", payments(1))
    async with EventStore(store_url, cipher=NEW) as store:
        (recorded,) = [recorded async for recorded in store.read("account-1")]
        assert recorded.event.data["card"].startswith("rfe1.old.")
        assert recorded.event.data["amount"] == 0
        with pytest.raises(EventError, match="encrypted, and read without a key"):
            await store.rebuild("account-1", Account)
        assert (await verify(store)).faults == []
