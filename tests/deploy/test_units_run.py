"""The units, run by a real systemd: started, killed, hung, reloaded, upgraded; nothing is lost."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from tests.deploy.host import (
    COMMAND,
    DATABASE,
    HOME,
    MODULES,
    PASSWORD,
    RELAY,
    RELEASES,
    Host,
    exposure,
    production,
)
from tests.harness.machine import why_not
from tests.harness.waiting import eventually

pytestmark = pytest.mark.slow

UPGRADED_AT_PER_S = 200


def say(text: str) -> None:
    sys.stderr.write(f"{text}\n")


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    if (reason := why_not()) is not None:
        pytest.exit(f"no machine can be booted here: {reason}", returncode=3)
    with production(say) as host:
        yield host


@pytest.fixture(autouse=True)
def page(host: Host) -> None:
    """Each test begins with every unit up, and a new page of what handlers wrote."""
    host.machine.run("systemctl", "restart", *map(host.unit, MODULES))
    host.forget()


async def test_the_units_are_up_when_systemd_says_so(host: Host) -> None:
    for name in MODULES:
        state = host.state(name)
        assert (state["ActiveState"], state["SubState"]) == ("active", "running"), state
        assert state["StatusText"].startswith("1 of 1 consumers ready")
    # Registered at the broker, both, at this moment.
    consumers = host.sh("rabbitmqctl --quiet --silent list_consumers queue_name | sort")
    assert set(MODULES) <= set(consumers.split())


async def test_the_installed_units_verify_without_a_word_and_are_hardened(host: Host) -> None:
    for unit in (*map(host.unit, MODULES), RELAY):
        assert host.sh(f"systemd-analyze verify {unit}") == ""
        said = host.machine.run("systemd-analyze", "security", "--no-pager", unit)
        say(said.splitlines()[-1])
        assert exposure(said) <= 1.5
    said = host.sh(f"cd {HOME} && {COMMAND} shop --check")
    assert said == "every unit has what its consumers need\n"


async def test_a_worker_is_nobody_and_its_password_is_nowhere_to_be_seen(host: Host) -> None:
    main = host.state("payment")["MainPID"]
    who = host.sh(f"ps -o user=,cmd= -p {main} --ppid {main} ww")
    assert {line.split()[0] for line in who.splitlines()} == {"rabbitfl+"} or "rabbitflow" in who
    seen = host.machine.run(
        "/bin/sh",
        "-c",
        "cat /proc/[0-9]*/cmdline /proc/[0-9]*/environ; systemctl show 'rabbitflow@*';"
        " journalctl --no-pager; systemctl cat 'rabbitflow@*'",
    )
    assert PASSWORD not in seen
    assert "rabbitflow" in seen


async def test_a_killed_child_and_a_killed_unit_lose_nothing(host: Host) -> None:
    with host.publishing(2_000, 200) as ids:
        await eventually(lambda: len(host.done("email")) > 100, within_s=30)
        before = host.state("payment")["NRestarts"]
        child = host.children("payment")[0]
        host.sh(f"kill -KILL {child}  # a child of payment")
        await eventually(lambda: child not in host.children("payment") and host.children("payment"))
        assert host.state("payment")["NRestarts"] == before
        # What the unit forbids leaves the fork of a child allowed.
        assert "interpreter of its own" not in host.machine.journal(host.unit("payment"))
        main = host.state("email")["MainPID"]
        host.sh(f"kill -KILL {main}  # the supervisor of email")
        await eventually(lambda: host.state("email")["NRestarts"] == "1", within_s=30)
    for name in MODULES:
        await eventually(lambda name=name: set(host.done(name)) >= set(ids), within_s=60)
        handled = host.done(name)
        say(f"{name}: {len(ids)} announced, {len(handled)} handled, {handled.total()} times")


async def test_a_stuck_supervisor_is_killed_by_the_watchdog(host: Host) -> None:
    unit = host.unit("email")
    host.machine.write(f"/run/systemd/system/{unit}.d/soon.conf", "[Service]\nWatchdogSec=4\n")
    host.sh(f"systemctl daemon-reload && systemctl restart {unit}")
    try:
        main = host.state("email")["MainPID"]
        host.sh(f"kill -STOP {main}")
        await eventually(lambda: host.state("email")["MainPID"] not in ("0", main), within_s=40)
        await eventually(lambda: host.state("email")["ActiveState"] == "active", within_s=40)
        assert "Watchdog timeout" in host.machine.journal(unit)
    finally:
        host.machine.run("rm", "-r", f"/run/systemd/system/{unit}.d")
        host.machine.run("systemctl", "daemon-reload")


async def test_a_reload_starts_new_children_under_the_same_supervisor(host: Host) -> None:
    before = host.state("payment")["MainPID"], host.children("payment")
    host.sh(f"systemctl reload {host.unit('payment')}")
    await eventually(lambda: host.state("payment")["SubState"] == "running", within_s=30)
    await eventually(lambda: "1 of 1" in host.state("payment")["StatusText"])
    after = host.state("payment")["MainPID"], host.children("payment")
    assert after[0] == before[0]
    assert set(after[1]).isdisjoint(before[1])


async def test_the_relay_announces_what_an_outbox_holds(host: Host) -> None:
    state = host.machine.show(RELAY, "ActiveState", "StatusText")
    assert state["ActiveState"] == "active"
    assert state["StatusText"].startswith("announcing: 0 waiting")
    host.sh(
        "setpriv --reuid=rabbitflow --regid=rabbitflow --clear-groups"
        f" {HOME}/venv/bin/python {HOME}/order.py {DATABASE} 100"
    )
    await eventually(lambda: host.done("payment").total() == 100, within_s=30)
    assert host.numbers_by_key("payment") == {"k0": list(range(100))}
    await eventually(
        lambda: "100 announced" in host.machine.show(RELAY, "StatusText")["StatusText"]
    )


async def test_a_wrong_configuration_is_not_started_again(host: Host) -> None:
    unit = host.unit("payment")
    host.sh("mv /etc/rabbitflow/url /etc/rabbitflow/right")
    host.machine.write("/etc/rabbitflow/url", "nonsense\n", mode="600")
    try:
        host.sh(f"systemctl restart {unit}", check=False)
        state = host.state("payment")
        assert (state["ActiveState"], state["ExecMainStatus"]) == ("failed", "78"), state
        assert state["NRestarts"] == "0"
    finally:
        host.sh(f"mv /etc/rabbitflow/right /etc/rabbitflow/url; systemctl reset-failed {unit}")


async def test_a_broker_that_restarts_takes_no_unit_along(host: Host) -> None:
    with host.publishing(400, 200):
        pass
    host.sh("systemctl restart rabbitmq-server")
    mains = {name: host.state(name)["MainPID"] for name in MODULES}
    for name in MODULES:
        await eventually(lambda name=name: "1 of 1" in host.state(name)["StatusText"], within_s=60)
    assert mains == {name: host.state(name)["MainPID"] for name in MODULES}


async def test_an_upgrade_under_load_loses_nothing_and_cuts_no_handler_short(host: Host) -> None:
    new = next(path.name for path in host.machine.host.glob("rabbitflow-99*.whl"))
    with host.publishing(30 * UPGRADED_AT_PER_S, UPGRADED_AT_PER_S) as ids:
        await eventually(lambda: len(host.done("email")) > 200, within_s=30)
        host.install(RELEASES[1], new)
        for _ in range(2):
            for name in MODULES:
                host.sh(f"systemctl restart {host.unit(name)}")
    for name in MODULES:
        await eventually(lambda name=name: set(host.done(name)) >= set(ids), within_s=60)
        handled, noted = host.done(name), host.noted(name)
        say(
            f"{name}: {len(ids)} announced, {len(handled)} handled, {handled.total()} times,"
            f" {sum(one.what == 'cut' for one in noted)} cut short"
        )
        # Every restart drained: nothing came again, nothing was cut.
        assert set(handled.values()) == {1}
        assert {one.what for one in noted} == {"begun", "done"}
        state = host.state(name)
        assert (state["Result"], state["NRestarts"]) == ("success", "0"), state
        running = host.machine.run("readlink", "-f", f"/proc/{state['MainPID']}/cwd").strip()
        assert running == HOME
        command = host.machine.run("ps", "-o", "cmd=", "ww", "-p", state["MainPID"])
        assert f"releases/{RELEASES[1]}/" in command
    for numbers in host.numbers_by_key("payment").values():
        assert numbers == sorted(numbers)
