"""Following event logs: what they hold and what comes, in one sequence."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack

from rabbitflow.broker import close, connect
from rabbitflow.log.entry import Entry
from rabbitflow.log.reading import LogReader, in_order, note_ends, open_log, open_pasts
from rabbitflow.log.span import Span
from rabbitflow.settings import Settings


async def tail(event_types: Sequence[str], span: Span, settings: Settings) -> AsyncIterator[Entry]:
    """Yield the entries of some logs, then what is announced, without end; each log in its order.

    Raises:
        ConfigurationError: there is no such log.
        BrokerError: the broker can't be reached; the connection ended.
    """
    arrived: asyncio.Queue[Entry] = asyncio.Queue(maxsize=1000)

    async def pump(reader: LogReader) -> None:
        while True:
            entry = await reader.next()
            if entry is not None and entry.mark is None:
                await arrived.put(entry)

    connection = await connect(settings, "rabbitflow log tail")
    pumps: list[asyncio.Task[None]] = []
    try:
        async with AsyncExitStack() as stack:
            for event_type in event_types:
                log = open_log(connection, event_type, span.argument, settings)
                pumps.append(asyncio.create_task(pump(await stack.enter_async_context(log))))
            while True:
                taking = asyncio.create_task(arrived.get())
                done, _ = await asyncio.wait([taking, *pumps], return_when=asyncio.FIRST_COMPLETED)
                if taking not in done:
                    taking.cancel()
                    await next(iter(done))
                yield taking.result()
    finally:
        for task in pumps:
            task.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)
        await close(connection)


async def export(
    event_types: Sequence[str], span: Span, settings: Settings
) -> AsyncIterator[Entry]:
    """Yield the entries of some logs as they happened, up to what was there when it began.

    Raises:
        ConfigurationError: there is no such log.
        BrokerError: the broker can't be reached; the connection ended.
    """
    connection = await connect(settings, "rabbitflow log export")
    try:
        ends = await note_ends(connection, event_types, settings)
        arguments = dict.fromkeys(event_types, span.argument)
        async with AsyncExitStack() as stack:
            pasts = await open_pasts(stack, connection, arguments, ends, settings)
            async for entry in in_order(pasts):
                yield entry
    finally:
        await close(connection)
