"""A host in production: RabbitMQ, a release of rabbitflow, and the units that it wrote itself."""

from __future__ import annotations

import contextlib
import re
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from tests.deploy.shop import HANDLES, ORDERS, PUBLISHES
from tests.harness import wheels
from tests.harness.machine import Machine

HOME = "/opt/rabbitflow"
PASSWORD = "correct-horse-battery"  # the tests look where it turns up
RELEASES = ("1", "2")
RELAY = "rabbitflow-relay.service"
DATABASE = "sqlite:////var/lib/rabbitflow/relay/outbox.db"
COMMAND = f"venv/bin/rabbitflow systemd --venv {HOME}/venv"
MODULES = {
    # What is announced of a key is handled in that order, several keys at once.
    "payment": {
        "options": 'concurrency=8, partitions=4, ordered_by="key"',
        "timeout": 20,
        "takes_s": 0.002,
    },
    # A dozen are begun at any moment, each far longer than a restart takes to be asked for.
    "email": {"options": "concurrency=64", "timeout": 45, "takes_s": 0.25},
}


class Noted(NamedTuple):
    """A line that a handler wrote."""

    what: str
    event_id: str
    key: str
    number: int


class Host:
    """What an operator does by hand on such a host, and what a test looks at."""

    def __init__(self, machine: Machine, say: Callable[[str], None]) -> None:
        self.machine = machine
        self._say = say

    @staticmethod
    def unit(name: str) -> str:
        """The unit that runs a module of the shop."""
        return f"rabbitflow@shop.{name}.service"

    def sh(self, command: str, *, check: bool = True) -> str:
        """Run a shell command as root, and show it with what it says."""
        said = self.machine.run("/bin/sh", "-c", command, check=check)
        self._say(f"# {command}\n{said}".rstrip())
        return said

    def install(self, release: str, wheel: str) -> None:
        """Make a virtualenv of one release, without a network, and make it the current one."""
        venv = f"{HOME}/releases/{release}"
        pip = next(path.name for path in self.machine.host.glob("pip-*.whl"))
        self.sh(
            f"/usr/bin/python3 -m venv --without-pip {venv} && PYTHONPATH=/run/host/{pip}"
            f" {venv}/bin/python -m pip --quiet install --no-index"
            f" --find-links=/run/host '/run/host/{wheel}[store]'"
            f" && ln -sfn releases/{release} {HOME}/venv"
        )

    def start_broker(self) -> None:
        """Start RabbitMQ by its own unit, with a user for the shop alone."""
        self.sh("systemctl start rabbitmq-server")
        self.machine.run("rabbitmqctl", "add_user", "shop", PASSWORD)
        self.machine.run("rabbitmqctl", "set_permissions", "shop", ".*", ".*", ".*")
        self.machine.write("/etc/rabbitflow/database", f"{DATABASE}\n", mode="600")
        self.machine.write(
            "/etc/rabbitflow/url", f"amqp://shop:{PASSWORD}@localhost:5672/\n", mode="600"
        )

    def write_modules(self) -> None:
        """Write the shop."""
        self.machine.write(f"{HOME}/shop/__init__.py", "")
        for name, numbers in MODULES.items():
            source = HANDLES.format(name=name, **numbers)
            self.machine.write(f"{HOME}/shop/{name}.py", source)
        self.machine.write(f"{HOME}/publish.py", PUBLISHES)
        self.machine.write(f"{HOME}/order.py", ORDERS)

    def install_units(self) -> None:
        """Do what `rabbitflow systemd` says is next."""
        modules = " ".join(f"shop.{name}" for name in MODULES)
        units = " ".join(map(self.unit, MODULES))
        self.sh(f"cd {HOME} && {COMMAND} {modules} --relay --output /etc")
        self.sh("systemd-sysusers && systemd-tmpfiles --create && systemctl daemon-reload")
        self.sh(f"systemctl enable --now rabbitflow.target {units} {RELAY}")

    @contextlib.contextmanager
    def publishing(self, count: int, rate: float) -> Iterator[list[str]]:
        """Publish ``count`` events in the background; their ids are known when the block ends."""
        ids: list[str] = []
        with self.machine.start(
            *("env", "RABBITFLOW_URL_FILE=/etc/rabbitflow/url", f"{HOME}/venv/bin/python"),
            *(f"{HOME}/publish.py", str(count), str(rate), "/tmp/published"),
        ) as process:
            try:
                yield ids
                said, _ = process.communicate(timeout=count / rate + 60)
            finally:
                process.kill()
        assert process.returncode == 0, said
        ids += self.machine.run("cat", "/tmp/published").split()
        assert len(ids) == count
        self._say(f"# published {count} events, {said.strip()}")

    def state(self, name: str) -> dict[str, str]:
        """How systemd sees a unit of the shop."""
        return self.machine.show(
            self.unit(name), "ActiveState", "SubState", "Result", "MainPID", "NRestarts",
            "StatusText", "ExecMainStatus",
        )  # fmt: skip

    def noted(self, name: str) -> list[Noted]:
        """What the handlers of a module wrote, in order."""
        path = f"/var/lib/rabbitflow/shop.{name}/effects"
        lines = self.machine.run("/bin/sh", "-c", f"cat {path} 2>/dev/null || true").splitlines()
        return [
            Noted(what, event_id, key, int(number))
            for what, event_id, key, number in map(str.split, lines)
        ]

    def done(self, name: str) -> Counter[str]:
        """How often each event was handled to its end."""
        return Counter(noted.event_id for noted in self.noted(name) if noted.what == "done")

    def numbers_by_key(self, name: str) -> dict[str, list[int]]:
        """The numbers that were done, by key, in the order in which they were done."""
        by_key: dict[str, list[int]] = defaultdict(list)
        for noted in self.noted(name):
            if noted.what == "done":
                by_key[noted.key].append(noted.number)
        return dict(by_key)

    def forget(self) -> None:
        """Begin a new page of what handlers wrote."""
        for name in MODULES:
            self.machine.run("rm", "-f", f"/var/lib/rabbitflow/shop.{name}/effects")

    def children(self, name: str) -> list[int]:
        """The processes that handle a consumer's events."""
        pattern = f"rabbitflow.worker.child {name} "
        return [int(pid) for pid in self.machine.run("pgrep", "-f", pattern, check=False).split()]


