"""Finding the consumers of modules, in a short-lived process so that no user code runs here."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rabbitflow.errors import ConfigurationError
from rabbitflow.topology import Topology, consumer_topology, event_topology
from rabbitflow.worker.process import ended

if TYPE_CHECKING:
    from rabbitflow.settings import Settings

DISCOVERY_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class Found:
    """A consumer that a module defines, as far as a supervisor needs to know it.

    ``longest_timeout_s`` is that of its handlers; None where one may run without limit.
    ``retries_for_ever`` says that a policy of it was not seen to end. ``publishes`` are the event
    types that it says it announces. ``partitions`` is 0 where it keeps no order.
    """

    name: str
    module: str
    event_types: tuple[str, ...]
    concurrency: int
    retry_buckets_s: tuple[int, ...]
    longest_timeout_s: float | None
    prefetch: int = 0
    retries_for_ever: bool = False
    publishes: tuple[str, ...] = ()
    partitions: int = 0

    def topology(self, settings: Settings) -> Topology:
        """What it needs on the broker."""
        needed = consumer_topology(
            self.name, self.event_types, self.retry_buckets_s, settings, self.partitions
        )
        for event_type in self.publishes:
            needed += event_topology(event_type, settings)
        return needed


@dataclass(frozen=True, slots=True)
class Broken:
    """A module that can't be used, why in one line, and the traceback where there is one."""

    module: str
    error: str
    traceback: str = ""


@dataclass(slots=True)
class Discovery:
    """What the modules hold."""

    consumers: list[Found] = field(default_factory=list)
    broken: list[Broken] = field(default_factory=list)


async def discover(modules: Sequence[str]) -> Discovery:
    """Return the consumers of ``modules``; a package stands for all its submodules.

    A module that fails to import, or takes its process down, is reported and leaves the others.

    Raises:
        ConfigurationError: two consumers have the same name.
    """
    discovery = Discovery()
    skipped: list[str] = []
    while True:
        killer = await _discover_once(modules, skipped, discovery)
        if killer is None:
            break
        skipped.append(killer)
    _refuse_duplicates(discovery.consumers)
    return discovery


async def _discover_once(
    modules: Sequence[str], skipped: Sequence[str], discovery: Discovery
) -> str | None:
    """Fill ``discovery`` from one process; return the module that killed it, or None."""
    known = {found.module for found in discovery.consumers}
    known |= {broken.module for broken in discovery.broken}
    reading, writing = os.pipe()
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "rabbitflow.worker.search",
        str(writing),
        json.dumps({"modules": list(modules), "skipped": list(skipped)}),
        stdin=asyncio.subprocess.DEVNULL,
        pass_fds=(writing,),
        process_group=0,
    )
    os.close(writing)
    importing: str | None = None
    is_whole = False
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    pipe = os.fdopen(reading, "rb", buffering=0)
    transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), pipe)
    try:
        async with asyncio.timeout(DISCOVERY_TIMEOUT_S):
            async for line in reader:
                report = json.loads(line)
                importing = report.get("importing")
                is_whole = report.get("whole", False)
                if report.get("module") in known:
                    continue
                if "consumers" in report:
                    discovery.consumers += map(_found, report["consumers"])
                elif "error" in report:
                    discovery.broken.append(Broken(**report))
            status = await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()
        status = None
    finally:
        transport.close()
    if is_whole:
        return None
    if importing is None:
        raise ConfigurationError(f"the modules can't be searched: discovery ended with {status}")
    took = "took too long" if status is None else f"ended its process ({ended(status)})"
    discovery.broken.append(Broken(importing, f"importing it {took}"))
    return importing


def _found(report: dict[str, Any]) -> Found:
    return Found(
        report["name"],
        report["module"],
        tuple(report["event_types"]),
        report["concurrency"],
        tuple(report["retry_buckets_s"]),
        report["longest_timeout_s"],
        report["prefetch"],
        report["retries_for_ever"],
        tuple(report["publishes"]),
        report["partitions"],
    )


def _refuse_duplicates(consumers: Sequence[Found]) -> None:
    modules: dict[str, str] = {}
    for found in consumers:
        if found.name in modules:
            raise ConfigurationError(
                f"two consumers are named {found.name!r}, in {modules[found.name]} and"
                f" {found.module}: they would share one queue and halve each other's events"
            )
        modules[found.name] = found.module
