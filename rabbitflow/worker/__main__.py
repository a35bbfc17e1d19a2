"""The process that supervises: ``python -m rabbitflow.worker FD MODULE…``, by :mod:`.launch`.

It lives as long as the worker and only starts, watches and counts, so it holds the standard library
and little else: 17 MiB, where one that imported what the command and the consumers need held 45.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any, TextIO


def _import_asyncio() -> None:
    """Import asyncio as on a Python that was built without OpenSSL, which takes 5 MiB: this process
    opens no connection to anybody. Who imports ``ssl`` later gets it."""
    if "asyncio" not in sys.modules:
        sys.modules["ssl"] = None  # type: ignore[assignment]
        try:
            importlib.import_module("asyncio")
        finally:
            del sys.modules["ssl"]


_import_asyncio()

import asyncio  # noqa: E402

from rabbitflow.errors import ConfigurationError, RabbitflowError  # noqa: E402
from rabbitflow.observe.logs import configure_logging  # noqa: E402
from rabbitflow.topology import Names  # noqa: E402
from rabbitflow.worker.discovery import Discovery  # noqa: E402
from rabbitflow.worker.notify import Notifier  # noqa: E402
from rabbitflow.worker.plan import Plan, Terms  # noqa: E402
from rabbitflow.worker.process import EXIT_CONFIGURATION  # noqa: E402
from rabbitflow.worker.supervisor import Supervisor  # noqa: E402

EXIT_FAILED = 1

logger = logging.getLogger("rabbitflow.worker")


def main() -> int:
    """Read what was asked, supervise until stopped, return the exit code."""
    with os.fdopen(int(sys.argv[1]), encoding="utf-8") as pipe:
        plan, terms = _read(pipe)
    configure_logging(plan.log_format, plan.log_level)
    # Also where nobody will use it: no child, and no handler, may speak to systemd in our name.
    notifier = Notifier.from_environment()
    # Who asked for JSON parses every line.
    say: Callable[[str], None] = logger.info if plan.log_format == "json" else _print

    def tell(discovery: Discovery) -> None:
        for line in _banner(discovery, terms):
            say(line)

    try:
        return asyncio.run(Supervisor(plan, terms, tell, notifier).run())
    except RabbitflowError as error:
        _print(f"rabbitflow: {' '.join(str(error).split())}")
        return EXIT_CONFIGURATION if isinstance(error, ConfigurationError) else EXIT_FAILED


def _read(pipe: TextIO) -> tuple[Plan, Terms]:
    told: dict[str, Any] = json.load(pipe)
    asked = told["plan"] | {"modules": tuple(told["plan"]["modules"])}
    return Plan(**asked), Terms.from_json(told["terms"])


def _print(line: str) -> None:
    print(line, file=sys.stderr, flush=True)  # noqa: T201


def _banner(discovery: Discovery, terms: Terms) -> Iterator[str]:
    names = Names(terms.namespace)
    width = max((len(found.name) for found in discovery.consumers), default=0)
    yield f"rabbitflow on {terms.shown_url}"
    for found in discovery.consumers:
        yield (
            f"  {found.name:<{width}}  queue {names.queue(found.name)},"
            f" {found.concurrency} at once: {', '.join(found.event_types)}"
        )


if __name__ == "__main__":
    sys.exit(main())
