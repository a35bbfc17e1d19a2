"""The crew: long-lived tasks that take deliveries, and what they have in hand."""

from __future__ import annotations

import asyncio
import time

from rabbitflow.worker.delivery import Delivery
from rabbitflow.worker.gate import Gate
from rabbitflow.worker.handling import Handling
from rabbitflow.worker.inbox import Inbox
from rabbitflow.worker.intake import Intake
from rabbitflow.worker.lanes import Lanes
from rabbitflow.worker.suspects import SuspectNote

TURN_AFTER_EVENTS = 16


class Crew:
    """Handles the deliveries of one consumer in this process.

    Args:
        handling: what happens to each.
        intake: whether the next may begin.
        note: where the id of a delivery that runs alone is noted; None where nobody reads it.
        slots: how many may be begun and not settled.
        lanes: in which deliveries wait, where they are kept in order.

    Attributes:
        unfinished: deliveries here that are not settled.
        finished: set while there are none.
        idle: set while none is being handled; those that wait to begin do not count.
    """

    def __init__(
        self,
        handling: Handling,
        intake: Intake,
        note: SuspectNote | None,
        slots: int,
        lanes: Lanes | None = None,
    ) -> None:
        self.unfinished = 0
        self.finished = asyncio.Event()
        self.finished.set()
        self._handling = handling
        self._intake = intake
        self._note = note
        self._slots = slots
        self._gate = Gate()
        self._lanes = lanes
        self._inbox = Inbox(asyncio.get_running_loop()) if lanes is None else lanes
        self.idle = self._gate.emptied

    @property
    def is_busy(self) -> bool:
        """Whether an event is being handled or begins at once; not one that an operator, the
        breaker or the rate limit holds back."""
        held, inside = self._intake.held, self._gate.inside
        here = self.unfinished if self._lanes is None else self._lanes.moving
        begins = here > held + inside and held < self._slots
        return bool(inside or begins)

    @property
    def oldest_waiting_s(self) -> float:
        """How long ago the oldest event was announced that is here and has not begun."""
        first = next((delivery for delivery in self._inbox if delivery.is_fresh), None)
        announced_at = None if first is None else first.properties.timestamp
        return 0.0 if announced_at is None else max(0.0, time.time() - announced_at.timestamp())

    def receive(self, delivery: Delivery) -> None:
        """Take a delivery in. Called from the client library, so it must not wait."""
        if not delivery.came_back:
            self._intake.trust()
        self.unfinished += 1
        self.finished.clear()
        self._inbox.put(delivery)

    def count(self, more: int) -> None:
        """Count deliveries that are here without a task, or gone without one."""
        self.unfinished += more
        if self.unfinished:
            self.finished.clear()
        else:
            self.finished.set()

    def start(self, name: str) -> list[asyncio.Task[None]]:
        """Start the tasks; who does so ends them. One ends by itself by a defect only."""
        return [
            asyncio.create_task(self._work(), name=f"{name}-{number}")
            for number in range(self._slots)
        ]

    async def _work(self) -> None:
        gate, intake, inbox = self._gate, self._intake, self._inbox
        handled = 0
        while True:
            handled += 1
            if not handled % TURN_AFTER_EVENTS:
                # Handlers that never wait would keep acks, signals and signs of life waiting.
                await asyncio.sleep(0)
            delivery = await inbox.take()
            try:
                if not intake.is_free:
                    await intake.admit(delivery.acks)
                # A delivery of a lost subscription is the broker's again.
                if delivery.acks.is_given_up:
                    intake.record(failed=None)
                    continue
                if delivery.came_back:
                    failed = await self._handle_alone(delivery)
                else:
                    if not gate.is_open:
                        await gate.opened()
                    gate.enter()
                    try:
                        failed = await self._handling.handle(delivery)
                    finally:
                        gate.leave()
                intake.record(failed=failed)
            finally:
                self.unfinished -= 1
                if not self.unfinished:
                    self.finished.set()

    async def _handle_alone(self, delivery: Delivery) -> bool | None:
        async with self._gate.alone():
            if self._note is not None:
                self._note.write(delivery.suspect_id)
            try:
                return await self._handling.handle(delivery)
            finally:
                if self._note is not None:
                    self._note.survived()
