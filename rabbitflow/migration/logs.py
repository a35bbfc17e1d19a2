"""Replacing an event's log: a stream that is copied, in order, while publishers run."""

from __future__ import annotations

from collections.abc import Iterable

from aiormq.abc import DeliveredMessage
from pamqp.commands import Basic

from rabbitflow.migration.copying import copied_offset, logged, offset
from rabbitflow.migration.queues import Bench, Phase
from rabbitflow.topology import Queue


async def replace_log(bench: Bench, log: Queue, exchanges: Iterable[str]) -> None:
    """Give an event's log its wanted arguments; every event in it stays, in its order.

    Events keep their own timestamps; for the log's retention by age they are new. The few that are
    announced in the moment of a change-over are in the log twice, with the same id.

    Raises:
        BrokerError: as everything here; a replacement that was interrupted goes on.
    """
    stand_in = await bench.hold(log)
    await bench.settle()
    bench.progress.step(f"{stand_in} stands")
    if await bench.phase(log) is Phase.LEAVING:
        await _pour(bench, log.name, stand_in, exchanges)
    await bench.declare(log)
    await bench.settle()
    bench.progress.step(f"{log.name} is declared anew")
    await _pour(bench, stand_in, log.name, exchanges)


async def _pour(bench: Bench, source: str, target: str, exchanges: Iterable[str]) -> None:
    """Copy one log into another that takes its place, and delete it."""
    copied = await _copied_up_to(bench, target)

    def copy(message: DeliveredMessage) -> Basic.Properties | None:
        return logged(message) if offset(message) > copied else None

    async with bench.mover(source, target, copy, is_stream=True) as mover:
        await mover.until_caught_up()
        bench.progress.step(f"the events of {source} are in {target}")
        # In this order, so that an event announced in between is in both rather than in none.
        await bench.bind(target, exchanges)
        await bench.unbind(source, exchanges)
        bench.progress.step(f"{target} is bound in place of {source}")
        await mover.until_quiet(bench.settle_s)
    await bench.delete(source)
    bench.progress.step(f"{source} is deleted")


async def _copied_up_to(bench: Bench, target: str) -> int:
    """Return the offset of the last event that an interrupted attempt copied; -1 for none."""
    last = -1

    def note(message: DeliveredMessage) -> None:
        nonlocal last
        last = max(last, copied_offset(message))

    async with bench.mover(target, "", note, is_stream=True) as reader:
        await reader.until_caught_up()
    return last
