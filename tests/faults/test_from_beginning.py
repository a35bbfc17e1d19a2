"""A consumer that gets its past is killed meanwhile, with all its processes, again and again."""

from __future__ import annotations

import contextlib

import pytest

from rabbitflow import Publisher
from rabbitflow.log.backfill import KEEP_EVERY
from rabbitflow.log.copying import WINDOW
from tests.broker.test_from_beginning import (
    HAS_ITS_PAST,
    LONG_S,
    RATING,
    handled,
    orders,
    publishing,
)
from tests.harness.waiting import eventually
from tests.harness.workers import Worker


@pytest.mark.slow
async def test_a_kill_during_the_back_fill_loses_nothing(
    worker: Worker, publisher: Publisher
) -> None:
    past = orders(range(3_000))
    await publisher.publish_many(past)
    worker.module("rating", RATING.format(before="pass"))
    async with publishing(publisher) as confirmed:
        worker.start("--processes", "2")
        for copied in (300, 1_500):
            await eventually(
                lambda copied=copied: handled(worker).total() > copied, within_s=LONG_S
            )
            for child in worker.children():
                with contextlib.suppress(Exception):
                    child.kill()
        await eventually(lambda: worker.said(HAS_ITS_PAST) == 1, within_s=LONG_S)
    expected = {event.id for event in past} | set(confirmed)
    await eventually(lambda: handled(worker).keys() >= expected, within_s=LONG_S)
    again = handled(worker).total() - len(expected)
    assert again <= 2 * (KEEP_EVERY + WINDOW + 2 * 12), "more came again than was not noted"