def exposure(said: str) -> float:
    """The overall level in what `systemd-analyze security` says."""
    found = re.search(r"Overall exposure level for .*: ([0-9.]+)", said)
    assert found is not None, said
    return float(found[1])


@contextlib.contextmanager
def production(say: Callable[[str], None]) -> Iterator[Host]:
    """Boot a machine and bring it to where a team's host is on its first day."""
    with Machine() as machine:
        for version in (None, "99.0"):
            with tempfile.TemporaryDirectory() as directory:
                [wheel] = wheels.build(Path(directory), "--wheel", version=version)
                wheel.rename(machine.host / wheel.name)
        current = next(machine.host.glob("rabbitflow-*.whl"))
        wheels.download(machine.host, f"{current}[store]")
        machine.boot()
        host = Host(machine, say)
        say(machine.run("systemctl", "--version").splitlines()[0])
        if not machine.enforces_memory:
            say("the memory controller is not this machine's: MemoryMax= is set, and not enforced")
        old, _ = sorted(path.name for path in machine.host.glob("rabbitflow-*.whl"))
        try:
            host.start_broker()
            host.install(RELEASES[0], old)
            host.write_modules()
            host.install_units()
            yield host
        finally:
            for name in MODULES:
                say(f"\n# journalctl -u {host.unit(name)}\n{machine.journal(host.unit(name))}")
            say(f"\n# journalctl -u {RELAY}\n{machine.journal(RELAY)}")
