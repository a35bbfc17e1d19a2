"""The text of a systemd unit, and of the files that go with it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rabbitflow.errors import ConfigurationError

OLDEST_SYSTEMD = 252  # Debian 12
STEPPED_RESTART_SINCE = 254
HOMES = ("/home", "/root", "/run/user")

_NOT_PLAIN = re.compile(r"[\s%$\"'\\]")


@dataclass(frozen=True, slots=True)
class Host:
    """Where the units run, and as whom.

    Fields:
        venv: the virtualenv that rabbitflow and the consumers' libraries are installed in.
        directory: from which the modules are imported.
        user: no root.
        systemd: the version that reads the units; an older one warns of directives it misses.
        memory_max: of one worker, as systemd writes it; by the number of its consumers where None.
        has_database: whether the workers are handed the database's URL too.
    """

    venv: Path = Path("/opt/rabbitflow/venv")
    directory: Path = Path("/opt/rabbitflow")
    user: str = "rabbitflow"
    systemd: int = OLDEST_SYSTEMD
    memory_max: str | None = None
    has_database: bool = False

    def __post_init__(self) -> None:
        for value in (str(self.venv), str(self.directory), self.user, self.memory_max or ""):
            if _NOT_PLAIN.search(value):
                raise ConfigurationError(
                    f"{value!r} can't stand in a unit: no space, %, quote or $ in it, please"
                )


@dataclass(frozen=True, slots=True)
class Limits:
    """The numbers of one unit, in seconds."""

    drain_s: int
    stop_s: int
    watchdog_s: int
    tasks: int
    memory: str


def target() -> str:
    """Return the target that groups every unit of a host."""
    return """\
[Unit]
Description=rabbitflow workers of this host

[Install]
WantedBy=multi-user.target
"""


def sysusers(host: Host) -> str:
    """Return the account that the units run as, for systemd-sysusers."""
    return f'u {host.user} - "rabbitflow workers" /var/lib/rabbitflow\n'


def tmpfiles() -> str:
    """Return who may read the credential, for systemd-tmpfiles: root, who hands it to the units."""
    return """\
d /etc/rabbitflow 0755 root root -
z /etc/rabbitflow/url 0600 root root -
z /etc/rabbitflow/database 0600 root root -
"""


def service(
    host: Host,
    numbers: Limits,
    *,
    name: str,
    description: str,
    command: str,
    environment: Sequence[str],
    has_database: bool,
    can_reload: bool,
) -> str:
    """Return the text of one service.

    Args:
        name: of its state directory and its own file of settings.
        command: of rabbitflow, with its arguments.
        environment: assignments.
        has_database: whether it is handed the database's URL too.
        can_reload: whether SIGHUP does what a reload should.
    """
    values: Mapping[str, object] = {
        "description": description,
        "user": host.user,
        "directory": host.directory,
        "drain_s": numbers.drain_s,
        "database": _DATABASE if has_database else "",
        "environment": "".join(f"Environment={assignment}\n" for assignment in environment),
        "name": name,
        "reload": "ExecReload=/bin/kill -HUP $MAINPID\n" if can_reload else "",
        "watchdog_s": numbers.watchdog_s,
        "exec": f"{host.venv}/bin/rabbitflow {command}",
        "stop_s": numbers.stop_s,
        "backoff": _BACKOFF if host.systemd >= STEPPED_RESTART_SINCE else "RestartSec=5",
        "memory": numbers.memory,
        "tasks": numbers.tasks,
        "home": "read-only" if _is_at_home(host) else "yes",
    }
    return _SERVICE.format_map(values)


def _is_at_home(host: Host) -> bool:
    """Whether the code, or the Python it runs on, is where ``ProtectHome=yes`` would hide it."""
    paths = (host.venv, host.directory, (host.venv / "bin/python").resolve())
    return any(path.is_relative_to(home) for path in paths for home in HOMES)


_BACKOFF = """\
RestartSec=1
RestartSteps=6
RestartMaxDelaySec=60"""

_DATABASE = """\
LoadCredential=database:/etc/rabbitflow/database
Environment=RABBITFLOW_DATABASE_URL_FILE=%d/database
"""

_SERVICE = """\
# Written by `rabbitflow systemd`. Change it by a drop-in: systemctl edit UNIT

[Unit]
Description={description}
PartOf=rabbitflow.target
Wants=network-online.target
After=network-online.target rabbitmq-server.service postgresql.service
# Never given up: a broker may be away for longer than any limit.
StartLimitIntervalSec=0

[Service]
Type=notify
NotifyAccess=main
User={user}
WorkingDirectory={directory}
LoadCredential=url:/etc/rabbitflow/url
Environment=RABBITFLOW_URL_FILE=%d/url
{database}Environment=RABBITFLOW_SHUTDOWN_TIMEOUT_S={drain_s}
Environment=PYTHONUNBUFFERED=1
{environment}EnvironmentFile=-/etc/rabbitflow/rabbitflow.env
EnvironmentFile=-/etc/rabbitflow/{name}.env
ExecStart={exec}
# Only the supervisor is told to stop: a child that is told twice gives its events back at once.
KillMode=mixed
{reload}# The drain, and a little more; the worker asks for what it needs beyond that.
TimeoutStopSec={stop_s}
TimeoutStartSec=180
# The supervisor replaces a stuck child long before; this is for a stuck supervisor.
WatchdogSec={watchdog_s}
Restart=on-failure
{backoff}
# A wrong configuration is not mended by another start.
RestartPreventExitStatus=78
# A child that needs too much memory is replaced; its neighbours stay.
OOMPolicy=continue
MemoryMax={memory}
TasksMax={tasks}
LimitNOFILE=65536
# A core would hold the broker's password.
LimitCORE=0
StateDirectory=rabbitflow/{name}
StateDirectoryMode=0700
UMask=0077

NoNewPrivileges=yes
CapabilityBoundingSet=
AmbientCapabilities=
ProtectSystem=strict
ProtectHome={home}
ProtectProc=invisible
ProcSubset=pid
ProtectClock=yes
ProtectHostname=yes
ProtectControlGroups=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
PrivateDevices=yes
PrivateIPC=yes
PrivateMounts=yes
PrivateTmp=yes
PrivateUsers=yes
RemoveIPC=yes
DevicePolicy=closed
KeyringMode=private
LockPersonality=yes
MemoryDenyWriteExecute=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallFilter=~@privileged @resources
SystemCallErrorNumber=EPERM

[Install]
WantedBy=rabbitflow.target
"""
