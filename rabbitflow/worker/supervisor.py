"""The supervisor: one child process per consumer, restarted when it dies, none blocking another."""

from __future__ import annotations

import asyncio
import logging
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rabbitflow.errors import ConfigurationError
from rabbitflow.observe.server import StatusServer
from rabbitflow.observe.state import ConsumerState
from rabbitflow.worker.counting import Counting
from rabbitflow.worker.discovery import Discovery, discover
from rabbitflow.worker.notify import Notifier
from rabbitflow.worker.plan import Plan, Terms
from rabbitflow.worker.process import (
    EXIT_CONFIGURATION,
    EXIT_REPLACE,
    ORDERLY_EXITS,
    Child,
    OnEnded,
    Order,
    ended,
)
from rabbitflow.worker.report import Report
from rabbitflow.worker.slot import Slot, consumer_states, end_reason, readiness
from rabbitflow.worker.starting import Starter
from rabbitflow.worker.waiting import first_of

FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 30.0
STEADY_AFTER_S = 60.0
KILL_AFTER_S = 5.0
LOOK_EVERY_S = 0.5

FileChanges = AsyncIterator[set[Any]]

logger = logging.getLogger(__name__)


class Supervisor:
    """Runs the consumers of some modules until it is told to stop.

    It handles no message and imports no user code, so nothing that a handler does can harm it.

    Args:
        plan: what to run.
        terms: where, and with which limits.
        on_discovered: called with what was found, each time the modules are searched.
        notifier: the way to systemd; None where it did not start this process.
        on_ended: called with a consumer and how its events ended; None where nobody looks on.
    """

    def __init__(
        self,
        plan: Plan,
        terms: Terms,
        on_discovered: Callable[[Discovery], None] = lambda discovery: None,
        notifier: Notifier | None = None,
        on_ended: Callable[[str, Sequence[tuple[str, str]]], None] | None = None,
    ) -> None:
        self._plan = plan
        self._terms = terms
        self._on_discovered = on_discovered
        self._on_ended = on_ended
        self._stopping = asyncio.Event()
        self._stopping_now = asyncio.Event()
        self._restarting = asyncio.Event()
        self._reload_asked = asyncio.Event()
        self._reloaded: Discovery | None = None
        self.slots: list[Slot] = []
        self._notifier = notifier or Notifier(None)
        self._report = Report(self._notifier, lambda: self.slots, terms.stall_timeout_s)
        self._broken: list[str] = []
        self._counts_backlog = bool(terms.metrics_port) or on_ended is not None
        self._counting = Counting(lambda: self.slots, lambda: self._terms.order, plan)

    @property
    def is_ready(self) -> bool:
        """Whether every consumer is registered at the broker and can settle."""
        return bool(readiness(self.slots)["ready"])

    def states(self) -> dict[str, ConsumerState]:
        """Every consumer as it is now."""
        return consumer_states(self.slots, self._counting.messages)

    def stop(self) -> None:
        """Stop in order; called again, at once."""
        if self._stopping.is_set():
            self._stopping_now.set()
        self._stopping.set()
        self._report.stop()

    def restart(self) -> None:
        """Search the modules again and start every child anew, as after a change of code."""
        self._restarting.set()
        self._report.reload()

    def reload(self) -> None:
        """Restart, if every module can be used: else the children of before stay."""
        self._reload_asked.set()

    async def run(self) -> int:
        """Run until stopped; return the exit code of the worker.

        Raises:
            ConfigurationError: nothing that can be run was found.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop)
        loop.add_signal_handler(signal.SIGHUP, self.reload)
        with tempfile.TemporaryDirectory(prefix="rabbitflow-") as directory:
            helpers = [asyncio.create_task(work) for work in self._helpers()]
            for helper in helpers:
                helper.add_done_callback(self._stop_after_defect)
            status = self._status_server()
            try:
                while True:
                    self._restarting.clear()
                    code = await self._run_once(Path(directory))
                    if self._stopping.is_set() or not self._restarting.is_set():
                        return code
            finally:
                if status is not None:
                    status.close()
                for helper in helpers:
                    helper.cancel()
                await asyncio.gather(*helpers, return_exceptions=True)
                self._notifier.close()

    def _helpers(self) -> Iterator[Coroutine[Any, Any, None]]:
        yield self._reload_when_asked()
        if self._plan.reload:
            yield self._watch_files(file_watcher())
        if self._notifier.is_heard:
            yield self._report.run()
        if self._counts_backlog:
            yield self._counting.run()

    def _stop_after_defect(self, helper: asyncio.Task[None]) -> None:
        if not helper.cancelled() and (defect := helper.exception()) is not None:
            logger.error("the worker stops: it can't be supervised", exc_info=defect)
            self.stop()

    def _status_server(self) -> StatusServer | None:
        """Serve metrics and health; without them where nobody asked for this very port."""
        terms = self._terms
        if not terms.metrics_port:
            return None
        try:
            return StatusServer(
                terms.metrics_host,
                terms.metrics_port,
                self._metrics,
                lambda: readiness(self.slots, self._broken),
            )
        except ConfigurationError as error:
            if terms.is_port_asked:
                raise
            logger.warning("no metrics for this worker: %s", error)
            return None

    def _metrics(self) -> Any:
        # Not at the top: prometheus-client takes memory that nobody needs until the first scrape.
        from rabbitflow.observe.exposition import WorkerCollector, scraped  # noqa: PLC0415

        return scraped(WorkerCollector(self.states))

    async def _run_once(self, directory: Path) -> int:
        discovery, self._reloaded = self._reloaded or await discover(self._plan.modules), None
        self._on_discovered(discovery)
        self._report.discovered(discovery)
        self._broken = [broken.module for broken in discovery.broken]
        for broken in discovery.broken:
            logger.error("module %s is not run: %s", broken.module, broken.error)
            if broken.traceback:
                logger.debug("%s", broken.traceback)
        if not discovery.consumers:
            if not self._plan.reload:
                raise ConfigurationError(_nothing_found(self._plan.modules, discovery))
            logger.error("nothing to run until a file changes")
            await first_of(self._stopping, self._restarting, within_s=None)
            return EXIT_CONFIGURATION
        earlier = {slot.label: slot for slot in self.slots}
        slots = [
            Slot(found, number, directory, self._terms)
            for found in discovery.consumers
            for number in range(self._plan.processes)
        ]
        for slot in slots:
            if slot.label in earlier:
                slot.continue_from(earlier[slot.label])
        self.slots = slots
        starter = Starter()
        try:
            async with asyncio.TaskGroup() as group:
                for slot in self.slots:
                    group.create_task(self._keep(slot, starter))
        finally:
            await starter.close()
            for slot in self.slots:
                slot.note.close()
        return EXIT_CONFIGURATION if all(slot.is_refused for slot in self.slots) else 0

    async def _reload_when_asked(self) -> None:
        """Search the modules while the children still run, and replace them only by better ones."""
        while True:
            await self._reload_asked.wait()
            self._reload_asked.clear()
            self._report.reload()
            try:
                discovery = await discover(self._plan.modules)
                news = [broken for broken in discovery.broken if broken.module not in self._broken]
                if news or not discovery.consumers:
                    raise ConfigurationError(
                        "; ".join(f"{broken.module}: {broken.error}" for broken in news)
                        or _nothing_found(self._plan.modules, discovery)
                    )
            except ConfigurationError as error:
                logger.error("not reloaded, and everything runs on as before: %s", error)
                self._report.reload_refused()
            else:
                self._reloaded = discovery
                self._restarting.set()

    async def _watch_files(self, changes: FileChanges) -> None:
        """Restart on every change of a Python file below the current directory."""
        async for changed in changes:
            logger.info("%d files changed; starting anew", len(changed))
            self.restart()

    async def _keep(self, slot: Slot, starter: Starter) -> None:
        """Keep a child running in ``slot``. Tasks of other slots never wait for this one."""
        pause_s = FIRST_PAUSE_S
        after_crash = False
        # The process that forks takes memory, and one child that lives does not give it back.
        forks = len(self.slots) > 1
        while not self._is_ending():
            slot.note.clear()
            started_at = time.monotonic()
            try:
                if forks:
                    await self._unless_ending(starter.prepare())
                if self._is_ending():
                    return
                order = self._order(slot, after_crash=after_crash)
                child = slot.child = await Child.start(order, starter, self._telling(slot))
            except OSError as error:
                logger.error("%s can't be started, and is tried again: %s", slot.label, error)
                slot.failed_starts += not slot.was_ready
                pause_s = await self._pause(pause_s)
                continue
            forks = True
            status = await self._attend(slot, child)
            # One that was told to before it could listen has done nothing that could be finished.
            if self._is_ending() and (status in ORDERLY_EXITS or status == -signal.SIGTERM):
                return
            after_crash = status not in ORDERLY_EXITS
            slot.end(end_reason(child, status))
            # Who consumed before was refused by a change of the broker, which may change again.
            if status == EXIT_CONFIGURATION and not slot.was_ready:
                slot.is_refused = True
                logger.error("%s is not run: %s", slot.label, child.failure)
                return
            self._report_end(slot, child, status)
            if self._is_ending():
                return
            is_steady = time.monotonic() - started_at > STEADY_AFTER_S
            # One bad event after the other is no crash loop: each is found, and set aside.
            if is_steady or slot.note.has_progress or status == EXIT_REPLACE:
                pause_s = FIRST_PAUSE_S
            pause_s = await self._pause(pause_s)

    async def _unless_ending(self, work: Coroutine[Any, Any, None]) -> None:
        """Do ``work``, and give it up when the children have to end."""
        task = asyncio.create_task(work)
        try:
            await first_of(task, self._stopping, self._restarting, within_s=None)
        finally:
            task.cancel()
            await asyncio.wait({task})
        if not task.cancelled():
            task.result()

    async def _pause(self, pause_s: float) -> float:
        """Wait before another start; return how long to wait before the next."""
        await first_of(self._stopping, self._restarting, within_s=pause_s)
        return min(2 * pause_s, LONGEST_PAUSE_S)

    def _telling(self, slot: Slot) -> OnEnded | None:
        return self._on_ended and partial(self._on_ended, slot.found.name)

    def _order(self, slot: Slot, *, after_crash: bool) -> Order:
        return Order(
            module=slot.found.module,
            consumer=slot.found.name,
            settings=self._current_terms().order,
            strikes=slot.strikes.as_json(),
            note=str(slot.note_path),
            after_crash=after_crash,
            concurrency=self._plan.concurrency,
            tells_events=self._on_ended is not None,
            counts_backlog=self._counts_backlog and slot.counts_backlog,
            log_format=self._plan.log_format,
            log_level=self._plan.log_level,
        )

    def _current_terms(self) -> Terms:
        """The terms with the credentials that are valid now, as far as they can be read."""
        try:
            self._terms = self._terms.renewed()
        except ConfigurationError as error:
            logger.error("the URL read before is used: %s", error)
        return self._terms

    async def _attend(self, slot: Slot, child: Child) -> int:
        """Watch a child until it ends: replace it when it hangs, stop it when it is time."""
        ending = asyncio.ensure_future(child.wait())
        try:
            while not (ending.done() or self._is_ending()):
                await first_of(ending, self._stopping, self._restarting, within_s=LOOK_EVERY_S)
                self._replace_if_stalled(slot, child)
            if not ending.done():
                child.terminate()
                grace_s = self._terms.shutdown_timeout_s + KILL_AFTER_S
                await first_of(ending, self._stopping_now, within_s=grace_s)
            if not ending.done() and self._stopping_now.is_set():
                child.terminate()
                await first_of(ending, within_s=KILL_AFTER_S)
            if not ending.done():
                child.kill("it did not stop in time")
            return await ending
        finally:
            if not ending.done():
                child.kill("the supervisor failed")
                await ending

    def _replace_if_stalled(self, slot: Slot, child: Child) -> None:
        is_overdue = child.overdue_s(self._terms.stall_timeout_s) > 0
        if is_overdue and child.killed_because is None:
            silent_s = time.monotonic() - child.heard_at
            logger.error("%s gave no sign of life for %.0f s; replacing it", slot.label, silent_s)
            child.kill(f"its event loop stood still for {silent_s:.0f} s")

    def _report_end(self, slot: Slot, child: Child, status: int) -> None:
        cause = child.killed_because or ended(status)
        if status in ORDERLY_EXITS:
            why = child.failure or "a handler hangs, and nothing ends it"
            logger.warning("%s is started again: %s", slot.label, why)
            return
        is_last = self._stopping.is_set()
        then = "what it held goes back to its queue" if is_last else "starting it again"
        logger.error("%s died (%s); %s", slot.label, cause, then)
        event_id = slot.note.read()
        if event_id is None:
            return
        try:
            strike = slot.strikes.add(event_id, cause)
        except OSError as error:
            logger.error("the strike of event %s can't be kept: %s", event_id, error)
            return
        logger.error("event %s was alone in %s: strike %d", event_id, slot.label, strike.count)

    def _is_ending(self) -> bool:
        return self._stopping.is_set() or self._restarting.is_set()


def file_watcher() -> FileChanges:
    """Return what yields the changes of Python files below the current directory.

    Raises:
        ConfigurationError: the extra ``reload`` is not installed.
    """
    try:
        from watchfiles import PythonFilter, awatch  # noqa: PLC0415
    except ImportError:
        raise ConfigurationError(
            "--reload needs watchfiles; install it with: pip install 'rabbitflow[reload]'"
        ) from None
    return awatch(Path.cwd(), watch_filter=PythonFilter())


def _nothing_found(modules: Sequence[str], discovery: Discovery) -> str:
    if discovery.broken:
        return "; ".join(f"{broken.module}: {broken.error}" for broken in discovery.broken)
    return (
        f"no consumer is defined in {', '.join(modules)} (searched from {Path.cwd()});"
        ' write payment = Consumer("payment") in a module of it'
    )
