"""Taking dead letters away: replayed, mended, purged; and bringing exported ones back.

What a dead letter becomes is confirmed first, then it is acked off the dead letters. Killed between
the two it is there twice, under one id; at no moment is it nowhere.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable

from rabbitflow.confirmed import ConfirmedChannel
from rabbitflow.deadletters.letter import EVERYTHING, Letter, Selection
from rabbitflow.deadletters.look import Held, Look
from rabbitflow.errors import ConfigurationError, EventError, Unroutable
from rabbitflow.event import Event, EventDecoder, id_of
from rabbitflow.rate import Pacer, Rate
from rabbitflow.settings import Settings
from rabbitflow.signing import Signer
from rabbitflow.topology import SIGNATURE, SIGNED_BY, Names

IN_FLIGHT = 128
ROUND_S = 300.0
"""A delivery may be held for 30 minutes by default, then the broker closes the channel; a slow
replay gives everything back well before that, and begins a new round."""

logger = logging.getLogger(__name__)

OnMoved = Callable[[Letter], object]
_Move = Callable[[Look, Held], Awaitable[None]]


def _ignore(letter: Letter) -> None:
    return


async def replay(
    consumer: str,
    settings: Settings,
    selection: Selection = EVERYTHING,
    *,
    at_most: int | None = None,
    rate: float | None = None,
    on_moved: OnMoved = _ignore,
) -> int:
    """Put dead letters back into the queue of ``consumer`` alone; return how many.

    They keep their id and begin with attempt 1. Those that are not meant stay in place, and so do
    those that come while it runs: it ends at the number that was there when it began.

    Args:
        at_most: look at no more than so many, the oldest.
        rate: so many a second; as fast as the broker confirms where it is not given.
        on_moved: called with each one that is safe in its queue.

    Raises:
        ConfigurationError: the consumer has no queue, or no dead-letter queue.
        BrokerError: the broker can't be reached, or refuses; what was moved stays moved.
    """
    queue = Names(settings.namespace).queue(consumer)

    async def move(look: Look, held: Held) -> None:
        letter = held.letter
        try:
            await look.copies.publish("", queue, letter.body, letter.replayed())
        except Unroutable as error:
            raise ConfigurationError(
                f"{settings.shown_url} has no queue {queue} to replay to; start a worker of"
                f" {consumer} first"
            ) from error
        await look.remove(held)

    pacer = None if rate is None else Pacer(Rate(rate, 1.0))
    return await _work_through(consumer, settings, selection, move, at_most, pacer, on_moved)


async def purge(
    consumer: str,
    settings: Settings,
    selection: Selection = EVERYTHING,
    *,
    at_most: int | None = None,
    on_moved: OnMoved = _ignore,
) -> int:
    """Delete dead letters for good; return how many. Arguments and errors as :func:`replay`."""

    async def move(look: Look, held: Held) -> None:
        await look.remove(held)

    return await _work_through(consumer, settings, selection, move, at_most, None, on_moved)


async def mend(
    letter: Letter, body: bytes, consumer: str, settings: Settings, *, is_replayed: bool
) -> None:
    """Put ``body`` in the place of the body of ``letter``: into the consumer's queue, or where
    ``is_replayed`` is False back among the dead letters.

    It is signed with the key of the settings. Without one it is not signed any more, as what its
    producer signed is another body.

    Raises:
        EventError: ``body`` is no event, or one of another id.
        ConfigurationError: the dead letter is not there any more, or there is no queue.
        BrokerError: the broker can't be reached, or refuses; nothing is changed.
    """
    event = check_mended(letter, body)
    names = Names(settings.namespace)
    queue = names.queue(consumer) if is_replayed else names.dead(consumer)
    properties = letter.replayed() if is_replayed else letter.kept()
    properties.message_type = event.type
    headers = {**(properties.headers or {})}
    for name in (SIGNED_BY, SIGNATURE):
        headers.pop(name, None)
    signer = Signer.of(settings)
    if signer is not None:
        headers |= signer.headers(names.exchange(event.type), letter.id, body)
    properties.headers = headers
    async with Look(consumer, settings) as look:
        async for held in look:
            if held.letter.id != letter.id or held.letter.body != letter.body:
                continue
            try:
                await look.copies.publish("", queue, body, properties)
            except Unroutable as error:
                raise ConfigurationError(f"{settings.shown_url} has no queue {queue}") from error
            await look.remove(held)
            return
    raise ConfigurationError(
        f"the dead letter {letter.id} of {consumer} is not there any more; nothing was changed"
    )


def check_mended(letter: Letter, body: bytes) -> Event[object]:
    """Return the event in ``body``, which is to stand for ``letter``.

    Raises:
        EventError: it is no event, or one of another id.
    """
    event: Event[object] = EventDecoder()(body, letter.id)
    if event.id not in (letter.id, id_of(letter.body)):
        raise EventError(
            f"the event's id was changed from {letter.id} to {event.id}; another id is another"
            " event, so publish that one instead"
        )
    return event


async def put_back(
    letters: Iterable[Letter],
    consumer: str,
    settings: Settings,
    on_moved: OnMoved = _ignore,
) -> int:
    """Put exported letters among the dead letters of ``consumer``, in order; return how many.

    Raises:
        ConfigurationError: the consumer has no dead-letter queue.
        BrokerError: the broker can't be reached, or refuses; what was put back stays there.
    """
    queue = Names(settings.namespace).dead(consumer)
    copies = ConfirmedChannel(settings, f"rabbitflow dlq {consumer}")
    free = asyncio.Semaphore(IN_FLIGHT)
    count = 0

    async def put(letter: Letter) -> None:
        nonlocal count
        try:
            await copies.publish("", queue, letter.body, letter.kept())
        except Unroutable as error:
            raise ConfigurationError(
                f"{settings.shown_url} has no queue {queue}; start a worker of {consumer} first"
            ) from error
        count += 1
        on_moved(letter)
        free.release()

    try:
        async with asyncio.TaskGroup() as group:
            for letter in letters:
                await free.acquire()
                group.create_task(put(letter))
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from failed
    finally:
        await copies.close()
    return count


async def _work_through(
    consumer: str,
    settings: Settings,
    selection: Selection,
    move: _Move,
    at_most: int | None,
    pacer: Pacer | None,
    on_moved: OnMoved,
) -> int:
    moved, left = 0, at_most
    while left is None or left > 0:
        count, bound, is_done = await _round(
            consumer, settings, selection, move, left, pacer, on_moved
        )
        moved, left = moved + count, bound - count
        if is_done:
            break
    return moved


async def _round(
    consumer: str,
    settings: Settings,
    selection: Selection,
    move: _Move,
    at_most: int | None,
    pacer: Pacer | None,
    on_moved: OnMoved,
) -> tuple[int, int, bool]:
    """Move what is meant among the oldest ``at_most``, for ``ROUND_S`` seconds at most; return how
    many were moved, among how many, and whether all of these were looked at."""
    began = time.monotonic()
    free = asyncio.Semaphore(IN_FLIGHT)
    moved = 0

    async def one(held: Held) -> None:
        nonlocal moved
        await move(look, held)
        moved += 1
        on_moved(held.letter)
        free.release()

    async with Look(consumer, settings) as look:
        bound = look.count if at_most is None else min(at_most, look.count)
        looked_at, is_done = 0, True
        try:
            async with asyncio.TaskGroup() as group:
                async for held in look:
                    if looked_at == bound:
                        break
                    looked_at += 1
                    if not selection.matches(held.letter):
                        continue
                    if time.monotonic() - began > ROUND_S:
                        is_done = False
                        break
                    if pacer is not None:
                        await asyncio.sleep(pacer.reserve(time.monotonic()))
                    await free.acquire()
                    group.create_task(one(held))
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from failed
    return moved, bound, is_done
