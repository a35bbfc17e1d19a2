"""What systemd is told, byte for byte, and when."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from rabbitflow.observe import logs
from rabbitflow.worker.notify import Notifier
from rabbitflow.worker.process import Beat
from rabbitflow.worker.report import REPLACED_WITHIN_S, Report, tell
from tests.harness.waiting import eventually


class Ear:
    """A datagram socket that systemd might have opened."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(address.replace("@", "\0", 1))
        self._socket.setblocking(False)
        self._notifiers: list[Notifier] = []

    def notifier(self, watchdog_s: float | None = None, **further: str) -> Notifier:
        """Who speaks to it."""
        notifier = (
            Notifier.from_environment({"NOTIFY_SOCKET": self.address, **further})
            if watchdog_s is None
            else Notifier(self.address, watchdog_s)
        )
        self._notifiers.append(notifier)
        return notifier

    def heard(self) -> list[list[str]]:
        """Every datagram since the last look, by line."""
        datagrams = []
        while True:
            try:
                datagrams.append(self._socket.recv(65536).decode().split("\n"))
            except BlockingIOError:
                return datagrams

    def close(self) -> None:
        self._socket.close()
        for notifier in self._notifiers:
            notifier.close()


@pytest.fixture(params=["path", "abstract"])
def ear(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Ear]:
    is_path = request.param == "path"
    ear = Ear(str(tmp_path / "notify") if is_path else f"@rabbitflow-{secrets.token_hex(4)}")
    yield ear
    ear.close()


def test_the_environment_is_read_once_and_emptied(ear: Ear) -> None:
    given = {
        "NOTIFY_SOCKET": ear.address,
        "WATCHDOG_USEC": "3000000",
        "WATCHDOG_PID": str(os.getpid()),
        "HOME": "/root",
    }
    notifier = Notifier.from_environment(given)
    assert notifier.is_heard
    assert notifier.watchdog_s == 3.0
    # Children would inherit it, and handlers could say in our name what is not true.
    assert given == {"HOME": "/root"}
    notifier.close()


def test_a_status_is_one_line_whatever_is_in_it(ear: Ear) -> None:
    notifier = ear.notifier()
    assert notifier.ready("all\nis  well\nWATCHDOG=trigger")
    assert ear.heard() == [["READY=1", "STATUS=all is well WATCHDOG=trigger"]]


def test_an_extension_is_said_in_microseconds(ear: Ear) -> None:
    notifier = ear.notifier()
    notifier.extend(1.5)
    assert ear.heard() == [["EXTEND_TIMEOUT_USEC=1500000"]]


