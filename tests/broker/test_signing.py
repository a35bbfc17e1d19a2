"""Events of trusted producers are handled, all others are dead letters; whichever way they take."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pika
import pytest
from click.testing import CliRunner

from rabbitflow import Consumer, Context, Event, Publisher, Retry, SyncPublisher
from rabbitflow.cli import main
from rabbitflow.deadletters import moves
from rabbitflow.deadletters.letter import Letter
from rabbitflow.deadletters.ndjson import letters_of, line_of
from rabbitflow.deadletters.survey import find
from rabbitflow.keyfiles import PRIVATE, Key, write_keys
from rabbitflow.log.replay import Replay, run_replay
from rabbitflow.log.span import FIRST, Span
from rabbitflow.settings import Settings
from rabbitflow.signing import Signer
from rabbitflow.store import EventStore, outbox
from rabbitflow.store.relay import Relay
from rabbitflow.topology import EXCEPTION_MESSAGE, REASON, SIGNATURE, SIGNED_BY, Names
from tests.broker.test_settlement import running
from tests.harness.broker import Message, Probe
from tests.harness.waiting import eventually

CHECKOUT, STRANGER, RIDES = (Signer(name, name.encode().ljust(32)) for name in ("co", "st", "ri"))


@dataclass(frozen=True)
class Shop:
    """Settings of both sides.

    Fields:
        producer: with the key ``co``, which is trusted.
        consumer: trusts ``co`` with everything and ``ri`` with rides; signs with ``co`` too.
    """

    producer: Settings
    consumer: Settings


@pytest.fixture
def shop(settings: Settings, probe: Probe, tmp_path: Path) -> Shop:
    write_keys(tmp_path / "co.key", [Key("co", PRIVATE, b"co".ljust(32))])
    write_keys(tmp_path / "trusted", [CHECKOUT.public(), RIDES.public(["RIDE_COMPLETED"])])
    producer = settings.model_copy(update={"signing_key_file": tmp_path / "co.key"})
    update = {"trusted_keys_file": tmp_path / "trusted"}
    return Shop(producer, producer.model_copy(update=update))


def payment(handled: list[tuple[str, int]], *, fails: list[str] | None = None) -> Consumer:
    consumer = Consumer("payment", retry=Retry.fixed(attempts=2, wait=1))

    @consumer.on("ORDER_PLACED", "RIDE_COMPLETED")
    async def charge(event: Event[dict[str, Any]], context: Context) -> None:
        handled.append((event.id, context.attempt))
        if fails and event.data["order"] in fails:
            raise ConnectionError("the bank is away")
        if event.data.get("pays"):
            await context.publish("PAYMENT_COMPLETED", {"order": event.data["order"]})

    return consumer


def message(event: Event[Any], signer: Signer | None, settings: Settings) -> Message:
    """An event as a foreign client sends it: body, and properties with a signature."""
    exchange, body = Names(settings.namespace).exchange(event.type), event.encode()
    headers = signer.headers(exchange, event.id, body) if signer else {}
    return headers, pika.BasicProperties(message_id=event.id, type=event.type), body


async def dead(probe: Probe) -> tuple[str, Message]:
    """The next dead letter: what it says of its cause, and itself."""
    queue = probe.names.dead("payment")
    await eventually(lambda: probe.depth(queue) > 0)
    found = probe.take(queue)
    assert found is not None
    assert found[0][REASON] == "invalid"
    return found[0][EXCEPTION_MESSAGE], found


async def test_only_signed_events_of_trusted_producers_are_handled(
    shop: Shop, probe: Probe, path: str
) -> None:
    handled: list[tuple[str, int]] = []
    order = Event(type="ORDER_PLACED", data={"order": "1"})
    ride = Event(type="RIDE_COMPLETED", data={"order": "2"})
    plain, names = shop.producer, probe.names
    headers, properties, body = message(order, CHECKOUT, plain)
    as_a_ride = pika.BasicProperties(message_id=order.id, type="RIDE_COMPLETED")
    bad: list[tuple[str, dict[str, Any], pika.BasicProperties, bytes]] = [
        ("it is not signed", {}, properties, body),
        ("it is not signed", {}, properties, b"[" * 100_000),
        ("key st, which is not trusted", *message(order, STRANGER, plain)),
        ("key ri is trusted, and not to announce ORDER_PLACED", *message(order, RIDES, plain)),
        ("key co does not fit", headers, properties, body.replace(b'"1"', b'"9"')),
        (
            "key co does not fit",
            headers,
            pika.BasicProperties(message_id="x", type=order.type),
            body,
        ),
        ("key co does not fit", headers, as_a_ride, body),
        (
            "it is signed as RIDE_COMPLETED",
            RIDES.headers(names.exchange("RIDE_COMPLETED"), order.id, body),
            as_a_ride,
            body,
        ),
    ]
    async with running(payment(handled), shop.consumer):
        for reason, signed, given, sent in bad:
            given.headers = signed
            probe.publish(names.exchange("ORDER_PLACED"), "", sent, given)
            said, (_, _, kept) = await dead(probe)
            assert reason in said
            assert kept == sent
        assert handled == []
        for good, signer in ((order, CHECKOUT), (ride, RIDES)):
            headers, properties, body = message(good, signer, plain)
            properties.headers = headers
            probe.publish(names.exchange(good.type), "", body, properties)
        await eventually(lambda: handled == [(order.id, 1), (ride.id, 1)])
        # A foreign client that gives no type: the exchange says it.
        headers, properties, body = message(order, CHECKOUT, plain)
        properties.type, properties.headers = None, headers
        probe.publish(names.exchange("ORDER_PLACED"), "", body, properties)
        await eventually(lambda: len(handled) == 3)
        # By the default exchange nothing but its body says what it is, and nobody reads that.
        probe.publish("", names.queue("payment"), body, properties)
        assert "lacks its type" in (await dead(probe))[0]


async def test_whoever_announces_signs(shop: Shop, probe: Probe, path: str, tmp_path: Path) -> None:
    """Publisher, many at once, the synchronous one, a follow-up, an outbox, the command."""
    settings = shop.producer
    probe.declare_exchange("PAYMENT_COMPLETED")
    tap = probe.tap("PAYMENT_COMPLETED")
    handled: list[tuple[str, int]] = []
    sent = [Event(type="ORDER_PLACED", data={"order": str(number)}) for number in range(20)]
    async with running(payment(handled), shop.consumer):
        async with Publisher(settings=settings) as publisher:
            await publisher.publish("ORDER_PLACED", {"order": "one", "pays": True})
            await publisher.publish_many(sent)
        with SyncPublisher(settings=settings) as sync:
            await asyncio.to_thread(sync.publish, "ORDER_PLACED", {"order": "sync"})
        with SyncPublisher(settings=shop.producer, signer=CHECKOUT) as sync:
            await asyncio.to_thread(sync.publish, "ORDER_PLACED", {"order": "given"})
        url = f"sqlite:///{tmp_path}/shop.db"
        async with EventStore(url) as store, store.engine.begin() as transaction:
            await outbox.add(transaction, "ORDER_PLACED", {"order": "outbox"})
        async with Publisher(settings=settings) as publisher:
            relay = Relay(url, publisher)
            relaying = asyncio.create_task(relay.run())
            await eventually(lambda: relay.figures.relayed == 1)
            relay.stop()
            await relaying
        env = {
            "RABBITFLOW_URL": settings.broker_url,
            "RABBITFLOW_NAMESPACE": settings.namespace or "",
            "RABBITFLOW_SIGNING_KEY_FILE": str(settings.signing_key_file),
        }
        arguments = ["publish", "ORDER_PLACED", "--data", '{"order": "command"}']
        said = await asyncio.to_thread(CliRunner().invoke, main, arguments, env=env)
        assert said.exit_code == 0, said.output
        await eventually(lambda: len(handled) == 25)
        await eventually(lambda: probe.depth(tap) == 1)
        assert probe.depth(probe.names.dead("payment")) == 0
    follow_up = probe.take(tap)
    assert follow_up is not None
    headers, properties, body = follow_up
    exchange = probe.names.exchange("PAYMENT_COMPLETED")
    expected = CHECKOUT.headers(exchange, properties.message_id or "", body)
    assert {name: headers[name] for name in (SIGNED_BY, SIGNATURE)} == expected


async def test_a_signature_goes_through_retry_dead_letter_file_replay_and_log(
    shop: Shop, probe: Probe
) -> None:
    handled: list[tuple[str, int]] = []
    fails = ["1"]
    dead_letters = probe.names.dead("payment")
    async with running(payment(handled, fails=fails), shop.consumer):
        async with Publisher(settings=shop.producer) as publisher:
            event = await publisher.publish("ORDER_PLACED", {"order": "1"})
        await eventually(lambda: probe.depth(dead_letters) == 1)
        assert handled == [(event.id, 1), (event.id, 2)], "it was signed at its retry as well"
        # Exported, purged, imported, replayed.
        (letter,) = await find("payment", shop.consumer)
        assert letter.reason == "retries-exhausted"
        lines = [line_of(letter, "payment")]
        assert await moves.purge("payment", shop.consumer) == 1
        letters = letters_of(lines, "payment", probe.names, "a file")
        assert await moves.put_back(letters, "payment", shop.consumer) == 1
        fails.clear()
        assert await moves.replay("payment", shop.consumer) == 1
        await eventually(lambda: handled[2:] == [(event.id, 1)])
        replay = Replay("payment", ("ORDER_PLACED",), Span(FIRST))
        await run_replay(replay, shop.producer)
        await eventually(lambda: handled[3:] == [(event.id, 1)])
        assert probe.depth(dead_letters) == 0


async def test_a_mended_dead_letter_is_signed_with_the_operators_key_or_not_at_all(
    shop: Shop, settings: Settings, probe: Probe
) -> None:
    handled: list[tuple[str, int]] = []
    fails = ["1"]
    dead_letters = probe.names.dead("payment")

    async def failed() -> Letter:
        await eventually(lambda: probe.depth(dead_letters) == 1)
        (letter,) = await find("payment", settings)
        return letter

    async with running(payment(handled, fails=fails), shop.consumer):
        async with Publisher(settings=shop.producer) as publisher:
            event = await publisher.publish("ORDER_PLACED", {"order": "1"})
        letter = await failed()
        assert letter.signed_by == "co"
        body = letter.body.replace(b'"1"', b'"2"')
        await moves.mend(letter, body, "payment", settings, is_replayed=True)
        letter = await failed()
        assert letter.signed_by is None
        assert "it is not signed" in str(letter.exception_message)
        await moves.mend(letter, body, "payment", shop.producer, is_replayed=True)
        await eventually(lambda: handled[2:] == [(event.id, 1)])


async def test_an_edit_without_a_key_says_what_it_breaks(
    shop: Shop, probe: Probe, tmp_path: Path
) -> None:
    fails = ["1"]
    async with running(payment([], fails=fails), shop.consumer):
        async with Publisher(settings=shop.producer) as publisher:
            event = await publisher.publish("ORDER_PLACED", {"order": "1"})
        await eventually(lambda: probe.depth(probe.names.dead("payment")) == 1)
    editor = tmp_path / "editor"
    editor.write_text('#!/bin/sh\nsed -i \'s/"order": *"1"/"order": "2"/\' "$1"\n')
    editor.chmod(0o755)
    env = {
        "RABBITFLOW_URL": shop.producer.broker_url,
        "RABBITFLOW_NAMESPACE": shop.producer.namespace or "",
        "VISUAL": "",
        "EDITOR": str(editor),
    }
    edit = ["dlq", "edit", "payment", "--id", event.id, "--keep", "--json"]
    said = await asyncio.to_thread(CliRunner().invoke, main, edit, env=env)
    assert said.exit_code == 0, said.output
    assert "was signed with key 'co'" in said.stderr
    assert json.loads(said.stdout)["edited"] is True
    key = {"RABBITFLOW_SIGNING_KEY_FILE": str(shop.producer.signing_key_file)}
    editor.write_text('#!/bin/sh\nsed -i \'s/"order": *"2"/"order": "3"/\' "$1"\n')
    said = await asyncio.to_thread(CliRunner().invoke, main, edit, env={**env, **key})
    assert (said.exit_code, said.stderr) == (0, "")
    (letter,) = await find("payment", shop.producer)
    assert letter.signed_by == "co"
    assert json.loads(letter.body)["data"] == {"order": "3"}
