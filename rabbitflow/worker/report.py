"""How a worker is, in the states that systemd knows: starting, ready, reloading, stopping."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from enum import Enum

from rabbitflow.worker.discovery import Discovery
from rabbitflow.worker.notify import Notifier
from rabbitflow.worker.slot import Slot

LOOK_EVERY_S = 0.2
STATUS_EVERY_S = 1.0
EXTEND_BY_S = 15.0
ENOUGH_FAILED_STARTS = 3
REPLACED_WITHIN_S = 10.0
"""A child that is still there so long after its stall time-out is the supervisor's fault."""

Phase = Enum("Phase", ["STARTING", "READY", "RELOADING", "STOPPING"])


class Report:
    """Tells systemd how a worker is, for as long as :meth:`run` runs.

    The worker is ready when every consumer was registered at the broker. One that is refused, or
    dies again and again before that, is named in the status and does not hold the others back: a
    start that never ends would be killed, and its neighbours with it.

    Args:
        notifier: the way to systemd.
        slots: returns the places of the children; a new list after a reload.
        stall_timeout_s: after which the supervisor replaces a silent child.
        clock: seconds that never go back.
    """

    def __init__(
        self,
        notifier: Notifier,
        slots: Callable[[], Sequence[Slot]],
        stall_timeout_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._notifier = notifier
        self._slots = slots
        self._stall_timeout_s = stall_timeout_s
        self._clock = clock
        self._phase = Phase.STARTING
        self._is_told = True
        self._replaced: Sequence[Slot] | None = None
        self._status_told = ""
        self._broken: list[str] = []
        self._next_status = self._next_sign = self._next_extension = float("-inf")

    def discovered(self, discovery: Discovery) -> None:
        """Note which modules could not be imported; the status names them."""
        self._broken = [broken.module for broken in discovery.broken]

    def reload(self) -> None:
        """Every child is started anew from now on."""
        if self._phase in (Phase.READY, Phase.RELOADING):
            self._replaced = self._slots()
            self._enter(Phase.RELOADING)

    def reload_refused(self) -> None:
        """Nothing is started anew: the children of before stay."""
        self._replaced = None

    def stop(self) -> None:
        """No event is taken any more."""
        if self._phase is not Phase.STOPPING:
            self._enter(Phase.STOPPING)

    async def run(self) -> None:
        """Report until cancelled."""
        watchdog_s = self._notifier.watchdog_s
        pause_s = LOOK_EVERY_S if watchdog_s is None else min(LOOK_EVERY_S, watchdog_s / 4)
        while True:
            self.turn()
            await asyncio.sleep(pause_s)

    def turn(self) -> None:
        """Say what is new, and answer the watchdog where every child deserves it."""
        now = self._clock()
        if not self._is_told:
            self._enter(self._phase)
        elif self._phase in (Phase.STARTING, Phase.RELOADING) and self._has_settled():
            self._enter(Phase.READY)
        else:
            self._tell_status(now)
        if self._phase is Phase.STOPPING and now >= self._next_extension:
            # Bounded, unlike a reload: the supervisor itself ends a drain at its deadline.
            self._notifier.extend(EXTEND_BY_S)
            self._next_extension = now + EXTEND_BY_S / 3
        watchdog_s = self._notifier.watchdog_s
        if watchdog_s is not None and now >= self._next_sign and self._is_alive():
            self._notifier.alive()
            self._next_sign = now + watchdog_s / 3

    def _enter(self, phase: Phase) -> None:
        self._phase = phase
        tell = {
            Phase.READY: self._notifier.ready,
            Phase.RELOADING: self._notifier.reloading,
            Phase.STOPPING: self._notifier.stopping,
        }[phase]
        self._status_told = self._status()
        self._is_told = tell(self._status_told)

    def _tell_status(self, now: float) -> None:
        status = self._status()
        if status != self._status_told and now >= self._next_status:
            self._next_status = now + STATUS_EVERY_S
            if self._notifier.status(status):
                self._status_told = status

    def _has_settled(self) -> bool:
        slots = self._slots()
        if not slots or slots is self._replaced:
            return False
        return all(
            slot.was_ready or slot.is_refused or slot.failed_starts >= ENOUGH_FAILED_STARTS
            for slot in slots
        )

    def _is_alive(self) -> bool:
        """Whether no child is silent for so long that it should have been replaced by now.

        A child that is started again after a crash is no fault of the supervisor's.
        """
        return not any(
            slot.child is not None
            and slot.child.overdue_s(self._stall_timeout_s) > REPLACED_WITHIN_S
            for slot in self._slots()
        )

    def _status(self) -> str:
        in_flight, handled = 0, 0
        for slot in self._slots():
            in_flight += slot.beat.in_flight
            handled += slot.handled
        said = f"{in_flight} in flight, {handled} handled"
        if self._phase is Phase.STOPPING:
            return f"stopping: {said}"
        return f"{self._described()}; {said}"

    def _described(self) -> str:
        slots = self._slots()
        ready = sum(slot.is_ready for slot in slots)
        parts = [f"{ready} of {len(slots)} consumers ready"]
        refused = [slot.label for slot in slots if slot.is_refused]
        missing = [slot.label for slot in slots if not (slot.is_ready or slot.is_refused)]
        for what, labels in (
            ("not ready", missing),
            ("refused", refused),
            ("not imported", self._broken),
        ):
            if labels:
                parts.append(f"{what}: {', '.join(labels)}")
        if self._phase is Phase.RELOADING:
            parts.insert(0, "reloading")
        return "; ".join(parts)


async def tell(notifier: Notifier, is_ready: Callable[[], bool], status: Callable[[], str]) -> None:
    """Tell systemd of a process without children until cancelled: ready once, alive while its event
    loop turns, and how it is, at most once a second."""
    watchdog_s = notifier.watchdog_s
    pause_s = STATUS_EVERY_S if watchdog_s is None else min(STATUS_EVERY_S, watchdog_s / 3)
    is_told, told = False, ""
    while notifier.is_heard:
        said = status()
        if not is_told and is_ready():
            is_told = notifier.ready(said)
        elif said != told and notifier.status(said):
            told = said
        if watchdog_s is not None:
            notifier.alive()
        await asyncio.sleep(pause_s)
