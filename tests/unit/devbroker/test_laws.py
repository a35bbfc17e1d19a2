"""Whatever is done with a queue, each message is in one place: waiting, held, settled, or dead."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from pamqp.commands import Basic

from rabbitflow.devbroker import VirtualClock
from rabbitflow.devbroker.arguments import Policy
from rabbitflow.devbroker.consumer import Consumer, Entry
from rabbitflow.devbroker.message import Message
from rabbitflow.devbroker.queue import Declaration, MessageQueue

ARGUMENTS = st.fixed_dictionaries(
    {"x-queue-type": st.sampled_from(["classic", "quorum"])},
    optional={
        "x-message-ttl": st.integers(0, 50),
        "x-max-length": st.integers(0, 6),
        "x-max-length-bytes": st.integers(0, 30),
        "x-overflow": st.sampled_from(["drop-head", "reject-publish"]),
        "x-single-active-consumer": st.booleans(),
    },
)


class Receiver:
    """A channel that takes what it is given."""

    is_receiving = True

    def __init__(self) -> None:
        self.got: list[tuple[Consumer, Entry]] = []

    def deliver(self, consumer: Consumer, entry: Entry) -> None:
        consumer.unacked += not consumer.no_ack
        self.got.append((consumer, entry))

    def forget(self, consumer: Consumer) -> None:
        raise AssertionError("no queue is deleted here")


class QueueLaws(RuleBasedStateMachine):
    """Publishes, takes, settles and lets time pass, in any order."""

    @initialize(arguments=ARGUMENTS, limit=st.none() | st.integers(0, 2))
    def begin(self, arguments: dict[str, Any], limit: int | None) -> None:
        if limit is not None and arguments["x-queue-type"] == "quorum":
            arguments["x-delivery-limit"] = limit
        self.clock = VirtualClock(now=0.0)
        self.dead: list[bytes] = []
        self.refused: list[bytes] = []
        self.settled: list[bytes] = []
        self.held: list[tuple[Consumer | None, Entry]] = []
        self.published: list[bytes] = []
        self.receiver = Receiver()
        self.queue = MessageQueue(
            Declaration("q", Policy.of("q", "/", arguments)),
            self.clock,
            lambda queue, message, reason: self.dead.append(message.body),
        )

    @rule(size=st.integers(0, 9), expiration=st.none() | st.integers(0, 50))
    def publish(self, size: int, expiration: int | None) -> None:
        body = b"%d" % len(self.published) + b"." * size
        ttl = None if expiration is None else str(expiration)
        raw = Basic.Properties(expiration=ttl, delivery_mode=2).marshal()
        self.published.append(body)
        if not self.queue.publish(Message.of("", "q", raw, body)):
            self.refused.append(body)
        self.collect()

    @rule()
    def take(self) -> None:
        entry = self.queue.take()
        if entry is not None:
            self.held.append((None, entry))

    @rule(prefetch=st.integers(0, 3), no_ack=st.booleans(), priority=st.integers(0, 1))
    def consume(self, prefetch: int, no_ack: bool, priority: int) -> None:
        if len(self.queue.consumers) < 3:
            tag = f"c{len(self.queue.consumers)}"
            consumer = Consumer(tag, "q", self.receiver, no_ack=no_ack, priority=priority)
            consumer.prefetch = 0 if no_ack else prefetch
            self.queue.consumers.add(consumer)
            self.queue.pump()
            self.collect()

    @rule()
    def cancel(self) -> None:
        for consumer in self.queue.consumers:
            self.queue.consumers.remove(consumer)
            break
        self.queue.pump()
        self.collect()

    @rule(which=st.integers(0, 20), how=st.sampled_from(["ack", "reject", "return", "lost"]))
    def settle(self, which: int, how: str) -> None:
        if not self.held:
            return
        consumer, entry = self.held.pop(which % len(self.held))
        if consumer is not None:
            consumer.unacked -= 1
        if how == "ack":
            self.settled.append(entry.message.body)
            self.queue.acknowledge(entry)
        elif how == "reject":
            self.queue.reject(entry)
        else:
            self.queue.give_back((entry,), is_lost=how == "lost")
        self.queue.pump()
        self.collect()

    @rule()
    def purge(self) -> None:
        gone = [entry.message.body for entry in self.queue.entries]
        assert self.queue.purge() == len(gone)
        self.settled += gone

    @rule(milliseconds=st.integers(0, 40))
    def wait(self, milliseconds: int) -> None:
        self.clock.advance(milliseconds / 1000)

    @rule()
    def restart(self) -> None:
        self.queue.suspend()
        self.clock.advance(0.02)
        self.queue.reopen()

    def collect(self) -> None:
        for consumer, entry in self.receiver.got:
            if consumer.no_ack:
                self.settled.append(entry.message.body)
            else:
                self.held.append((consumer, entry))
        self.receiver.got.clear()

    @invariant()
    def each_message_is_in_one_place(self) -> None:
        if not hasattr(self, "queue"):
            return
        waiting = [entry.message.body for entry in self.queue.entries]
        held = [entry.message.body for _, entry in self.held]
        everywhere = waiting + held + self.settled + self.dead + self.refused
        assert sorted(everywhere) == sorted(self.published)
        assert (self.queue.ready, self.queue.unacked) == (len(waiting), len(held))

    @invariant()
    def nobody_holds_more_than_the_prefetch(self) -> None:
        for consumer in self.queue.consumers if hasattr(self, "queue") else ():
            assert not consumer.prefetch or consumer.unacked <= consumer.prefetch

    @invariant()
    def what_is_due_at_the_head_is_gone(self) -> None:
        entries = self.queue.entries if hasattr(self, "queue") else []
        if entries and entries[0].expires_at is not None:
            assert entries[0].expires_at > self.clock.now()


QueueLaws.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestQueueLaws = QueueLaws.TestCase
