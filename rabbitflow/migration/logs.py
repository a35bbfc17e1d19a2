"""Replacing an event's log: a stream that is copied, in order, while publishers run."""

from __future__ import annotations

from collections.abc import Iterable
from uuid import uuid4

from aiormq.abc import DeliveredMessage
from pamqp.commands import Basic

from rabbitflow.migration.copying import copied_offset, logged, mark_of, offset
from rabbitflow.migration.moving import Mover
from rabbitflow.migration.queues import Bench, Phase
from rabbitflow.publisher import PERSISTENT
from rabbitflow.topology import LOG_MARK, Queue


async def replace_log(bench: Bench, log: Queue, exchanges: Iterable[str]) -> None:
    """Give an event's log its wanted arguments; every event in it stays.

    Events keep their own timestamps; for the log's retention by age they are new, and their offsets
    begin with 0. They stay in their order, but for the few that are announced in the moment of a
    change-over: those may change places, or be there twice, with the same id.

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
    marks: set[str] = set()

    def copy(message: DeliveredMessage) -> Basic.Properties | None:
        mark = mark_of(message)
        if mark in marks:
            marks.remove(mark)
            return None
        return logged(message) if offset(message) > copied else None

    async with bench.mover(source, target, copy, is_stream=True) as mover:
        # Twice: while the first was copied, which may take long, others came.
        await _to_its_end(bench, mover, source, marks)
        await _to_its_end(bench, mover, source, marks)
        bench.progress.step(f"the events of {source} are in {target}")
        # In this order, so that an event announced in between is in both rather than in none.
        await bench.bind(target, exchanges)
        await bench.unbind(source, exchanges)
        bench.progress.step(f"{target} is bound in place of {source}")
        await bench.settle()
        await _to_its_end(bench, mover, source, marks)
    await bench.delete(source)
    bench.progress.step(f"{source} is deleted")


async def _copied_up_to(bench: Bench, target: str) -> int:
    """Return the offset of the last event that an interrupted attempt copied; -1 for none."""
    last = -1
    marks: set[str] = set()

    def note(message: DeliveredMessage) -> None:
        nonlocal last
        last = max(last, copied_offset(message))
        marks.discard(mark_of(message))

    async with bench.mover(target, "", note, is_stream=True) as reader:
        await _to_its_end(bench, reader, target, marks)
    return last


async def _to_its_end(bench: Bench, mover: Mover, stream: str, marks: set[str]) -> None:
    """Move until a mark that is published now: whatever was in the stream before it has been moved.

    A broker tells no client how long a stream is, and deliveries that pause are no proof.
    """
    mark = uuid4().hex
    marks.add(mark)
    properties = Basic.Properties(
        delivery_mode=PERSISTENT, message_id=mark, headers={LOG_MARK: mark}
    )
    await bench.copies.publish("", stream, b"", properties)
    await mover.until(lambda: mark not in marks)
