"""The disk of a consumer's database is full for a while: its events wait, and come once."""

from __future__ import annotations

import sqlite3
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest

from tests.faults.conftest import Note
from tests.harness.broker import Probe
from tests.harness.disk import fill, small_disk
from tests.harness.scene import Scene
from tests.harness.waiting import eventually

RATING = """
    from sqlalchemy import text
    from sqlalchemy.ext.asyncio import AsyncSession

    rating = Consumer(
        "rating", retry=Retry.fixed(attempts=60, wait=1), database="sqlite:///{database}"
    )
    @rating.on("ORDER_PLACED", once=True)
    async def rate(event: Event, session: AsyncSession) -> None:
        # No unique key: a second effect would be a second row.
        await session.execute(text("INSERT INTO ratings VALUES (:id)"), {{"id": event.id}})
"""


@pytest.mark.slow
async def test_a_disk_that_is_full_for_a_while_delays_effects_and_doubles_none(
    scene: Scene, note: Note, tmp_path: Path
) -> None:
    with small_disk(tmp_path / "disk", size_mb=16) as disk:
        database = disk / "rating.db"
        with closing(sqlite3.connect(database)) as connection:
            connection.execute("CREATE TABLE ratings (id TEXT)")
        await scene.begin(RATING.format(database=database))
        probe = Probe(scene.settings)
        async with scene.announcer.running():
            fill(disk / "filler")
            # A few: once a hundred have failed, its breaker lets ten a second try.
            await eventually(lambda: probe.depth(probe.names.retry("rating", 1)) > 5, within_s=20)
            (disk / "filler").unlink()
            await scene.confirmed(75)
        probe.close()
        confirmed = scene.announcer.confirmed.keys()

        def effects() -> Counter[str]:
            with closing(sqlite3.connect(database)) as connection:
                return Counter(row[0] for row in connection.execute("SELECT id FROM ratings"))

        await eventually(lambda: confirmed <= effects().keys(), within_s=30)
        assert set(effects().values()) == {1}
        account = await scene.account(consumers=("payment",))
        note("disk of rating's database full", "rating waits, nothing twice", account)
        scene.worker.stop()