@pytest.mark.parametrize(
    "further",
    [
        {},
        {"WATCHDOG_USEC": "0"},
        {"WATCHDOG_USEC": "soon"},
        {"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "1"},
    ],
)
def test_a_watchdog_of_nobody_or_of_another_process_is_not_answered(
    ear: Ear, further: dict[str, str]
) -> None:
    assert ear.notifier(**further).watchdog_s is None


@pytest.mark.parametrize("address", [None, "vsock:2:1234", "relative/path"])
def test_without_a_socket_of_this_machine_nothing_is_sent(address: str | None) -> None:
    given = {} if address is None else {"NOTIFY_SOCKET": address}
    notifier = Notifier.from_environment(given)
    assert not notifier.is_heard
    assert not notifier.ready("")


def test_a_manager_that_went_away_harms_nobody(tmp_path: Path) -> None:
    notifier = Notifier(str(tmp_path / "nobody"))
    assert not notifier.ready("")
    notifier.close()
    assert not notifier.alive()


@dataclass
class Child:
    overdue: float = -1.0

    def overdue_s(self, stall_timeout_s: float) -> float:
        return self.overdue


@dataclass
class Slot:
    """As much of a slot as a report looks at."""

    label: str
    is_ready: bool = False
    is_refused: bool = False
    handled: int = 0
    beat: Beat = field(default_factory=Beat)
    failed_starts: int = 0
    was_it_ready: bool = False
    child: Child | None = field(default_factory=Child)

    @property
    def was_ready(self) -> bool:
        self.was_it_ready = self.was_it_ready or self.is_ready
        return self.was_it_ready


class Told:
    """A report on slots that a test moves, with a clock that it moves too."""

    def __init__(self, ear: Ear, *labels: str, watchdog_s: float | None = None) -> None:
        self.slots: list[Any] = [Slot(label) for label in labels]
        self.now = 0.0
        self._ear = ear
        self.notifier = ear.notifier(watchdog_s)
        self.report = Report(self.notifier, lambda: self.slots, 30.0, lambda: self.now)

    def turn(self) -> str:
        """What one turn says, all in one line."""
        self.now += 1.0
        self.report.turn()
        return " ".join(line for datagram in self._ear.heard() for line in datagram)


@pytest.fixture
def told(ear: Ear) -> Told:
    return Told(ear, "payment", "rating")


def test_ready_waits_for_the_last_consumer_and_is_said_once(told: Told) -> None:
    assert told.turn() == (
        "STATUS=0 of 2 consumers ready; not ready: payment, rating; 0 in flight, 0 handled"
    )
    told.slots[0].is_ready = True
    assert "READY=1" not in told.turn()
    told.slots[1].is_ready = True
    assert "READY=1" in told.turn()
    told.slots[1].is_ready = False
    assert "not ready: rating" in told.turn()
    told.slots[1].is_ready = True
    assert "READY=1" not in told.turn()


def test_one_that_was_registered_and_died_since_does_not_hold_the_start_up(told: Told) -> None:
    told.slots[0].is_ready = True
    told.turn()
    told.slots[0].is_ready, told.slots[1].is_ready = False, True
    assert "READY=1 STATUS=1 of 2 consumers ready; not ready: payment" in told.turn()


def test_one_that_dies_again_and_again_does_not_hold_the_start_up(told: Told) -> None:
    told.slots[0].is_ready = True
    told.slots[1].failed_starts = 2
    assert "READY=1" not in told.turn()
    told.slots[1].failed_starts = 3
    assert "READY=1" in told.turn()


def test_a_reload_that_is_refused_ends_with_the_children_of_before(told: Told) -> None:
    for slot in told.slots:
        slot.is_ready = True
    told.turn()
    told.report.reload()
    assert "READY=1" not in told.turn()
    told.report.reload_refused()
    assert "READY=1" in told.turn()


def test_a_reload_ends_when_the_new_children_are_registered(told: Told) -> None:
    for slot in told.slots:
        slot.is_ready = True
    told.turn()
    told.report.reload()
    # The old ones are still there, and ready.
    assert "READY=1" not in told.turn()
    told.slots = [Slot("payment", is_ready=True), Slot("rating")]
    assert "STATUS=reloading; 1 of 2 consumers ready" in told.turn()
    told.slots[1].is_ready = True
    assert "READY=1" in told.turn()


def test_a_reload_before_the_start_is_over_is_still_the_start(told: Told) -> None:
    told.report.reload()
    told.slots = [Slot("payment", is_ready=True)]
    assert "READY=1" in told.turn()
    assert "RELOADING" not in told.turn()


def test_stopping_is_said_at_once_and_the_drain_extended_until_its_end(
    told: Told, ear: Ear
) -> None:
    told.report.stop()
    told.report.stop()
    assert [heard[0] for heard in ear.heard()] == ["STOPPING=1"]
    turns = [told.turn() for _ in range(10)]
    assert ["EXTEND_TIMEOUT_USEC=15000000" in said for said in turns] == 2 * ([True] + 4 * [False])
    told.slots[0].is_ready = told.slots[1].is_ready = True
    assert "READY=1" not in told.turn()


def test_what_was_not_taken_is_said_again(told: Told, ear: Ear) -> None:
    for slot in told.slots:
        slot.is_ready = True
    # Its queue is full.
    while told.notifier.alive():
        pass
    told.report.turn()
    assert not any("READY=1" in datagram for datagram in ear.heard())
    told.report.turn()
    assert ear.heard()[0][0] == "READY=1"


def test_the_watchdog_is_answered_three_times_as_often_as_it_asks(ear: Ear) -> None:
    told = Told(ear, "payment", watchdog_s=9.0)
    turns = [told.turn() for _ in range(9)]
    assert ["WATCHDOG=1" in said for said in turns] == 3 * [True, False, False]


def test_the_watchdog_hears_nothing_while_a_stuck_child_is_not_replaced(ear: Ear) -> None:
    told = Told(ear, "payment", "rating", watchdog_s=1.0)
    stuck = told.slots[1].child
    stuck.overdue = REPLACED_WITHIN_S
    assert "WATCHDOG=1" in told.turn()
    stuck.overdue = REPLACED_WITHIN_S + 1
    assert "WATCHDOG=1" not in told.turn()
    # It died at last: who waits to be started again is no fault of the supervisor's.
    told.slots[1].child = None
    assert "WATCHDOG=1" in told.turn()


def test_the_journal_gets_a_priority_for_every_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with (tmp_path / "log").open("w+") as stream:
        found = os.fstat(stream.fileno())
        monkeypatch.setattr(logs.sys, "stderr", stream)
        monkeypatch.setenv("JOURNAL_STREAM", f"{found.st_dev}:{found.st_ino}")
        assert logs.is_journal(stream)
        root = logging.getLogger()
        before = root.handlers[:], root.level
        try:
            logs.configure_logging("text", "DEBUG")
            logging.info("it is\nnow")
            logging.critical("it burns")
            try:
                raise KeyError("order")
            except KeyError:
                logging.exception("it failed")
        finally:
            root.handlers[:], level = before
            root.setLevel(level)
        stream.seek(0)
        lines = stream.read().splitlines()
    assert lines[:3] == ["<6>it is", "<6>now", "<2>it burns"]
    assert lines[3] == "<3>it failed"
    assert all(line.startswith("<3>") for line in lines[3:])


def test_another_stream_than_the_journals_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOURNAL_STREAM", "8:4711")
    with Path("/dev/null").open("w") as stream:
        assert not logs.is_journal(stream)
    assert not logs.is_journal(StringIO())


async def test_a_process_without_children_is_ready_once_and_alive_while_its_loop_turns(
    ear: Ear,
) -> None:
    is_ready = False
    telling = asyncio.create_task(tell(ear.notifier(0.03), lambda: is_ready, lambda: "3 waiting"))
    heard: list[str] = []

    def said(line: str) -> int:
        heard.extend(line for datagram in ear.heard() for line in datagram)
        return heard.count(line)

    await eventually(lambda: said("WATCHDOG=1") >= 3)
    assert said("STATUS=3 waiting") == 1
    assert not said("READY=1")
    is_ready = True
    await eventually(lambda: said("READY=1"))
    before = said("WATCHDOG=1")
    await eventually(lambda: said("WATCHDOG=1") >= before + 3)
    assert said("READY=1") == 1
    telling.cancel()
