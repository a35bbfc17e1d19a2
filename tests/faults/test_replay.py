"""The broker crashes while the past is replayed: what was replayed is safe, the rest goes on."""

from __future__ import annotations

import asyncio

import pytest

from tests.faults.conftest import Note
from tests.faults.test_broker import come_back
from tests.harness.broker import Probe
from tests.harness.command import Command
from tests.harness.node import PrivateNode
from tests.harness.scene import Scene, rating
from tests.harness.waiting import eventually


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "until_mended", "replay", "again"),
    [
        (
            "broker kill -9 during a replay of dead letters",
            "raise DeadLetter('not yet')",
            ("dlq", "replay", "rating", "--yes"),
            ("dlq", "replay", "rating", "--yes"),
        ),
        (
            "broker kill -9 during a replay of the log",
            "return",
            ("replay", "--consumer", "rating", "--type", "ORDER_PLACED"),
            ("replay", "--consumer", "rating", "--resume"),
        ),
    ],
    ids=["dead letters", "log"],
)
async def test_a_broker_that_crashes_during_a_replay_loses_nothing(
    scene: Scene,
    node: PrivateNode,
    rabbitflow: Command,
    note: Note,
    fault: str,
    until_mended: str,
    replay: tuple[str, ...],
    again: tuple[str, ...],
) -> None:
    behaviour = f"if not Path('mended').exists(): {until_mended}"
    await scene.begin(rating(behaviour, options="retry=Retry.none()"))
    orders = scene.announcer.confirmed.keys()
    await eventually(lambda: orders <= scene.effects("payment").keys())
    (scene.worker.directory / "mended").touch()
    replaying = rabbitflow.start(*replay, "--rate", "60")
    await eventually(lambda: scene.effects("rating").total() > 30, within_s=20)
    await come_back(node, crash=True)
    assert await asyncio.to_thread(replaying.wait, 60) != 0, "it was over before the crash"
    if replay[0] == "dlq":
        # What a broken-off replay had in hand is back a moment after the broker.
        probe = Probe(scene.settings)
        dead = probe.names.dead("rating")
        await eventually(
            lambda: probe.depth(dead) >= len(orders - scene.effects("rating").keys()), within_s=20
        )
        probe.close()
    done = await asyncio.to_thread(rabbitflow, *again)
    assert done.returncode == 0, done.stderr
    await eventually(lambda: orders <= scene.effects("rating").keys(), within_s=30)
    note(fault, "the rest when asked again", await scene.account())
