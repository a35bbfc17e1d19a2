"""The process that searches modules: ``python -m rabbitflow.worker.search FD MODULES``."""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
import sys
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any

from rabbitflow.consumer import Consumer
from rabbitflow.errors import ConfigurationError
from rabbitflow.worker.discovery import Found


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
