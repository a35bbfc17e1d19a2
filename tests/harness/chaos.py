"""Handlers that fail at random, and the account of every event at the end."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass

import pika

from rabbitflow import Event, Publisher
from rabbitflow.deadletters.survey import find
from rabbitflow.topology import RETRY_BUCKETS_S
from tests.harness.broker import Probe
from tests.harness.waiting import eventually
from tests.harness.workers import Worker

RATING = """
    import random
    rating = Consumer("rating", retry=Retry.fixed(attempts=4, wait="1s"))

    @rating.on("ORDER_PLACED")
    async def rate(event: Event, context: Context) -> None:
        ledger.write("tried", event.id, event.data["number"], context.attempt)
        if ledger.holds("rating", event.id):
            return  # its effect was done before its process was killed
        chance = random.random()
        if chance < 0.01:
            os.kill(os.getpid(), signal.SIGKILL)
        if chance < 0.31:
            raise ValueError("three of ten")
        ledger.write("rating", event.id, event.data["number"], context.attempt)
"""


@dataclass(frozen=True)
class Account:
    """What became of the events, by id.

    Fields:
        sent: all of them.
        effects: how often each had its effect.
        dead: the reasons of each that is a dead letter.
        doubled: those of which one attempt was made more than once.
        kills: of its process.
    """

    sent: frozenset[str]
    effects: Counter[str]
    dead: dict[str, set[str]]
    doubled: frozenset[str]
    kills: int


async def chaos(
    worker: Worker, publisher: Publisher, probe: Probe, count: int, within_s: float
) -> Account:
    """Send ``count`` events, every twentieth of them no event at all, to handlers of which three in
    ten raise and one in a hundred kills its process; return the account when nothing moves."""
    worker.module("rating", RATING)
    worker.start()
    await worker.ready("rating")
    exchange = probe.names.exchange("ORDER_PLACED")
    orders = [
        Event(type="ORDER_PLACED", data={"number": number})
        for number in range(count)
        if number % 20
    ]
    bad = [f"bad-{number}" for number in range(0, count, 20)]
    await publisher.publish_many(orders)
    for event_id in bad:
        body = json.dumps({"type": "ORDER_PLACED", "data": event_id}).encode()
        probe.publish(exchange, "", body, pika.BasicProperties(message_id=event_id))
    names = probe.names
    under_way = [names.queue("rating"), *(names.retry("rating", k) for k in RETRY_BUCKETS_S[:2])]
    sent = frozenset(bad) | {event.id for event in orders}

    async def all_accounted_for() -> bool:
        if any(probe.depth(queue) > 0 for queue in under_way):
            return False
        dead = {letter.id for letter in await find("rating", worker.settings)}
        return sent <= dead | set(worker.ledger.ids("rating"))

    await eventually(all_accounted_for, within_s=within_s, what="every id is accounted for")
    dead: dict[str, set[str]] = {}
    for letter in await find("rating", worker.settings):
        dead.setdefault(letter.id, set()).add(letter.reason)
    effects = Counter(worker.ledger.ids("rating"))
    tries = Counter((one.event_id, one.attempt) for one in worker.ledger.of("tried"))
    doubled = frozenset(event_id for (event_id, _), times in tries.items() if times > 1)
    return Account(sent, effects, dead, doubled, worker.said("rating died"))


def check(account: Account) -> None:
    """Every id is accounted for, once: as an effect or as a dead letter."""
    effects, dead = set(account.effects), set(account.dead)
    assert effects | dead == account.sent
    # A kill between the confirm of a retry and the ack makes two of one event, each with attempts
    # of its own: one may have its effect when the other one fails for good.
    assert effects & dead <= account.doubled
    assert set(account.effects.values()) == {1}
    assert account.kills > 0
    for event_id, reasons in account.dead.items():
        expected = {"invalid"} if event_id.startswith("bad-") else {"retries-exhausted"}
        assert reasons <= expected | {"crashed"}, event_id
