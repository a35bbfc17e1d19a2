"""An encrypted field goes from a producer to who has the key, and is read nowhere else."""

from __future__ import annotations

import asyncio
import json
import logging
from pathlib import Path

import pytest
from pydantic import BaseModel
from sqlalchemy.ext.asyncio import AsyncSession

from rabbitflow import Consumer, Context, Encrypted, Event, Publisher, Retry
from rabbitflow.cipher import Cipher
from rabbitflow.deadletters import moves
from rabbitflow.keyfiles import SECRET, Key, write_keys
from rabbitflow.log.replay import Replay, run_replay
from rabbitflow.log.span import FIRST, Span
from rabbitflow.settings import Settings
from rabbitflow.store import EventStore, outbox
from rabbitflow.store.relay import Relay
from rabbitflow.topology import EXCEPTION_MESSAGE, REASON
from tests.broker.test_settlement import running
from tests.harness.broker import Probe
from tests.harness.waiting import eventually

CARD = "4111-1111-1111-1111"


class Order(BaseModel):
    number: int
    card: Encrypted[str]


@pytest.fixture
def keyed(settings: Settings, tmp_path: Path) -> Settings:
    """The settings of a process that has the key."""
    write_keys(tmp_path / "keys", [Key("k1", SECRET, bytes(32))])
    return settings.model_copy(update={"encryption_keys_file": tmp_path / "keys"})


def taker(cards: list[str], *, fails: list[int] | None = None, name: str = "payment") -> Consumer:
    consumer = Consumer(name, retry=Retry.fixed(attempts=2, wait=1))

    @consumer.on("ORDER_PLACED")
    async def charge(event: Event[Order], context: Context) -> None:
        cards.append(event.data.card.get_secret_value())
        context.log.info("charging %s", event)
        if fails and event.data.number in fails:
            raise ConnectionError(f"the bank does not take {event.data}")
        await context.publish("PAYMENT_COMPLETED", {"card": event.data.card})

    return consumer


async def test_who_has_the_key_reads_it_and_nothing_else_ever_shows_it(
    keyed: Settings,
    settings: Settings,
    probe: Probe,
    path: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    cards: list[str] = []
    fails = [1]
    seen: list[object] = []
    probe.declare_exchange("PAYMENT_COMPLETED")
    tap = probe.tap("PAYMENT_COMPLETED")
    inventory, rating = Consumer("inventory"), taker([], name="rating")

    @inventory.on("ORDER_PLACED")
    async def reserve(event: Event) -> None:
        seen.append(event.data["card"])

    dead_letters = probe.names.dead("payment")
    async with (
        running(taker(cards, fails=fails), keyed),
        running(inventory, settings),
        running(rating, settings),
    ):
        async with Publisher(settings=keyed) as publisher:
            event = await publisher.publish("ORDER_PLACED", Order(number=1, card=CARD))
            assert CARD not in repr(event)
        await eventually(lambda: probe.depth(dead_letters) == 1)
        assert cards == [CARD, CARD]
        # Without the key it is a text; a model that asks for the value is refused.
        assert len(seen) == 1
        assert str(seen[0]).startswith("rfe1.k1.")
        await eventually(lambda: probe.depth(probe.names.dead("rating")) == 1)
        refused = probe.take(probe.names.dead("rating"))
        assert refused is not None
        assert refused[0][REASON] == "invalid"
        assert "data.card: Value is encrypted, and there is no key" in refused[0][EXCEPTION_MESSAGE]
        fails.clear()
        assert await moves.replay("payment", settings) == 1
        await eventually(lambda: len(cards) == 3)
        await run_replay(Replay("payment", ("ORDER_PLACED",), Span(FIRST)), settings)
        await eventually(lambda: cards == [CARD] * 4)
        await eventually(lambda: probe.depth(tap) == 2)
    follow_up = probe.take(tap)
    assert follow_up is not None
    said = json.loads(follow_up[2])
    cipher = Cipher.at(keyed.encryption_keys_file)
    assert cipher is not None
    assert cipher.open(said["data"]["card"], said["id"]) == json.dumps(CARD).encode()
    for place in (refused, follow_up, caplog.text):
        assert CARD not in str(place)


async def test_an_outbox_and_an_inbox_keep_it_encrypted(
    keyed: Settings, settings: Settings, probe: Probe, tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path}/shop.db"
    cards: list[str] = []
    payment = Consumer("payment", database=url)
    probe.declare_exchange("PAYMENT_COMPLETED")
    tap = probe.tap("PAYMENT_COMPLETED")

    @payment.on("ORDER_PLACED", once=True)
    async def charge(event: Event[Order], context: Context, session: AsyncSession) -> None:
        cards.append(event.data.card.get_secret_value())
        await context.publish("PAYMENT_COMPLETED", {"card": event.data.card})

    cipher = Cipher.at(keyed.encryption_keys_file)
    async with EventStore(url) as store, store.engine.begin() as transaction:
        await outbox.add(transaction, "ORDER_PLACED", Order(number=1, card=CARD), cipher=cipher)
    async with running(payment, keyed):
        # The relay announces what it finds, and needs no key.
        async with Publisher(settings=settings) as publisher:
            relay = Relay(url, publisher)
            relaying = asyncio.create_task(relay.run())
            await eventually(lambda: cards == [CARD])
            relay.stop()
            await relaying
        await eventually(lambda: probe.depth(tap) == 1)
    for file in tmp_path.glob("shop.db*"):
        assert CARD.encode() not in file.read_bytes()
