"""What a user gets from the index: the wheel, in an empty virtualenv, without our checkout."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import rabbitflow
from rabbitflow.cli import COMMANDS
from rabbitflow.settings import Settings
from tests.harness import wheels
from tests.harness.broker import Probe
from tests.harness.waiting import eventually

MODULE = """
from pathlib import Path
from rabbitflow import Consumer, Event

payment = Consumer("payment")

@payment.on("ORDER_PLACED")
async def charge(event: Event) -> None:
    Path(event.id).touch()
"""


@dataclass(frozen=True)
class Installed:
    """A virtualenv with the wheel in it, and the source distribution beside it."""

    venv: Path
    sdist: Path

    def run(
        self, *arguments: str, directory: Path, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.venv / "bin/rabbitflow", *arguments],
            cwd=directory,
            env=clean(**environment),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )


def clean(**further: str) -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), **further}


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installed]:
    directory = tmp_path_factory.mktemp("dist")
    wheel, sdist = sorted(
        wheels.build(directory, "--wheel", "--sdist"), key=lambda path: path.suffix, reverse=True
    )
    venv = directory / "venv"
    for command in (
        [sys.executable, "-m", "venv", "--without-pip", str(venv)],
        [
            *(sys.executable, "-m", "pip", f"--python={venv / 'bin/python'}", "install"),
            *("--quiet", "--disable-pip-version-check", str(wheel)),
        ],
    ):
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    yield Installed(venv, sdist)


def environment(settings: Settings) -> dict[str, str]:
    return {
        "RABBITFLOW_URL": settings.broker_url,
        "RABBITFLOW_NAMESPACE": settings.namespace or "",
        "RABBITFLOW_STATE_DIR": str(settings.state_dir),
        "RABBITFLOW_METRICS_PORT": "0",
    }


async def test_the_installed_command_publishes_and_a_worker_handles_it(
    installed: Installed, settings: Settings, probe: Probe, tmp_path: Path
) -> None:
    (tmp_path / "shop.py").write_text(MODULE)
    worker = subprocess.Popen(
        [installed.venv / "bin/rabbitflow", "worker", "shop"],
        cwd=tmp_path,
        env=clean(**environment(settings)),
        stderr=subprocess.PIPE,
    )
    try:
        queue = probe.names.queue("payment")
        await eventually(lambda: probe.consumers(queue) == 1, within_s=30)
        published = installed.run(
            *("publish", "ORDER_PLACED", "--data", '{"amount": 1}', "--json"),
            directory=tmp_path,
            **environment(settings),
        )
        event_id = json.loads(published.stdout)["id"]
        await eventually((tmp_path / event_id).exists)
        worker.send_signal(signal.SIGTERM)
        _, said = worker.communicate(timeout=30)
        assert worker.returncode == 0, said
    finally:
        worker.kill()


def test_only_what_the_project_names_is_installed_and_extras_stay_extra(
    installed: Installed,
) -> None:
    listed = subprocess.run(
        [
            *(sys.executable, "-m", "pip", f"--python={installed.venv / 'bin/python'}"),
            *("list", "--format=json", "--disable-pip-version-check"),
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    versions = {canonicalize_name(one["name"]): one["version"] for one in json.loads(listed.stdout)}
    assert versions["rabbitflow"] == rabbitflow.__version__
    assert packages_of_extras().isdisjoint(versions)


def packages_of_extras() -> set[str]:
    """What only an extra brings."""
    named = [Requirement(requirement) for requirement in requires("rabbitflow") or []]
    always = {one.name for one in named if one.marker is None or one.marker.evaluate({"extra": ""})}
    extra = {canonicalize_name(one.name) for one in named if one.name not in always}
    assert {"uvloop", "watchfiles", "sqlalchemy"} <= extra
    return extra


def test_help_needs_no_extra_and_lists_every_command(installed: Installed, tmp_path: Path) -> None:
    shown = installed.run("--help", directory=tmp_path)
    assert shown.returncode == 0
    assert all(f"\n  {name} " in shown.stdout for name in COMMANDS)


def test_help_is_there_within_600_ms_of_work(installed: Installed, tmp_path: Path) -> None:
    def work_s() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        installed.run("--help", directory=tmp_path)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    # Not the clock on the wall: others may be using the machine.
    assert min(work_s() for _ in range(3)) < 0.6


@pytest.mark.parametrize(
    ("arguments", "extra"),
    [
        (("worker", "shop", "--reload"), "reload"),
        (("store", "--help"), "store"),
        (("keys", "signing", "shop", "shop.key"), "crypto"),
    ],
)
def test_a_missing_extra_is_one_line_that_names_it(
    installed: Installed, tmp_path: Path, arguments: tuple[str, ...], extra: str
) -> None:
    (tmp_path / "shop.py").write_text(MODULE)
    done = installed.run(*arguments, directory=tmp_path, RABBITFLOW_METRICS_PORT="0")
    assert done.returncode == 78
    [line] = done.stderr.splitlines()
    assert line.startswith("rabbitflow: ")
    assert f"pip install 'rabbitflow[{extra}]'" in line


def test_the_source_distribution_holds_every_file_of_the_project(installed: Installed) -> None:
    root = wheels.ROOT
    tracked = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    if tracked.returncode:
        pytest.skip("not a git checkout: nothing to compare with")
    with tarfile.open(installed.sdist) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    expected = {name for name in tracked.stdout.splitlines() if (root / name).exists()}
    assert expected <= held
    assert held - expected - {"PKG-INFO"} == set()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_gets_its_completion(installed: Installed, tmp_path: Path, shell: str) -> None:
    printed = installed.run("completion", shell, directory=tmp_path)
    assert printed.returncode == 0
    assert f"_RABBITFLOW_COMPLETE={shell}_complete" in printed.stdout


@pytest.mark.parametrize(
    ("words", "offered"),
    [("rabbitflow pub", "plain,publish"), ("rabbitflow worker --conc", "plain,--concurrency")],
)
def test_commands_and_options_are_completed(
    installed: Installed, tmp_path: Path, words: str, offered: str
) -> None:
    completed = installed.run(
        directory=tmp_path,
        COMP_WORDS=words,
        COMP_CWORD=str(words.count(" ")),
        _RABBITFLOW_COMPLETE="bash_complete",
    )
    assert completed.stdout.split() == [offered]
