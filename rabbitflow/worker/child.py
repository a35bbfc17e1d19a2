"""The process that runs one consumer: ``python -m rabbitflow.worker.child CONSUMER FD``."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import logging
import os
import signal
import socket
import sys
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NoReturn

from rabbitflow.consumer import Consumer
from rabbitflow.errors import AccessRefused, ConfigurationError
from rabbitflow.event import Event
from rabbitflow.observe.logs import configure_logging
from rabbitflow.observe.tracing import flush_traces
from rabbitflow.settings import Settings
from rabbitflow.worker.process import (
    EXIT_BROKER_LOST,
    EXIT_CONFIGURATION,
    EXIT_REPLACE,
    LAST_WORDS_WITHIN_S,
    LINE_LIMIT_BYTES,
    Beat,
    Order,
)
from rabbitflow.worker.runtime import BrokerLost, ConsumerRuntime
from rabbitflow.worker.search import consumers_of, import_module
from rabbitflow.worker.suspects import SuspectNote, strikes_from_json

BEAT_EVERY_S = 1.0
TOLD_EVENTS = 1_000
"""How many ends of events a sign of life tells of: whoever looks on sees the latest."""

logger = logging.getLogger(__name__)


def load_consumer(module: str, name: str) -> Consumer:
    """Import ``module`` and return its consumer of that name.

    Raises:
        ConfigurationError: it defines none.
    """
    for consumer in consumers_of(import_module(module)):
        if consumer.name == name:
            return consumer
    raise ConfigurationError(f"module {module} defines no consumer named {name!r}")


async def _run(order: Order, line: socket.socket, consumer: Consumer) -> int:
    reader, writer = await asyncio.open_connection(sock=line, limit=LINE_LIMIT_BYTES)
    note = SuspectNote(Path(order.note)) if order.note else None
    if order.concurrency is not None:
        consumer.concurrency = order.concurrency
    ended: deque[tuple[str, str]] = deque(maxlen=TOLD_EVENTS)

    def note_end(event_id: str, outcome: str, event: Event[Any] | None) -> None:
        ended.append((event_id, outcome))

    runtime = ConsumerRuntime(
        consumer,
        Settings(**order.settings),
        strikes=strikes_from_json(order.strikes),
        note=note,
        after_crash=order.after_crash,
        on_ended=note_end if order.tells_events else None,
        counts_backlog=order.counts_backlog,
    )
    _on_signals(runtime)
    helpers = [
        asyncio.create_task(_beat(runtime, ended, writer)),
        asyncio.create_task(_stop_with_supervisor(runtime, reader)),
    ]
    try:
        await runtime.run()
        return EXIT_REPLACE if runtime.needs_replacement else 0
    finally:
        for helper in helpers:
            helper.cancel()
        await asyncio.gather(*helpers, return_exceptions=True)
        with contextlib.suppress(ConnectionError):
            # What was counted since the last one.
            await _say(runtime.beat(), ended, writer)


async def _beat(
    runtime: ConsumerRuntime, ended: deque[tuple[str, str]], writer: asyncio.StreamWriter
) -> None:
    """Tell the supervisor every second that this loop turns, and at once when readiness changes."""
    with contextlib.suppress(ConnectionError):
        while True:
            beat = runtime.beat()
            await _say(beat, ended, writer)
            waited_s = 0.0
            while waited_s < BEAT_EVERY_S and runtime.is_ready == beat.is_ready:
                await asyncio.sleep(BEAT_EVERY_S / 10)
                waited_s += BEAT_EVERY_S / 10


async def _say(beat: Beat, ended: deque[tuple[str, str]], writer: asyncio.StreamWriter) -> None:
    beat = replace(beat, ended=list(ended))
    ended.clear()
    writer.write(json.dumps(asdict(beat)).encode() + b"\n")
    await writer.drain()


async def _stop_with_supervisor(runtime: ConsumerRuntime, reader: asyncio.StreamReader) -> None:
    with contextlib.suppress(ConnectionError):
        while await reader.read(1024):
            pass
    logger.warning("the supervisor is gone; stopping")
    runtime.stop()


def _on_signals(runtime: ConsumerRuntime) -> None:
    asked = 0

    def stop() -> None:
        nonlocal asked
        asked += 1
        if asked == 1:
            runtime.stop()
        else:
            runtime.stop_now()

    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stop)
    loop.add_signal_handler(signal.SIGINT, stop)
    loop.add_signal_handler(signal.SIGHUP, lambda: None)


def new_event_loop_runner() -> Callable[[Coroutine[Any, Any, int]], int]:
    """Return what runs a coroutine: uvloop where it is installed (extra ``fast``), else asyncio."""
    try:
        import uvloop  # noqa: PLC0415
    except ImportError:
        return asyncio.run
    return uvloop.run


def run(line: socket.socket) -> NoReturn:
    """Read the order from ``line``, run the consumer, and end the process with a code that says
    what the supervisor should do."""
    line.set_inheritable(False)
    last_words = line.dup()  # the event loop closes its own
    order = Order(**json.loads(_first_line(line)))
    configure_logging(order.log_format, order.log_level)
    code, failure = 1, None
    try:
        consumer = load_consumer(order.module, order.consumer)
        # What was imported stays: a collection that looked at it would hold the events up, for
        # 10 ms and more with every library that the handlers need.
        gc.collect()
        gc.freeze()
        code = new_event_loop_runner()(_run(order, line, consumer))
    except (ConfigurationError, AccessRefused) as error:
        code, failure = EXIT_CONFIGURATION, str(error)
    except BrokerLost as error:
        code, failure = EXIT_BROKER_LOST, str(error)
    except Exception:
        logger.exception("%s failed in a way that is not its handlers'", order.consumer)
    finally:
        flush_traces()
        _say_last(last_words, code, failure)
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        # Not sys.exit: that waits for threads, and a hung handler's thread never ends.
        os._exit(code)


def _first_line(line: socket.socket) -> bytes:
    """Read the order alone, byte for byte up to its end; what comes later is for the event loop."""
    received = bytearray()
    while not received.endswith(b"\n"):
        chunk = line.recv(65536)
        if not chunk:
            os._exit(0)  # the supervisor is gone already
        received += chunk
    return bytes(received)


def _say_last(line: socket.socket, status: int, failure: str | None) -> None:
    """Tell the supervisor how this process ends: it may not be able to see it."""
    told = json.dumps({"status": status, "failure": failure}).encode()
    try:
        line.settimeout(LAST_WORDS_WITHIN_S)
        # On a line of its own, also after one that the event loop did not get out whole.
        line.sendall(b"\n" + told + b"\n")
    except OSError:
        if failure is not None:
            logger.error("%s", failure)


if __name__ == "__main__":
    run(socket.socket(fileno=int(sys.argv[2])))
