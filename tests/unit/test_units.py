"""systemd units: made for their consumers, clean, hardened, compared with those installed."""

from __future__ import annotations

import math
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from rabbitflow.errors import ConfigurationError
from rabbitflow.settings import Settings
from rabbitflow.unitcheck import Lack, check, installed, parsed, seconds
from rabbitflow.unitfile import STEPPED_RESTART_SINCE, Host
from rabbitflow.units import (
    SYSTEM,
    TEMPLATE,
    USUAL,
    Load,
    install,
    instance,
    limits,
    loads,
    template,
    worker_unit,
    written,
)
from rabbitflow.worker.discovery import Found

SHIPPED = Path(__file__).parents[2] / "deploy" / "systemd"
SETTINGS = Settings()
HOST = Host()
needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed"
)


def analyze(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["systemd-analyze", "--no-pager", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def runnable(text: str) -> str:
    """A unit whose program is there: systemd-analyze looks for it."""
    return re.sub(r"^ExecStart=\S+", "ExecStart=/bin/true", text, flags=re.MULTILINE)


def of_a_payment(longest_timeout_s: float | None = 60.0, **further: object) -> str:
    load = Load("shop.payment", (8,), longest_timeout_s)
    return worker_unit(load, HOST, SETTINGS.model_copy(update=further))


@needs_systemd
@pytest.mark.parametrize("name", [path.name for path in sorted(SHIPPED.glob("*.service"))])
def test_shipped_units_verify_without_a_word_and_are_hardened(name: str, tmp_path: Path) -> None:
    shutil.copy(SHIPPED / "rabbitflow.target", tmp_path)
    unit = tmp_path / name.replace("@", "@workers.payment")
    unit.write_text(runnable((SHIPPED / name).read_text()))
    verified = analyze("verify", unit)
    # It exits 0 also where it does not know a directive; what it says is what counts.
    assert (verified.returncode, verified.stdout, verified.stderr) == (0, "", "")
    found = re.search(r"level for .*: ([\d.]+)", analyze("security", "--offline=yes", unit).stdout)
    assert found is not None
    assert float(found[1]) <= 1.5


def test_the_shipped_units_are_what_the_command_writes() -> None:
    files = template(Host(), Settings())
    for name, text in files.items():
        shipped = SHIPPED / name.removeprefix(f"{SYSTEM}/")
        assert shipped.read_text() == text, f"{shipped} is not what it should be: make units"
    assert len(files) == sum(path.is_file() for path in SHIPPED.rglob("*"))


def test_the_drain_lasts_as_long_as_the_longest_handler_and_systemd_waits_longer() -> None:
    numbers = limits(Load("shop.payment", (8,), 90.5), HOST, SETTINGS)
    assert numbers.drain_s == 91
    assert numbers.stop_s > numbers.drain_s
    unit = parsed(of_a_payment(90.5))
    assert "RABBITFLOW_SHUTDOWN_TIMEOUT_S=91" in unit["Environment"]
    assert unit["TimeoutStopSec"] == ["111"]


def test_a_drain_that_an_operator_made_longer_stays() -> None:
    unit = parsed(of_a_payment(10.0, shutdown_timeout_s=120.0))
    assert "RABBITFLOW_SHUTDOWN_TIMEOUT_S=120" in unit["Environment"]


@pytest.mark.parametrize(
    ("longest_s", "watchdog"), [(5.0, "60"), (90.0, "120"), (3600.0, "300"), (None, "300")]
)
def test_the_watchdog_is_more_patient_than_handlers_within_bounds(
    longest_s: float | None, watchdog: str
) -> None:
    assert parsed(of_a_payment(longest_s))["WatchdogSec"] == [watchdog]


def test_the_watchdog_is_more_patient_than_the_supervisor_with_a_silent_child() -> None:
    unit = parsed(of_a_payment(5.0, stall_timeout_s=200.0))
    assert int(unit["WatchdogSec"][0]) >= 2 * 200


def test_a_module_is_a_unit_and_its_consumers_add_up() -> None:
    def found(name: str, module: str, timeout_s: float | None) -> Found:
        return Found(name, module, ("ORDER_PLACED",), 8, (), timeout_s)

    consumers = [
        found("payment", "shop.money", 60.0),
        found("email", "shop.mail", 5.0),
        found("refund", "shop.money", None),
        found("receipt", "shop.mail", 20.0),
    ]
    money, mail = loads(consumers, 9464)
    assert money == Load("shop.money", (8, 8), None, 9464)
    assert mail == Load("shop.mail", (8, 8), 20.0, 9465)
    assert limits(mail, HOST, SETTINGS).tasks > limits(USUAL, HOST, SETTINGS).tasks
    assert set(written([money, mail], HOST, SETTINGS)) == {
        f"{SYSTEM}/rabbitflow@shop.money.service",
        f"{SYSTEM}/rabbitflow@shop.mail.service",
        f"{SYSTEM}/rabbitflow.target",
        "sysusers.d/rabbitflow.conf",
        "tmpfiles.d/rabbitflow.conf",
    }


def test_a_database_is_handed_over_where_it_is_asked_for() -> None:
    load = Load("shop.payment", (8,), 60.0)
    given = parsed(worker_unit(load, Host(has_database=True), SETTINGS))
    assert given["LoadCredential"] == [
        "url:/etc/rabbitflow/url",
        "database:/etc/rabbitflow/database",
    ]
    assert "RABBITFLOW_DATABASE_URL_FILE=%d/database" in given["Environment"]
    assert parsed(of_a_payment())["LoadCredential"] == ["url:/etc/rabbitflow/url"]


def test_the_relay_has_a_database_always_and_no_reload() -> None:
    files = written([], HOST, SETTINGS, with_relay=True)
    relay = parsed(files[f"{SYSTEM}/rabbitflow-relay.service"])
    assert relay["ExecStart"] == ["/opt/rabbitflow/venv/bin/rabbitflow relay"]
    assert "database:/etc/rabbitflow/database" in relay["LoadCredential"]
    # It would end at a SIGHUP.
    assert "ExecReload" not in relay
    assert written([], HOST, SETTINGS).keys() == files.keys() - {
        f"{SYSTEM}/rabbitflow-relay.service"
    }


@pytest.mark.parametrize(
    ("systemd", "is_stepped"), [(STEPPED_RESTART_SINCE - 1, False), (STEPPED_RESTART_SINCE, True)]
)
def test_restarts_back_off_in_steps_where_systemd_knows_them(
    systemd: int, is_stepped: bool
) -> None:
    unit = parsed(worker_unit(USUAL, Host(systemd=systemd), SETTINGS))
    assert ("RestartSteps" in unit) == is_stepped
    assert unit["Restart"] == ["on-failure"]
    assert unit["RestartPreventExitStatus"] == ["78"]


@pytest.mark.parametrize(
    ("path", "home"), [("/opt/shop", "yes"), ("/home/deploy/shop", "read-only")]
)
def test_code_in_a_home_directory_is_not_hidden(path: str, home: str) -> None:
    unit = parsed(worker_unit(USUAL, Host(directory=Path(path)), SETTINGS))
    assert unit["ProtectHome"] == [home]


@pytest.mark.parametrize(
    "host",
    [
        {"venv": Path("/opt/my shop")},
        {"directory": Path("/opt/100%")},
        {"user": "a\nExecStartPre=/bin/true"},
        {"memory_max": "1G\n"},
    ],
)
def test_what_would_mean_something_else_in_a_unit_is_refused(host: dict[str, object]) -> None:
    with pytest.raises(ConfigurationError, match="can't stand in a unit"):
        Host(**host)  # type: ignore[arg-type]


def test_installing_twice_changes_nothing(tmp_path: Path) -> None:
    files = written([Load("shop.payment", (8,), 60.0)], HOST, SETTINGS)
    assert len(install(files, tmp_path)) == len(files)
    assert install(files, tmp_path) == []
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == {
        tmp_path / name for name in files
    }


def test_what_can_not_be_written_is_said_with_its_path(tmp_path: Path) -> None:
    (tmp_path / "systemd").write_text("a file")
    with pytest.raises(ConfigurationError, match=f"{tmp_path}/systemd/system/.* can't be written"):
        install(written([Load("shop.payment", (8,), 60.0)], HOST, SETTINGS), tmp_path)


class Etc:
    """An ``/etc`` in which the unit of one module is installed."""

    def __init__(self, root: Path) -> None:
        program = root / "venv/bin/rabbitflow"
        program.parent.mkdir(parents=True)
        program.touch()
        self.root = root
        self.host = Host(venv=root / "venv", directory=root)
        self.load = Load("shop.payment", (8,), 90.0)
        self.needed = written([self.load], self.host, SETTINGS)
        self.directory = root / SYSTEM
        install(self.needed, root)
        self.unit = self.directory / instance("shop.payment")

    def drop_in(self, text: str, unit: str = "rabbitflow@shop.payment.service") -> None:
        path = self.directory / f"{unit}.d" / "local.conf"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"[Service]\n{text}\n")

    def lacks(self) -> dict[str, str]:
        return {lack.directive: lack.says for lack in check(self.root, self.needed)}


@pytest.fixture
def etc(tmp_path: Path) -> Etc:
    return Etc(tmp_path)


def test_a_unit_as_it_was_written_lacks_nothing(etc: Etc) -> None:
    assert check(etc.root, etc.needed) == []


def test_a_unit_that_is_not_there_is_said(etc: Etc) -> None:
    etc.unit.unlink()
    assert check(etc.root, etc.needed) == [Lack(etc.unit.name, "", "is not installed")]


def test_a_handler_that_may_run_longer_than_before_shows_in_both_time_outs(etc: Etc) -> None:
    etc.unit.write_text(worker_unit(Load("shop.payment", (8,), 10.0), etc.host, SETTINGS))
    lacks = etc.lacks()
    assert lacks.keys() == {"Environment", "TimeoutStopSec", "WatchdogSec"}
    assert lacks["TimeoutStopSec"] == (
        "has TimeoutStopSec=50, and needs TimeoutStopSec=110;"
        " handlers would be killed before their drain deadline"
    )
    assert "RABBITFLOW_SHUTDOWN_TIMEOUT_S=90" in lacks["Environment"]


def test_the_template_stands_for_an_instance_and_its_drop_ins_count(etc: Etc) -> None:
    etc.unit.unlink()
    (etc.directory / TEMPLATE).write_text(worker_unit(USUAL, etc.host, SETTINGS))
    assert etc.lacks().keys() == {"Environment", "TimeoutStopSec", "WatchdogSec"}
    etc.drop_in("TimeoutStopSec=2min\nWatchdogSec=infinity")
    etc.drop_in("Environment=RABBITFLOW_SHUTDOWN_TIMEOUT_S=100", unit=TEMPLATE)
    assert etc.lacks() == {}


@pytest.mark.parametrize(
    ("drop_in", "directive"),
    [
        ("KillMode=control-group", "KillMode"),
        ("NoNewPrivileges=no", "NoNewPrivileges"),
        ("CapabilityBoundingSet=CAP_SYS_ADMIN", "CapabilityBoundingSet"),
        ("SystemCallFilter=\nSystemCallFilter=@system-service", "SystemCallFilter"),
        ("MemoryMax=", "MemoryMax"),
        ("ExecStart=\nExecStart=/bin/true worker shop.email", "ExecStart"),
        ("ExecStart=\nExecStart=/no/rabbitflow worker %i", "ExecStart"),
        ("LoadCredential=", "LoadCredential"),
        ("TimeoutStopSec=soon", "TimeoutStopSec"),
    ],
)
def test_a_drop_in_that_takes_something_away_is_found(
    etc: Etc, drop_in: str, directive: str
) -> None:
    etc.drop_in(drop_in)
    assert etc.lacks().keys() == {directive}


@pytest.mark.parametrize(
    "drop_in",
    [
        "MemoryMax=4G\nTasksMax=1000",
        "User=deploy",
        "TimeoutStopSec=infinity",
        "RestartSec=30",
        'Environment="RABBITFLOW_NAMESPACE=shop" RABBITFLOW_SHUTDOWN_TIMEOUT_S=95',
    ],
)
def test_a_drop_in_that_suits_the_host_is_nobodys_business(etc: Etc, drop_in: str) -> None:
    etc.drop_in(drop_in)
    assert etc.lacks() == {}


def test_comments_sections_and_continued_lines_are_read_as_systemd_does(tmp_path: Path) -> None:
    (tmp_path / "a.service").write_text("# A=1\n; B=2\n[C=3]\n D = a \\\n  b \nE=1\nE=\nE=2\n")
    assert installed(tmp_path, "a.service").directives == {"D": ["a b"], "E": ["2"]}


@pytest.mark.parametrize(
    ("span", "expected"),
    [
        ("90", 90.0),
        ("1min 30s", 90.0),
        ("1min30s", 90.0),
        ("2h", 7200.0),
        ("500ms", 0.5),
        ("1.5 hours", 5400.0),
        ("infinity", math.inf),
        ("soon", 0.0),
        ("5 parsecs", 0.0),
        ("", 0.0),
    ],
)
def test_time_spans_are_read_as_systemd_does(span: str, expected: float) -> None:
    assert seconds(span) == expected
