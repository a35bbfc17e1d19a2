"""Three in ten raise, one in a hundred kills its process, one in twenty is no event at all."""

from __future__ import annotations

from rabbitflow import Publisher
from tests.harness.broker import Probe
from tests.harness.chaos import chaos, check
from tests.harness.workers import Worker


async def test_whatever_handlers_do_every_event_is_an_effect_or_a_dead_letter(
    worker: Worker, publisher: Publisher, probe: Probe
) -> None:
    check(await chaos(worker, publisher, probe, 400, within_s=120))
