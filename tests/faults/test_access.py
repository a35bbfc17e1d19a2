"""The broker refuses: at start with one clear line, later without giving up."""

from __future__ import annotations

import asyncio
import secrets
import time
from pathlib import Path

import pytest

from rabbitflow.settings import Settings
from tests.faults.conftest import Note, as_user
from tests.harness.broker import Probe
from tests.harness.node import PrivateNode
from tests.harness.scene import PAYMENT, Scene
from tests.harness.waiting import eventually
from tests.harness.workers import Worker

EXIT_CONFIGURATION = 78


def refused_at_start(settings: Settings, directory: Path) -> str:
    """Start a worker that can't begin, and return its one line of error."""
    with Worker(settings, directory) as worker:
        worker.module("payment", PAYMENT)
        code = worker.run_to_end()
        errors = [line for line in worker.log().splitlines() if " ERROR " in line]
        assert code == EXIT_CONFIGURATION, worker.log()
        assert len(errors) == 1, worker.log()
        assert "Traceback" not in worker.log()
        return errors[0]


def test_a_wrong_password_is_one_line_without_the_password(
    settings: Settings, user: tuple[str, str], tmp_path: Path, note: Note
) -> None:
    line = refused_at_start(as_user(settings, user[0], "wrong-s3cret"), tmp_path)
    assert "refused the user name or the password" in line
    assert "s3cret" not in line
    note("wrong password at start", "exit 78, one line")


@pytest.mark.slow
def test_a_missing_virtual_host_is_one_line(
    settings: Settings, user: tuple[str, str], tmp_path: Path, note: Note
) -> None:
    line = refused_at_start(as_user(settings, *user, vhost="/nowhere"), tmp_path)
    assert "refused the virtual host 'nowhere'" in line
    note("missing virtual host at start", "exit 78, one line")


@pytest.mark.slow
def test_a_missing_permission_is_one_line(
    node: PrivateNode, settings: Settings, user: tuple[str, str], tmp_path: Path, note: Note
) -> None:
    node.ctl("set_permissions", user[0], "^$", ".*", ".*")
    line = refused_at_start(as_user(settings, *user), tmp_path)
    assert "rabbitflow topology apply" in line
    note("missing permission at start", "exit 78, one line")


def test_other_arguments_of_a_queue_are_one_line(
    settings: Settings, tmp_path: Path, note: Note
) -> None:
    probe = Probe(settings)
    probe.declare_queue(probe.names.queue("payment"), {"x-queue-type": "classic"})
    line = refused_at_start(settings, tmp_path)
    probe.remove_consumer("payment")
    probe.close()
    assert f"queue {settings.namespace}.payment exists with x-" in line
    note("406 at start", "exit 78, one line")


@pytest.mark.slow
async def test_a_permission_that_is_revoked_and_given_back_loses_nothing(
    node: PrivateNode, settings: Settings, user: tuple[str, str], tmp_path: Path, note: Note
) -> None:
    with Worker(as_user(settings, *user), tmp_path) as worker:
        scene = Scene(settings, worker)
        await scene.begin()
        async with scene.announcer.running():
            await asyncio.to_thread(node.ctl, "clear_permissions", user[0])
            await asyncio.to_thread(node.ctl, "close_all_user_connections", user[0], "on purpose")
            await eventually(
                lambda: worker.said("rating is started again"), within_s=20, what=worker.log
            )
            await asyncio.to_thread(node.ctl, "set_permissions", user[0], ".*", ".*", ".*")
            recovery_s = await scene.consumes_again(time.time(), is_news=True)
        account = await scene.account()
    note("permission revoked and given back", "nothing lost", account, recovery_s)


@pytest.mark.slow
async def test_credentials_that_are_rotated_are_read_from_their_file(
    node: PrivateNode, settings: Settings, user: tuple[str, str], tmp_path: Path, note: Note
) -> None:
    url_file, new_password = tmp_path / "url", secrets.token_hex(8)
    url_file.write_text(as_user(settings, *user).broker_url)
    with Worker(settings, tmp_path) as worker:
        scene = Scene(settings, worker)
        await scene.begin(None, RABBITFLOW_URL_FILE=str(url_file))
        async with scene.announcer.running():
            await asyncio.to_thread(node.ctl, "change_password", user[0], new_password)
            url_file.write_text(as_user(settings, user[0], new_password).broker_url)
            rotated_at = time.time()
            await asyncio.to_thread(node.ctl, "close_all_user_connections", user[0], "on purpose")
            await worker.ready("payment", "rating", times=2)
            recovery_s = await scene.consumes_again(rotated_at, is_news=True)
        account = await scene.account()
        assert new_password not in worker.log()
    note("credentials rotated", "read again, nothing lost", account, recovery_s)
