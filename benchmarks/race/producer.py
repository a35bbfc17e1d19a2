"""One peer's publisher as a process: ``python -m benchmarks.race.producer PEER MODE COUNT``.

Modes: ``awaited`` (the next when this one is confirmed), ``pipelined`` (a window of them), and a
number, which is how many a second. Prints what it took as JSON.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import resource
import sys
import time
from typing import Any

from benchmarks.race.payload import order

WINDOW = 500


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


async def _publish(producer: Any, mode: str, count: int, size_bytes: int) -> None:
    if mode == "awaited":
        data = order(size_bytes)
        for number in range(count):
            await producer.send(number, data)
    elif mode == "pipelined":
        await producer.send_many(range(count), order(size_bytes), WINDOW)
    else:
        await _paced(producer, float(mode), count, size_bytes)


async def _paced(producer: Any, rate: float, count: int, size_bytes: int) -> None:
    """Send at a steady pace, each without waiting for the one before it."""
    began = time.perf_counter()
    sending: set[asyncio.Task[None]] = set()
    for number in range(count):
        early_s = began + number / rate - time.perf_counter()
        if early_s > 0.0005:
            await asyncio.sleep(early_s)
        task = asyncio.create_task(producer.send(number, order(size_bytes, now=True)))
        sending.add(task)
        task.add_done_callback(sending.discard)
        if not number % 20:
            await asyncio.sleep(0)
    await asyncio.gather(*sending)


async def main(peer: str, mode: str, count: int, size_bytes: int = 0) -> None:
    """Publish and print seconds and CPU seconds."""
    module = importlib.import_module(f"benchmarks.race.peers.{peer}_app")
    async with module.Producer() as producer:
        if peer != "c":
            await producer.send(0, order())  # connects, declares
        began, cpu_began_s = time.perf_counter(), _cpu_s()
        await _publish(producer, mode, count, size_bytes)
        took_s, cpu_s = time.perf_counter() - began, _cpu_s() - cpu_began_s
    sys.stdout.write(json.dumps({"seconds": took_s, "cpu_s": cpu_s}))


if __name__ == "__main__":
    peer_name, mode_name, how_many, *size = sys.argv[1:]
    work = main(peer_name, mode_name, int(how_many), *map(int, size))
    if peer_name == "rabbitflow":
        # As every worker of it does; the peers run on the event loop that they choose.
        from rabbitflow.worker.child import new_event_loop_runner

        new_event_loop_runner()(work)
    else:
        asyncio.run(work)
