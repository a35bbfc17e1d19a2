"""A migration is killed at every step, and its broker under it: nothing is lost."""

from __future__ import annotations

import asyncio

import pytest

from rabbitflow.errors import BrokerError
from rabbitflow.migration.consumer import migrate
from rabbitflow.migration.queues import Progress
from rabbitflow.settings import Settings
from tests.harness.broker import Probe
from tests.harness.migration import (
    account_of_kills,
    announcing,
    declare_otherwise,
    differs,
    fill,
    killed,
    wanted,
)
from tests.harness.node import PrivateNode
from tests.harness.waiting import eventually


@pytest.mark.slow
@pytest.mark.parametrize("queue_type", ["quorum", "classic"])
async def test_nothing_is_lost_when_a_migration_is_killed_at_every_step(
    settings: Settings, probe: Probe, queue_type: str
) -> None:
    probe.settings = settings.model_copy(update={"queue_type": queue_type})
    await account_of_kills(probe.settings, probe, every=1)


@pytest.mark.slow
async def test_an_interrupted_copy_of_a_log_goes_on_where_it_was(
    settings: Settings, probe: Probe
) -> None:
    log = probe.names.log("ORDER_PLACED")
    declare_otherwise(probe, {"events.ORDER_PLACED.log": {"x-max-age": "1D"}})
    before = settings.model_copy(update={"event_log_max_age": "1D"})
    async with announcing(before) as announced:
        await eventually(lambda: len(announced) > 200)
    assert len(await killed(settings, every=1)) > 8
    logged = [one for one in probe.ids(log, is_log=True) if one in set(announced)]
    assert logged == announced


@pytest.mark.slow
@pytest.mark.parametrize(
    "moment", ["is bound beside", "are held in", "is deleted", "is declared anew", "are back"]
)
async def test_nothing_is_lost_when_the_broker_is_killed_during_a_migration(
    node: PrivateNode, settings: Settings, probe: Probe, moment: str
) -> None:
    declare_otherwise(probe, {"payment": {"x-delivery-limit": 20}})
    names = probe.names
    there = fill(probe, names.queue("payment"), 1500)
    later = fill(probe, names.retry("payment", 4), 20, "600000")
    killed_at: list[str] = []

    def kill(done: str) -> None:
        if moment in done and not killed_at:
            killed_at.append(done)
            node.kill()

    probe.close()
    patient = settings.model_copy(update={"publish_timeout_s": 90.0})
    async with announcing(patient) as announced:
        with pytest.raises(BrokerError):
            await migrate("payment", wanted(settings), settings, progress=Progress(kill))
        await asyncio.to_thread(node.start)
        await eventually(lambda: migrated(settings), within_s=60)
    assert killed_at
    again = Probe(settings)
    try:
        assert there | set(announced) <= set(again.ids(names.queue("payment")))
        assert set(again.ids(names.retry("payment", 4))) == later
        assert not await differs(settings)
    finally:
        again.close()


async def migrated(settings: Settings) -> bool:
    """Run it again, as its error says."""
    try:
        await migrate("payment", wanted(settings), settings)
    except BrokerError:
        return False
    return True
