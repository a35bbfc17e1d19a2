"""An ordered consumer in several worker processes, and the account of what each key saw."""

from __future__ import annotations

import asyncio
import signal
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from rabbitflow import Event, Publisher
from rabbitflow.settings import Settings
from tests.harness.ledger import Effect, Ledger
from tests.harness.waiting import eventually
from tests.harness.workers import Worker

CONSUMER = "payment"
BEGUN, ENDED, FAILED = 0, 1, 2

MODULE = """
    payment = Consumer(
        "payment", partitions=8, ordered_by="orderId", retry=Retry.fixed(attempts=9, wait="50ms")
    )

    @payment.on("ORDER_PLACED")
    async def note(event: Event, context: Context) -> None:
        key, number = event.data["orderId"], event.data["number"]
        ledger.write("payment", key, number, 0)
        await asyncio.sleep(0.005)
        if number % 7 == 0 and context.attempt == 1:
            ledger.write("payment", key, number, 2)
            raise ValueError("one in seven")
        ledger.write("payment", key, number, 1)
"""


@dataclass
class Fleet:
    """Workers of one consumer, each with a directory and a log of its own, and one ledger."""

    settings: Settings
    directory: Path
    workers: dict[str, Worker] = field(default_factory=dict)
    killed: set[int] = field(default_factory=set)
    cuts: list[tuple[float, float]] = field(default_factory=list)

    @property
    def ledger(self) -> Ledger:
        """What all of them write to."""
        return Ledger(self.directory / "ledger.db")

    async def join(self, name: str) -> Worker:
        """Start a worker, and return when it handles partitions."""
        directory = self.directory / name
        directory.mkdir()
        settings = self.settings.model_copy(update={"state_dir": directory / "state"})
        worker = self.workers[name] = Worker(settings, directory).module("payment", MODULE)
        worker.start(TEST_LEDGER=str(self.directory / "ledger.db"))
        claims = f"{CONSUMER} claims partitions"
        await eventually(lambda: worker.said(claims), within_s=60, what=claims)
        return worker

    def leave(self, name: str) -> int:
        """Stop a worker in order, and return its exit code."""
        worker = self.workers.pop(name)
        worker.signal()
        return worker.exit_code()

    def kill(self, name: str) -> None:
        """Kill a worker and its processes with -9, all at once."""
        worker = self.workers.pop(name)
        processes = [psutil.Process(worker.pid), *worker.children()]
        self.killed |= {process.pid for process in processes}
        for process in processes:
            process.send_signal(signal.SIGKILL)
        psutil.wait_procs(processes[1:], timeout=10)
        worker.exit_code()

    @contextmanager
    def cut_off(self) -> Iterator[None]:
        """Connections are lost meanwhile, or just after: what is running then runs on, beside what
        is delivered again."""
        began = time.time()
        yield
        self.cuts.append((began, time.time()))

    def lost(self, effect: Effect) -> bool:
        """Whether a run may have been cut off from its broker, or its process was killed."""
        is_cut = any(began - 5 < effect.at < ended + 1 for began, ended in self.cuts)
        return is_cut or effect.pid in self.killed

    def keys_begun_after(self, moment: float) -> set[str]:
        """The keys that have had a run since."""
        return {one.event_id for one in self.ledger.of(CONSUMER) if one.at > moment}

    def end(self) -> None:
        """Stop all that are left."""
        for name in list(self.workers):
            worker = self.workers.pop(name)
            worker.__exit__(None, None, None)


async def announce(publisher: Publisher, keys: int, every_s: float, stopping: asyncio.Event) -> int:
    """Announce events of every key, in order, at a steady rate; return how many of each."""
    loop = asyncio.get_running_loop()
    began, number = loop.time(), 0
    while not stopping.is_set():
        await publisher.publish_many(
            [
                Event(type="ORDER_PLACED", data={"orderId": f"order-{key}", "number": number})
                for key in range(keys)
            ]
        )
        number += 1
        await asyncio.sleep(max(0.0, began + number * every_s - loop.time()))
    return number


def check(fleet: Fleet, keys: int, rounds: int) -> None:
    """Every event was handled; of each key the first runs are in order, and no two at once."""
    ended: defaultdict[str, dict[int, None]] = defaultdict(dict)
    running: dict[str, Effect] = {}
    loose: set[tuple[str, int, int]] = set()
    for effect in fleet.ledger.of(CONSUMER):
        key = effect.event_id
        before = running.get(key)
        if effect.attempt == BEGUN:
            if before is not None:
                assert fleet.lost(before), (before, effect)
                loose.add(_run(before))
            running[key] = effect
        else:
            if before is not None and _run(before) == _run(effect):
                del running[key]
            else:
                assert _run(effect) in loose, (before, effect)
                loose.discard(_run(effect))
            if effect.attempt == ENDED:
                ended[key][effect.number] = None
    assert len(ended) == keys
    for key, numbers in ended.items():
        assert list(numbers) == list(range(rounds)), key


def _run(effect: Effect) -> tuple[str, int, int]:
    return effect.event_id, effect.number, effect.pid


async def all_handled(fleet: Fleet, keys: int, rounds: int, within_s: float) -> None:
    """Wait until every event has had a run that ended well."""

    def is_done() -> bool:
        runs = fleet.ledger.of(CONSUMER)
        ended = {(one.event_id, one.number) for one in runs if one.attempt == ENDED}
        return len(ended) == keys * rounds

    await eventually(is_done, within_s=within_s, what="every event is handled")
