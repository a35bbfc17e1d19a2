"""All consumers in this one process: for a debugger, not for production."""

from __future__ import annotations

import asyncio
import signal

from rabbitflow.consumer import Consumer
from rabbitflow.errors import ConfigurationError, RabbitflowError
from rabbitflow.settings import Settings
from rabbitflow.worker.plan import Plan
from rabbitflow.worker.runtime import ConsumerRuntime
from rabbitflow.worker.search import consumers_of, import_module, names_within


async def run_single_process(plan: Plan, settings: Settings) -> int:
    """Run every consumer of the modules on this event loop until SIGTERM; return the exit code.

    Nothing isolates the consumers here: an import that fails, or a handler that blocks, takes
    all of them along.

    Raises:
        ConfigurationError: no consumer, two of one name, or a handler that can't be called.
    """
    consumers: dict[str, Consumer] = {}
    for module in plan.modules:
        for name in names_within(module):
            for consumer in consumers_of(import_module(name)):
                if consumers.setdefault(consumer.name, consumer) is not consumer:
                    raise ConfigurationError(f"two consumers are named {consumer.name!r}")
    if not consumers:
        raise ConfigurationError(f"no consumer is defined in {', '.join(plan.modules)}")
    for consumer in consumers.values():
        consumer.concurrency = plan.concurrency or consumer.concurrency
    runtimes = [ConsumerRuntime(consumer, settings) for consumer in consumers.values()]
    asked = 0

    def stop() -> None:
        nonlocal asked
        asked += 1
        for runtime in runtimes:
            runtime.stop() if asked == 1 else runtime.stop_now()

    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stop)
    loop.add_signal_handler(signal.SIGINT, stop)
    try:
        async with asyncio.TaskGroup() as group:
            for runtime in runtimes:
                group.create_task(runtime.run())
    except* RabbitflowError as failed:
        raise failed.exceptions[0] from failed
    return 0
