"""Finding the consumers of modules, in a short-lived process so that no user code runs here."""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import pkgutil
import sys
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from rabbitflow.consumer import Consumer
from rabbitflow.errors import ConfigurationError
from rabbitflow.settings import Settings
from rabbitflow.topology import Topology, consumer_topology, event_topology
from rabbitflow.worker.process import ended

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
        "rabbitflow.worker.discovery",
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


def import_module(name: str) -> ModuleType:
    """Import a module by name, the current directory first, as ``python -m`` does."""
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    return importlib.import_module(name)


def consumers_of(module: ModuleType) -> list[Consumer]:
    """Return the consumers that ``module`` itself defines, in the order written."""
    mine = {
        id(value): value
        for value in vars(module).values()
        if isinstance(value, Consumer) and value.module == module.__name__
    }
    return list(mine.values())


def names_within(name: str) -> Iterator[str]:
    """Yield ``name`` and, where it is a package, the names of everything in it."""
    yield name
    module = sys.modules.get(name)
    for found in pkgutil.iter_modules(getattr(module, "__path__", []), f"{name}."):
        yield from names_within(found.name)


def _search(modules: Sequence[str], skipped: Sequence[str], report: Any) -> None:
    seen: set[str] = set(skipped)
    for module in modules:
        for name in names_within(module):
            if name in seen:
                continue
            seen.add(name)
            report({"importing": name})
            try:
                consumers = consumers_of(import_module(name))
                found = [_described(consumer) for consumer in consumers]
            except ConfigurationError as error:
                report({"module": name, "error": str(error)})
            except (Exception, SystemExit) as error:
                report({"module": name, "error": _one_line(error), "traceback": _trace()})
            else:
                report({"module": name, "consumers": found})
    report({"whole": True})


def _described(consumer: Consumer) -> dict[str, Any]:
    consumer.resolve()
    return asdict(
        Found(
            consumer.name,
            consumer.module,
            consumer.event_types,
            consumer.concurrency,
            tuple(consumer.retry_buckets_s()),
            consumer.longest_timeout_s(),
            consumer.prefetch,
            any(handler.retry.is_endless for handler in consumer.handlers.values()),
            consumer.publishes,
            consumer.partitions,
        )
    )


def _one_line(error: BaseException) -> str:
    if isinstance(error, SystemExit):
        return f"it calls sys.exit({error.code!r}) when imported"
    said = str(error).strip().splitlines()
    return f"{type(error).__name__}: {said[0] if said else 'no text'}"


def _trace() -> str:
    return traceback.format_exc(limit=-8)


def _main() -> None:
    writing, asked = int(sys.argv[1]), json.loads(sys.argv[2])
    with os.fdopen(writing, "w", encoding="utf-8", buffering=1) as pipe:
        _search(
            asked["modules"], asked["skipped"], lambda found: print(json.dumps(found), file=pipe)
        )


if __name__ == "__main__":
    _main()
