"""The bank's story told by the real command, on both databases."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from rabbitflow import EventError
from rabbitflow.store.asof import as_of

ROOT = Path(__file__).parents[2]


def rabbitflow(*arguments: str, database: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "rabbitflow", "store", *arguments, "--database", database],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=60,
        check=False,
    )


def answer(*arguments: str, database: str) -> Any:
    done = rabbitflow(*arguments, "--json", database=database)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def bank(store_url: str) -> str:
    """The URL of a store with the example's account-1."""
    told = subprocess.run(
        [sys.executable, "-m", "examples.bank", store_url],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=60,
        check=False,
    )
    assert told.returncode == 0, told.stderr
    assert "The balance is ₹10,000. On March 15 it was ₹12,000." in told.stdout
    assert "Refused: account-1 holds ₹10,000" in told.stdout
    assert "was second. Asking again:" in told.stdout
    return store_url


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The URL of a store with account-1 that tests only look into."""
    database = f"sqlite:///{tmp_path_factory.mktemp('bank')}/bank.db"
    subprocess.run([sys.executable, "-m", "examples.bank", database], cwd=ROOT, check=True)
    return database


def test_the_balance_of_march_15_is_that_of_the_end_of_the_day(bank: str) -> None:
    fold = ("state", "account-1", "--fold", "workers.bank:balance")
    then = answer(*fold, "--as-of", "2026-03-15", database=bank)
    assert then == {
        "stream": "account-1",
        "version": 3,
        "as_of": "2026-03-15T23:59:59.999999Z",
        "state": {"owner": "Asha", "balance": 12_000},
    }
    assert (
        answer(*fold, "--as-of", "2026-03-20T09:00Z", database=bank)["state"]["balance"] == 12_000
    )
    assert answer(*fold, "--as-of", "2026-03-20", database=bank)["state"]["balance"] == 17_000

    history = answer("history", "account-1", "--as-of", "2026-03-28", database=bank)
    assert [(each["event"]["type"], each["event"]["data"].get("amount")) for each in history] == [
        ("ACCOUNT_OPENED", None),
        ("MONEY_DEPOSITED", 15_000),
        ("MONEY_WITHDRAWN", 3_000),
        ("MONEY_DEPOSITED", 5_000),
        ("MONEY_WITHDRAWN", 7_000),
    ]
    shown = rabbitflow("history", "account-1", database=bank).stdout
    assert "MONEY_DEPOSITED" in shown
    assert "atm-12" in shown

    lines = rabbitflow("export", "--stream", "account-1", "--from", "2", database=bank).stdout
    assert [json.loads(line)["version"] for line in lines.splitlines()] == [2, 3, 4, 5, 6]
    assert answer("verify", database=bank)["faults"] == []


def test_an_export_goes_to_a_file(bank: str, tmp_path: Path) -> None:
    done = rabbitflow("export", "--output", str(tmp_path / "all.ndjson"), database=bank)
    assert "6 events" in done.stderr
    assert len((tmp_path / "all.ndjson").read_text().splitlines()) == 6


def test_what_was_tampered_with_is_shown_and_exits_1(tmp_path: Path) -> None:
    database = f"sqlite:///{tmp_path}/bank.db"
    subprocess.run([sys.executable, "-m", "examples.bank", database], cwd=ROOT, check=True)
    seal = answer("verify", database=database)["seal"]
    with closing(sqlite3.connect(tmp_path / "bank.db")) as connection, connection:
        connection.execute("DROP TRIGGER rabbitflow_events_no_update")
        connection.execute("UPDATE rabbitflow_events SET data = '{\"amount\":1}' WHERE version = 3")
    for given in ((), ("--seal", seal)):
        done = rabbitflow("verify", *given, database=database)
        assert done.returncode == 1
        assert "altered" in done.stdout
        assert "account-1" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["history", "nobody"], 2, "stream 'nobody' has no events"),
        (["state", "account-1", "--fold", "workers.bank"], 78, "write MODULE:NAME"),
        (["state", "account-1", "--fold", "workers.bank:nix"], 78, "can't be found"),
        (["state", "account-1", "--fold", "workers.bank:balance", "--as-of", "x"], 2, "in time"),
        (["verify", "--seal", "x"], 2, "not a seal"),
    ],
)
def test_a_command_that_can_not_says_why_in_one_line(
    kept: str, arguments: list[str], code: int, said: str
) -> None:
    done = rabbitflow(*arguments, database=kept)
    assert (done.returncode, done.stdout) == (code, "")
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


def test_looking_for_a_store_that_is_not_there_makes_none(tmp_path: Path) -> None:
    done = rabbitflow("verify", database=f"sqlite:///{tmp_path}/none.db")
    assert done.returncode == 78
    assert "no event store" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_point_in_time_is_written_as_people_write_it() -> None:
    assert as_of("2026-03-15").isoformat() == "2026-03-15T23:59:59.999999+00:00"
    assert as_of("2026-03-15T18:00").isoformat() == "2026-03-15T18:00:00+00:00"
    assert as_of("2026-03-15T18:00+05:30").isoformat() == "2026-03-15T12:30:00+00:00"
    for text in ("", "yesterday", "2026-13-01", "0001-01-01T00:00+10:00"):
        with pytest.raises(EventError, match="not a point in time"):
            as_of(text)
