"""Ten thousand events through handlers that fail at random: none is missing at the end."""

from __future__ import annotations

import pytest
from rich.console import Console

from rabbitflow import Publisher
from tests.harness.broker import Probe
from tests.harness.chaos import chaos, check
from tests.harness.workers import Worker


@pytest.mark.slow
async def test_of_ten_thousand_events_every_one_is_an_effect_or_a_dead_letter(
    worker: Worker, publisher: Publisher, probe: Probe
) -> None:
    account = await chaos(worker, publisher, probe, 10_000, within_s=1200)
    check(account)
    assert sum(name.startswith("bad-") for name in account.dead) == 500
    Console().print(
        f"{len(account.sent)} sent, {len(account.effects)} effects, {len(account.dead)} dead"
        f" letters, {account.kills} processes killed"
    )
