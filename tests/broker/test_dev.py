"""One command to develop with: a broker where there is none, every consumer, and what happens."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from rabbitflow import Publisher
from rabbitflow.settings import Settings, load_settings
from tests.harness.node import free_port
from tests.harness.waiting import eventually
from tests.harness.workers import Worker

SERVICE = """
    payment = Consumer("payment", retry=Retry.fixed(attempts=2, wait=1))
    @payment.on("ORDER_PLACED")
    async def charge(order: dict, context: Context) -> None:
        if order["number"] == 2 and context.attempt == 1:
            raise ValueError("once")
        if order["number"] == 3:
            raise DeadLetter("not this one")
        print("charged", order["number"])
"""


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Settings:
    """Settings of a place where no broker is."""
    for name in list(os.environ):
        if name.startswith("RABBITFLOW_"):
            monkeypatch.delenv(name)
    return load_settings(
        url=f"amqp://guest:guest@127.0.0.1:{free_port()}/",
        state_dir=tmp_path / "state",
        metrics_port=0,
    )


@pytest.fixture
def project(nowhere: Settings, tmp_path: Path) -> Iterator[Worker]:
    """A project with one service, not started."""
    with Worker(nowhere, tmp_path) as worker:
        worker.module("payment", SERVICE)
        yield worker


def command(project: Worker, *options: str, **streams: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "rabbitflow", "dev", *options],
        cwd=project.directory,
        env=project.environment(COLUMNS="140", LINES="50", TERM="xterm"),
        **streams,  # type: ignore[call-overload]
    )


async def announce(settings: Settings) -> list[str]:
    async with Publisher(settings=settings) as publisher:
        return [
            (await publisher.publish("ORDER_PLACED", {"number": number})).id for number in (1, 2, 3)
        ]


async def test_without_a_terminal_it_says_in_lines_who_made_what_of_each_event(
    project: Worker, nowhere: Settings
) -> None:
    (project.directory / "pyproject.toml").write_text('[tool.rabbitflow]\nmodules = ["services"]\n')
    with project.output.open("wb") as log:
        dev = command(project, stdout=log.fileno(), stderr=log.fileno())
    try:
        await project.ready("payment")
        assert project.said("an embedded broker at") == 1
        one, two, three = await announce(nowhere)
        for line in (
            f"ORDER_PLACED {one} announced",
            f"payment succeeded {one}",
            f"payment retried {two}",
            f"payment succeeded {two}",
            f"payment dead-lettered {three}",
        ):
            await eventually(lambda line=line: project.said(line), what=f"{line}\n{project.log()}")
        dev.send_signal(signal.SIGINT)
        assert dev.wait(20) == 0
    finally:
        dev.kill()
        dev.wait()


async def test_on_a_terminal_it_draws_consumers_events_and_the_log(
    project: Worker, nowhere: Settings
) -> None:
    ours, theirs = pty.openpty()
    dev = command(project, "services", stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    os.set_blocking(ours, False)
    drawn = bytearray()

    def shows(*texts: str) -> bool:
        try:
            while piece := os.read(ours, 65536):
                drawn.extend(piece)
        except (BlockingIOError, OSError):
            pass
        return all(text.encode() in drawn for text in texts)

    try:
        await eventually(lambda: shows("payment consumes from queue"), within_s=20)
        _, two, three = await announce(nowhere)
        await eventually(
            lambda: shows(two[-12:], three[-12:], "payment ✓2", "payment ✗", "charged 1"),
            within_s=20,
            what=f"{drawn[-4000:].decode(errors='replace')}",
        )
        dev.send_signal(signal.SIGINT)
        await eventually(lambda: shows("\x1b[?1049l") and dev.poll() is not None, within_s=20)
        assert dev.returncode == 0
    finally:
        dev.kill()
        dev.wait()
        os.close(ours)


async def test_the_broker_of_the_url_is_used_where_it_answers(
    settings: Settings, probe: object, tmp_path: Path
) -> None:
    with Worker(settings, tmp_path) as project:
        project.module("payment", SERVICE)
        with project.output.open("wb") as log:
            dev = command(project, "services", stdout=log.fileno(), stderr=log.fileno())
        try:
            await project.ready("payment")
            assert project.said("embedded broker at") == 0
            dev.send_signal(signal.SIGTERM)
            assert dev.wait(20) == 0
        finally:
            dev.kill()
            dev.wait()


def test_a_project_that_names_no_modules_is_one_line(project: Worker) -> None:
    done = command(project, stderr=subprocess.PIPE)
    _, said = done.communicate(timeout=20)
    assert done.returncode == 78
    assert b"name the modules, or write [tool.rabbitflow] modules" in said
    assert b"Traceback" not in said
