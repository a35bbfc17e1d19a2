"""Replacing the queues of one consumer whose arguments changed, while publishers run.

The order keeps every event in a queue at every moment, and lets each step be done again, so a
migration that was killed goes on where it stood. docs/architecture.md tells it in full.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, replace

from rabbitflow import control
from rabbitflow.declaration import declare
from rabbitflow.errors import BrokerUnavailable, ConfigurationError
from rabbitflow.inspection import difference, look, taken_for_empty
from rabbitflow.migration.copying import held, returned
from rabbitflow.migration.logs import replace_log
from rabbitflow.migration.queues import SETTLE_S, Bench, Phase, Progress
from rabbitflow.settings import Settings
from rabbitflow.topology import (
    MOST_PARTITIONS,
    QUEUE_TYPE,
    RETRY_BUCKETS_S,
    Names,
    Queue,
    Topology,
    consumer_topology,
    holding,
    replacing_lock,
    workers_topology,
)

LEAVE_WITHIN_S = 60.0
_POLL_S = 0.1


@dataclass(frozen=True, slots=True)
class Migrated:
    """What a migration did.

    Fields:
        queues: that were replaced, or whose replacement was finished; empty where none differed.
        is_paused: whether the consumer is paused now.
    """

    queues: tuple[str, ...]
    is_paused: bool


@dataclass(frozen=True, slots=True)
class _Own:
    """The queues of one consumer, as they are wanted."""

    queue: Queue
    partitions: tuple[Queue, ...]
    dead: Queue
    workers: Queue
    retries: tuple[Queue, ...]
    logs: tuple[Queue, ...]
    exchanges: tuple[str, ...]


async def migrate(
    consumer: str,
    topology: Topology,
    settings: Settings,
    *,
    also_bound: tuple[str, ...] = (),
    pause: bool = False,
    leave_within_s: float = LEAVE_WITHIN_S,
    settle_s: float = SETTLE_S,
    progress: Progress | None = None,
) -> Migrated:
    """Give every queue of ``consumer`` the arguments that ``topology`` says, and lose nothing.

    Args:
        consumer: its name.
        topology: what it needs, as its module says now.
        also_bound: further exchanges that its queue is bound to and is to stay bound to.
        pause: pause the consumer, wait for its workers to finish, and resume it at the end.
        leave_within_s: how long to wait for that, in seconds.
        settle_s: how long queues are watched, and stand before they are used, in seconds.
        progress: is told of every step.

    Raises:
        ConfigurationError: an exchange differs, or a queue in a way that can't be migrated.
        BrokerUnavailable: workers still hold events, another migration runs, or the broker is
            gone. Run the same command again: it goes on where it stood.
    """
    progress = progress or Progress()
    own = _own(consumer, topology, also_bound, settings)
    name = f"rabbitflow topology migrate {consumer}"
    async with Bench.opened(settings, name, progress, settle_s) as bench:
        await bench.lock(replacing_lock(own.queue.name), own.queue.name)
        # Also buckets that the policy reaches no more may hold events.
        there = await bench.begun(own.retries) | await bench.standing(own.retries)
        own = replace(own, retries=tuple(retry for retry in own.retries if retry.name in there))
        migration = _Migration(consumer, own, bench)
        replaced = await migration.outstanding(topology)
        is_paused = await control.is_paused(bench.connection, consumer, settings)
        if not replaced:
            return Migrated((), is_paused)
        if await bench.exists(Names(settings.namespace).backfill(consumer)):
            raise BrokerUnavailable(
                f"{consumer} is still getting its past from the log; let a worker of it finish that"
                " first"
            )
        await declare(bench.connection, Topology(exchanges=topology.exchanges), settings)
        for log in own.logs:
            if log.name in replaced:
                await bench.lock(replacing_lock(log.name), log.name)
                bound = [found.exchange for found in topology.bindings if found.queue == log.name]
                await replace_log(bench, log, bound)
        if set(replaced) - {log.name for log in own.logs}:
            # Nobody replays into a queue that is about to go, or out of one.
            await bench.lock(Names(settings.namespace).dead_lock(consumer), own.dead.name)
            if pause and not is_paused:
                await control.pause(consumer, settings)
            try:
                await migration.begin(leave_within_s if pause else 0.0)
                await migration.run()
            finally:
                # What was begun and not finished keeps workers off by a mark of its own.
                if pause and not is_paused:
                    await control.resume(consumer, settings)
        await declare(bench.connection, topology, settings)
        return Migrated(replaced, is_paused)


def _own(
    consumer: str, topology: Topology, also_bound: tuple[str, ...], settings: Settings
) -> _Own:
    names = Names(settings.namespace)
    every = consumer_topology(consumer, (), RETRY_BUCKETS_S, settings, MOST_PARTITIONS)
    asked = {queue.name: queue for queue in topology.queues}
    # What is asked for says how many partitions there are, and so what the queue is like.
    wanted = {queue.name: queue for queue in every.queues} | asked
    queue = wanted[names.queue(consumer)]
    numbers = range(MOST_PARTITIONS)
    partitions = [names.partition(consumer, number) for number in numbers]
    bound = [binding.exchange for binding in topology.bindings if binding.queue == queue.name]
    return _Own(
        queue,
        tuple(asked[name] for name in partitions if name in asked),
        wanted[names.dead(consumer)],
        workers_topology(consumer, settings).queues[0],
        tuple(wanted[names.retry(consumer, bucket_s)] for bucket_s in RETRY_BUCKETS_S),
        tuple(
            found
            for found in topology.queues
            if found.name not in {each.name for each in every.queues}
        ),
        tuple(dict.fromkeys((*bound, *also_bound))),
    )


class _Migration:
    def __init__(self, consumer: str, own: _Own, bench: Bench) -> None:
        self._consumer = consumer
        self._own = own
        self._bench = bench

    async def outstanding(self, topology: Topology) -> tuple[str, ...]:
        """Return the queues that are to be replaced, or whose replacement was begun."""
        own, bench = self._own, self._bench
        every = topology + Topology(queues=(own.dead, *own.retries))
        found = await difference(bench.connection, every, bench.settings)
        for mismatch in found.mismatches:
            if mismatch.kind == "exchange":
                raise ConfigurationError(
                    f"{mismatch}; an exchange can't be replaced while publishers run: stop them,"
                    " delete it, and run: rabbitflow topology apply MODULE"
                )
            kinds = (mismatch.current, mismatch.wanted)
            is_foreign = mismatch.argument == QUEUE_TYPE and "stream" in kinds
            if is_foreign or not mismatch.argument.startswith("x-"):
                raise ConfigurationError(
                    f"{mismatch}; that is no queue of rabbitflow's, and is not replaced: move its"
                    " messages away and delete it"
                )
        differing = found.queues()
        queues = (
            own.queue,
            *own.partitions,
            own.dead,
            own.workers,
            *own.retries,
            *own.logs,
        )
        begun = await bench.begun(queues)
        return tuple(queue.name for queue in queues if queue.name in differing | begun)

    async def begin(self, leave_within_s: float) -> None:
        """Mark the consumer as being migrated, once nobody holds any of its events.

        Marked first and counted after, while a worker counts itself first and looks for the mark
        after: so either sees the other.
        """
        own, bench = self._own, self._bench
        deadline = time.monotonic() + leave_within_s
        await self._wait_for_leave(deadline)
        stand_in = Names(bench.settings.namespace).migrating(self._consumer)
        was_marked = await bench.exists(stand_in)
        await bench.hold(own.queue)
        try:
            await self._wait_for_leave(deadline)
        except BrokerUnavailable:
            if not was_marked:
                # Nothing is bound to it or in it yet.
                await bench.delete(stand_in)
            raise
        bench.progress.step(f"no worker of {self._consumer} begins until this is done")

    async def _wait_for_leave(self, deadline: float) -> None:
        bench = self._bench
        while True:
            workers = await control.attending(bench.connection, self._consumer, bench.settings)
            queue = await look(bench.connection, self._own.queue.name, bench.settings)
            others = queue.consumers if queue else 0
            if not workers and not others:
                return
            if time.monotonic() >= deadline:
                raise BrokerUnavailable(
                    f"{workers} processes of {self._consumer} may hold events"
                    f" ({others} consumers on {self._own.queue.name}); stop them, or pass --pause"
                    " and give them time with --wait"
                )
            await asyncio.sleep(_POLL_S)

    async def run(self) -> None:
        """Take the messages out, replace the queues, bring the messages back."""
        await self._take_out()
        await self._put_in_place()
        await self._bring_back()
        await self._replace_others()

    async def _take_out(self) -> None:
        own, bench = self._own, self._bench
        step = bench.progress.step
        is_leaving = await bench.phase(own.queue) is Phase.LEAVING
        parked = [retry for retry in own.retries if await self._is_parked(retry, is_leaving)]
        for queue in (own.dead, *own.partitions):
            if await bench.phase(queue) is Phase.LEAVING:
                await bench.hold(queue)
        for queue in (own.queue, *parked):
            await bench.hold(queue)
        await bench.settle()
        stand_in = holding(own.queue, bench.settings).name
        step(f"{stand_in} stands")
        if is_leaving:
            # In this order, so that an event announced in between is in both rather than in none.
            await bench.bind(stand_in, own.exchanges)
            step(f"{stand_in} is bound beside {own.queue.name}")
            await bench.unbind(own.queue.name, own.exchanges)
            step(f"{own.queue.name} is unbound")
            async with bench.mover(own.queue.name, stand_in, held) as mover:
                await mover.until_caught_up()
            step(f"the events of {own.queue.name} are held in {stand_in}")
        # A retry that is due goes to the queue at a moment of its own. A classic one is lost when
        # there is no queue then, and any when it comes right before the queue is deleted.
        for retry in parked:
            match await bench.phase(retry):
                case Phase.LEAVING:
                    await bench.remove(retry.name, await bench.hold(retry), held)
                case Phase.RETURNING if is_leaving:
                    await bench.empty(retry.name, await bench.hold(retry), held)
            await bench.declare(retry)
            step(f"the retries of {retry.name} are held")
        if is_leaving:
            await bench.remove(own.queue.name, stand_in, held, quiet_s=bench.settle_s)

    async def _is_parked(self, retry: Queue, is_leaving: bool) -> bool:
        """Whether a retry queue's messages are to be held, or are held already."""
        bench = self._bench
        match await bench.phase(retry):
            case Phase.LEAVING | Phase.GONE | Phase.RETURNING:
                return True
            case Phase.DONE if is_leaving:
                found = await look(bench.connection, retry.name, bench.settings)
                if found is None or found.messages:
                    return found is not None
                return await taken_for_empty(bench.connection, retry.name, bench.settings) > 0
        return False

    async def _put_in_place(self) -> None:
        own, bench = self._own, self._bench
        await bench.declare(own.queue)
        await bench.settle()
        bench.progress.step(f"{own.queue.name} is declared anew")

    async def _bring_back(self) -> None:
        own, bench = self._own, self._bench
        step = bench.progress.step
        for retry in own.retries:
            if await bench.phase(retry) is Phase.RETURNING:
                await bench.remove(await bench.hold(retry), retry.name, returned)
        stand_in = await bench.hold(own.queue)
        # Bound again only when the older events are back, which keeps their order.
        async with bench.mover(stand_in, own.queue.name, returned) as mover:
            await mover.until_caught_up()
        step(f"the events held in {stand_in} are back")
        await bench.bind(own.queue.name, own.exchanges)
        step(f"{own.queue.name} is bound again")
        await bench.unbind(stand_in, own.exchanges)
        step(f"{stand_in} is unbound")

    async def _replace_others(self) -> None:
        """Replace what nothing is routed to while no worker runs; then let workers begin."""
        own, bench = self._own, self._bench
        if await bench.phase(own.workers) is not Phase.DONE:
            await bench.delete(own.workers.name)
            await bench.declare(own.workers)
            bench.progress.step(f"{own.workers.name} is declared anew")
        for queue in (own.dead, *own.partitions):
            if await bench.phase(queue) is Phase.LEAVING:
                await bench.remove(queue.name, await bench.hold(queue), held)
            if await bench.phase(queue) in (Phase.GONE, Phase.RETURNING):
                await bench.declare(queue)
                await bench.settle()
                await bench.remove(await bench.hold(queue), queue.name, returned)
        await bench.remove(
            await bench.hold(own.queue), own.queue.name, returned, quiet_s=bench.settle_s
        )
