"""``rabbitflow dlq`` as an operator uses it: what it prints, what it asks, how it exits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rabbitflow.event import Event
from rabbitflow.settings import Settings
from rabbitflow.topology import REASON
from tests.broker.test_dead_letters import dead, ids, orders, put
from tests.harness.broker import Probe
from tests.harness.command import Command
from tests.harness.waiting import eventually
from tests.harness.workers import Worker

__all__ = ["dead"]


@pytest.fixture
async def three(probe: Probe, dead: str) -> str:
    """Three dead letters of ``payment``; the second is a KeyError."""
    put(probe, dead, range(3))
    await eventually(lambda: probe.depth(dead) == 3)
    return dead


def test_list_groups_the_dead_letters_of_a_project(
    rabbitflow: Command, three: str, tmp_path: Path
) -> None:
    (tmp_path / "pyproject.toml").write_text('[tool.rabbitflow]\nmodules = ["shop"]\n')
    (tmp_path / "shop.py").write_text(
        "from rabbitflow import Consumer\n"
        "payment, email = Consumer('payment'), Consumer('email')\n"
        "@payment.on('ORDER_PLACED')\n"
        "@email.on('ORDER_PLACED')\n"
        "async def react(order: dict) -> None: ...\n"
    )
    shown = rabbitflow("dlq", "list")
    assert shown.returncode == 0, shown.stderr
    cells = [[cell.strip() for cell in line.split("│")] for line in shown.stdout.splitlines()]
    at = "2026-04-03 10:31:00Z"
    cause = ["retries-exhausted", "ValueError", "ORDER_PLACED", at, at]
    assert ["", "payment", "2", *cause, ""] in cells
    assert "no dead-letter queue yet" in shown.stdout
    [payment] = json.loads(rabbitflow("dlq", "list", "--json").stdout)
    assert (payment["consumer"], payment["total"]) == ("payment", 3)
    counted = {group["exception_type"]: group["count"] for group in payment["groups"]}
    assert counted == {"ValueError": 2, "KeyError": 1}


def test_show_gives_cause_traceback_and_body(rabbitflow: Command, probe: Probe, dead: str) -> None:
    trace = "Traceback (most recent call last):\n  \x1b[31mred\x1b[0m\n"
    put(probe, dead, [1], **{"x-rabbitflow-traceback": trace})
    shown = rabbitflow("dlq", "show", "payment", "--id", "order-1")
    assert shown.returncode == 0, shown.stderr
    for part in (
        "ORDER_PLACED  order-1",
        "retries-exhausted at attempt 5",
        "KeyError",
        "2026-04-03 10:31:00Z, first 2026-04-03 10:30:00Z",
        "Traceback (most recent call last):",
        '"number": 1',
    ):
        assert part in shown.stdout
    assert "\x1b" not in shown.stdout, "what a payload says is not an order to the terminal"
    [letter] = json.loads(rabbitflow("dlq", "show", "payment", "--json").stdout)
    assert letter["traceback"] == trace
    assert json.loads(letter["body"])["data"] == {"number": 1}


def test_a_replay_asks_first_and_a_dry_run_changes_nothing(
    rabbitflow: Command, probe: Probe, three: str
) -> None:
    queue = probe.names.queue("payment")
    for arguments, stdin, code in ((["--dry-run"], "", 0), ([], "n\n", 1)):
        asked = rabbitflow("dlq", "replay", "payment", *arguments, stdin=stdin)
        assert asked.returncode == code
        assert "ValueError" in asked.stdout + asked.stderr
        assert (probe.depth(queue), probe.depth(three)) == (0, 3)
    chosen = rabbitflow("dlq", "replay", "payment", "--exception", "KeyError", stdin="y\n")
    assert "replay 1 of 3 dead letters of payment?" in chosen.stderr
    assert chosen.returncode == 0
    assert (probe.depth(queue), probe.depth(three)) == (1, 2)
    rest = rabbitflow("dlq", "replay", "payment", "--yes", "--json")
    assert json.loads(rest.stdout) == {"consumer": "payment", "replayed": 2}
    assert ids([probe.take(queue) for _ in range(3)]) == orders([1, 0, 2])  # type: ignore[list-item]


def test_edit_opens_the_editor_and_replays(
    rabbitflow: Command, probe: Probe, three: str, tmp_path: Path
) -> None:
    editor = tmp_path / "editor"
    editor.write_text('#!/bin/sh\nsed -i \'s/"number": 1/"number": 11/\' "$1"\n')
    editor.chmod(0o755)
    edit = ("dlq", "edit", "payment", "--id", "order-1", "--yes")
    done = rabbitflow(*edit, EDITOR=str(editor), VISUAL="")
    assert done.returncode == 0, done.stderr
    message = probe.take(probe.names.queue("payment"))
    assert message is not None
    assert json.loads(message[2])["data"] == {"number": 11}
    assert probe.depth(three) == 2


def test_an_edit_that_is_no_event_changes_nothing_and_keeps_the_text(
    rabbitflow: Command, probe: Probe, three: str, tmp_path: Path
) -> None:
    editor = tmp_path / "editor"
    editor.write_text('#!/bin/sh\necho \'{"half": \' > "$1"\n')
    editor.chmod(0o755)
    edit = ("dlq", "edit", "payment", "--id", "order-1", "--yes")
    done = rabbitflow(*edit, EDITOR=str(editor), VISUAL="", TMPDIR=str(tmp_path))
    assert done.returncode == 2
    assert "nothing was changed, your text is in" in done.stderr
    kept = Path(done.stderr.rsplit(" ", 1)[1].strip())
    assert kept.read_text() == '{"half":'
    assert (probe.depth(probe.names.queue("payment")), probe.depth(three)) == (0, 3)


def test_export_purge_and_import_bring_everything_back(
    rabbitflow: Command, probe: Probe, three: str, tmp_path: Path
) -> None:
    lines = rabbitflow("dlq", "export", "payment").stdout.splitlines()
    assert [json.loads(line)["id"] for line in lines] == orders(range(3))
    assert rabbitflow("dlq", "export", "payment", "-o", "kept.ndjson").returncode == 0
    assert (tmp_path / "kept.ndjson").read_text().splitlines() == lines
    assert rabbitflow("dlq", "purge", "payment").returncode == 1, "it asks, and nobody answers"
    assert probe.depth(three) == 3
    assert rabbitflow("dlq", "purge", "payment", "--yes").returncode == 0
    assert probe.depth(three) == 0
    done = rabbitflow("dlq", "import", "payment", "kept.ndjson", "--json")
    assert json.loads(done.stdout) == {"consumer": "payment", "imported": 3}
    messages = [probe.take(three) for _ in range(3)]
    assert ids(messages) == orders(range(3))  # type: ignore[arg-type]
    assert messages[0] is not None
    assert messages[0][0][REASON] == "retries-exhausted"
    assert Event.model_validate_json(messages[0][2]).data == {"number": 0}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "line 2 is no exported dead letter"),
        ('{"body": 1, "properties": {"nosuch": 1}}', "unknown properties nosuch"),
        ('{"consumer": "email", "body": "x"}', "a dead letter of email, not of payment"),
        ('{"body_base64": "?"}', "no base64"),
    ],
)
def test_a_fault_in_the_last_line_imports_nothing(
    rabbitflow: Command, probe: Probe, dead: str, tmp_path: Path, text: str, said: str
) -> None:
    (tmp_path / "kept.ndjson").write_text('{"consumer": "payment", "body": {}}\n' + text)
    done = rabbitflow("dlq", "import", "payment", "kept.ndjson")
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert probe.depth(dead) == 0


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["show", "payment", "--id", "nosuch"], 2, "payment has no such dead letter"),
        (["replay", "payment", "--id", "nosuch", "--yes"], 2, "payment has no such dead letter"),
        (["edit", "payment", "--id", "nosuch"], 2, "payment has no such dead letter"),
        (["show", "email"], 78, "no consumer named 'email' ever ran there"),
        (["show", "No!"], 2, "a consumer's name is 1 to 63"),
        (["list"], 78, "[tool.rabbitflow] modules"),
        (["import", "payment", "nosuch.ndjson"], 2, "nosuch.ndjson can't be read"),
        (["export", "payment", "-o", "no/such/file"], 2, "no/such/file can't be written"),
    ],
)
def test_wrong_input_is_told_without_a_traceback(
    rabbitflow: Command, three: str, arguments: list[str], code: int, said: str
) -> None:
    done = rabbitflow("dlq", *arguments)
    assert done.returncode == code
    assert said in done.stderr
    assert "Traceback" not in done.stderr


async def test_an_event_that_killed_its_process_runs_again_when_it_is_replayed(
    worker: Worker, rabbitflow: Command, settings: Settings, probe: Probe
) -> None:
    worker.module(
        "rating",
        """
        rating = Consumer("rating")
        @rating.on("ORDER_PLACED")
        async def rate(event: Event, context: Context) -> None:
            if not Path("mended").exists():
                os._exit(3)
            ledger.write("rating", event.id, 0, context.attempt)
        """,
    )
    worker.start()
    await worker.ready("rating")
    event = Event(type="ORDER_PLACED", data={})
    probe.publish(probe.names.exchange("ORDER_PLACED"), "", event.encode())
    await eventually(lambda: probe.depth(probe.names.dead("rating")) == 1, within_s=30)
    (worker.directory / "mended").touch()
    assert rabbitflow("dlq", "replay", "rating", "--reason", "crashed", "--yes").returncode == 0
    await eventually(lambda: worker.ledger.ids("rating") == [event.id])
