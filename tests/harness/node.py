"""A private RabbitMQ node: started from the installed binary, in a directory of its own."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

START_WITHIN_S = 60.0
STOP_WITHIN_S = 30.0
SERVERS = (
    "/usr/lib/rabbitmq/bin/rabbitmq-server",  # the one in sbin changes the user
    "/opt/rabbitmq/sbin/rabbitmq-server",
)


def server_binary() -> Path | None:
    """The rabbitmq-server that runs as whoever calls it, or None where none is installed."""
    found = next((path for path in SERVERS if Path(path).exists()), None)
    return Path(found) if found else None


def answers_amqp(host: str, port: int, timeout_s: float = 1.0) -> bool:
    """Whether an AMQP 0-9-1 broker answers there: it greets with a method frame."""
    try:
        with socket.create_connection((host, port), timeout=timeout_s) as connection:
            connection.sendall(b"AMQP\x00\x00\x09\x01")
            return connection.recv(1) == b"\x01"
    except OSError:
        return False


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


Ctl = Callable[..., str]


@dataclass(frozen=True)
class Broker:
    """A broker to test against.

    Fields:
        url: where it listens.
        ctl: runs rabbitmqctl against it; None where that is not possible from here.
        powerless_url: of a user who may declare nothing, where there is one already.
    """

    url: str
    ctl: Ctl | None
    powerless_url: str | None = None


def local_ctl() -> Ctl | None:
    """What runs rabbitmqctl against the node of this machine, or None where it does not answer."""
    tool = shutil.which("rabbitmqctl")

    def ctl(*arguments: str) -> str:
        return _printed_by([str(tool), "-q", *arguments], dict(os.environ))

    if tool is None:
        return None
    try:
        ctl("list_users")
    except (OSError, subprocess.SubprocessError):
        return None
    return ctl


def _printed_by(command: list[str], environment: dict[str, str]) -> str:
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=60, check=True
    )
    return done.stdout


class PrivateNode:
    """One RabbitMQ node on free ports of the loopback interface. Its data survive a crash.

    Args:
        name: of the node, before the ``@localhost``.
        joins: a node that runs; the new one becomes part of its cluster when it starts.
    """

    def __init__(self, name: str = "n1", *, joins: PrivateNode | None = None) -> None:
        binary = server_binary()
        if binary is None:
            raise RuntimeError("no rabbitmq-server is installed; apt-get install rabbitmq-server")
        self._binary = binary
        self.directory = Path(tempfile.mkdtemp(prefix="rabbitflow-node-"))
        self.port = free_port()
        self.name = f"{name}@localhost"
        self._joins = joins
        # Nodes of one cluster share the cookie in HOME and the daemon that maps names to ports.
        self._home = joins._home if joins else self.directory / "home"
        self._epmd_port = joins._epmd_port if joins else free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self._home.mkdir(exist_ok=True)
        (self.directory / "enabled_plugins").write_text("[].")
        (self.directory / "rabbitmq.conf").write_text(
            "disk_free_limit.absolute = 50MB\n"
            "vm_memory_high_watermark.absolute = 1500MB\n"
            "cluster_partition_handling = ignore\n"
            "loopback_users = none\n"
        )
        self._environment = {
            **os.environ,
            "HOME": str(self._home),
            "LC_ALL": "C.UTF-8",
            "ERL_EPMD_PORT": str(self._epmd_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODENAME": self.name,
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_DIST_PORT": str(free_port()),
            "RABBITMQ_MNESIA_BASE": str(self.directory / "mnesia"),
            "RABBITMQ_LOG_BASE": str(self.directory / "log"),
            "RABBITMQ_PID_FILE": str(self.directory / "pid"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.directory / "enabled_plugins"),
            "RABBITMQ_CONF_ENV_FILE": str(self.directory / "none"),
            "RABBITMQ_CONFIG_FILE": str(self.directory / "rabbitmq"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(self.directory / "advanced.config"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": (
                "+sbwt none +sbwtdcpu none +sbwtdio none"
                " -kernel inet_dist_use_interface {127,0,0,1}"
                # A node of a cluster that is silent for so many seconds is taken for gone.
                " -kernel net_ticktime 8"
            ),
        }

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"amqp://guest:guest@127.0.0.1:{self.port}/"

    @property
    def pid(self) -> int:
        """Of the Erlang machine, not of the script that started it."""
        return int((self.directory / "pid").read_text())

    def start(self) -> None:
        """Start it and return when it answers, the first time as a member of its cluster."""
        self._boot()
        if self._joins is not None:
            for step in ("stop_app", "reset", f"join_cluster {self._joins.name}", "start_app"):
                self.ctl(*step.split())
            self._joins = None

    def restart(self) -> None:
        """Stop it in order and start it again."""
        self.stop()
        self.start()

    def _boot(self) -> None:
        with (self.directory / "console.log").open("ab") as log:
            self._process = subprocess.Popen(
                [str(self._binary)],
                env=self._environment,
                stdout=log,
                stderr=log,
                cwd=self.directory,
            )
        deadline = time.monotonic() + START_WITHIN_S
        while not answers_amqp("127.0.0.1", self.port):
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(
                    "rabbitmq-server did not start: "
                    + (self.directory / "console.log").read_text(errors="replace")[-2000:]
                )
            time.sleep(0.1)

    def kill(self) -> None:
        """Let it crash: nothing is flushed, nothing said."""
        os.kill(self.pid, signal.SIGKILL)
        if self._process is not None:
            self._process.wait(STOP_WITHIN_S)

    def stop(self) -> None:
        """Stop it in order, and everything that it started."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            self._process.wait(STOP_WITHIN_S)

    def remove(self) -> None:
        """Stop it for good."""
        self.stop()
        if self._home.is_relative_to(self.directory):
            self._stop_port_mapper()
        shutil.rmtree(self.directory, ignore_errors=True)

    def ctl(self, *arguments: str) -> str:
        """Run rabbitmqctl against it and return what it prints."""
        tool = str(self._binary.with_name("rabbitmqctl"))
        return _printed_by([tool, "-q", "-n", self.name, *arguments], self._environment)

    def _stop_port_mapper(self) -> None:
        """End the daemon that maps names to ports, which the node started for itself."""
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            subprocess.run(
                ["epmd", "-port", str(self._epmd_port), "-kill"],
                capture_output=True,
                timeout=10,
                check=False,
            )
