"""systemd units of a worker: written from what its consumers ask for."""

from __future__ import annotations

import math
import re
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rabbitflow.errors import ConfigurationError
from rabbitflow.settings import Settings
from rabbitflow.worker.discovery import Found

OLDEST_SYSTEMD = 252  # Debian 12
STEPPED_RESTART_SINCE = 254
SHORTEST_WATCHDOG_S = 60
LONGEST_WATCHDOG_S = 300
HOMES = ("/home", "/root", "/run/user")

SYSTEM = "systemd/system"
TEMPLATE = "rabbitflow@.service"
TARGET = "rabbitflow.target"

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
    """

    venv: Path = Path("/opt/rabbitflow/venv")
    directory: Path = Path("/opt/rabbitflow")
    user: str = "rabbitflow"
    systemd: int = OLDEST_SYSTEMD
    memory_max: str | None = None

    def __post_init__(self) -> None:
        for value in (str(self.venv), str(self.directory), self.user, self.memory_max or ""):
            if _NOT_PLAIN.search(value):
                raise ConfigurationError(
                    f"{value!r} can't stand in a unit: no space, %, quote or $ in it, please"
                )


@dataclass(frozen=True, slots=True)
class Load:
    """What the consumers of one module ask of their service.

    Fields:
        module: the instance name.
        concurrencies: how many events each of its consumers handles at once.
        longest_timeout_s: of a handler; None where one has no limit.
        metrics_port: of this worker; None for the default.
    """

    module: str
    concurrencies: tuple[int, ...]
    longest_timeout_s: float | None
    metrics_port: int | None = None


@dataclass(frozen=True, slots=True)
class Limits:
    """The numbers of one unit, in seconds."""

    drain_s: int
    stop_s: int
    watchdog_s: int
    tasks: int
    memory: str


def loads(consumers: Iterable[Found], first_port: int | None = None) -> list[Load]:
    """Return what each module asks for: one worker, and so one unit, a module.

    Args:
        consumers: as discovered.
        first_port: of the first module's metrics; each further one has the next.
    """
    by_module: dict[str, list[Found]] = {}
    for found in consumers:
        by_module.setdefault(found.module, []).append(found)
    return [
        Load(
            module,
            tuple(found.concurrency for found in members),
            _longest([found.longest_timeout_s for found in members]),
            None if first_port is None else first_port + number,
        )
        for number, (module, members) in enumerate(by_module.items())
    ]


def _longest(timeouts_s: Sequence[float | None]) -> float | None:
    bounded = [timeout_s for timeout_s in timeouts_s if timeout_s is not None]
    return max(bounded, default=None) if len(bounded) == len(timeouts_s) else None


USUAL = Load("%i", (8,), 60.0)
"""What the template assumes of a module that nobody has looked at: the defaults of a consumer."""


def limits(load: Load, host: Host, settings: Settings) -> Limits:
    """Return the limits of a module's unit.

    The drain lasts as long as the longest handler may run, so that a stop cuts none short. systemd
    waits a little longer than that; and it waits longer for a sign of life than the supervisor does
    for one of a child, so that a stuck handler costs its own process only.
    """
    drain_s = max(settings.shutdown_timeout_s, load.longest_timeout_s or 0.0)
    longest_s = LONGEST_WATCHDOG_S if load.longest_timeout_s is None else load.longest_timeout_s
    patience_s = min(settings.stall_timeout_s + longest_s, LONGEST_WATCHDOG_S)
    consumers = len(load.concurrencies)
    return Limits(
        drain_s=math.ceil(drain_s),
        stop_s=math.ceil(drain_s) + 20,
        watchdog_s=math.ceil(max(SHORTEST_WATCHDOG_S, 2 * settings.stall_timeout_s, patience_s)),
        tasks=128 + sum(64 + concurrency for concurrency in load.concurrencies),
        memory=host.memory_max or f"{256 + 512 * consumers}M",
    )


def written(loads: Sequence[Load], host: Host, settings: Settings) -> dict[str, str]:
    """Return the files of a host by path below ``/etc``: a unit for each module, the target, the
    account, the directory of the credential."""
    files = {
        f"{SYSTEM}/{instance(load.module)}": worker_unit(load, host, settings) for load in loads
    }
    return {
        **files,
        f"{SYSTEM}/{TARGET}": target(),
        "sysusers.d/rabbitflow.conf": sysusers(host),
        "tmpfiles.d/rabbitflow.conf": tmpfiles(),
    }


def template(host: Host, settings: Settings) -> dict[str, str]:
    """Return the files of a host whose modules nobody has looked at, by path below ``/etc``: one
    unit for any of them."""
    return {
        **written([], host, settings),
        f"{SYSTEM}/{TEMPLATE}": worker_unit(USUAL, host, settings),
    }


def install(files: Mapping[str, str], root: Path) -> list[Path]:
    """Write ``files`` below ``root`` and return those that changed. Each appears whole or not.

    Raises:
        ConfigurationError: one can't be written.
    """
    changed = []
    for name, text in files.items():
        path = root / name
        part = path.with_name(f".{path.name}.part")
        try:
            if path.is_file() and path.read_text(encoding="utf-8") == text:
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            part.write_text(text, encoding="utf-8")
            part.chmod(0o644)
            part.replace(path)
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigurationError(f"{path} can't be written: {error}") from error
        changed.append(path)
    return changed


def systemd_version() -> int:
    """Return the version of this machine's systemd, or the oldest supported where there is none."""
    try:
        done = subprocess.run(
            ["systemctl", "--version"], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return OLDEST_SYSTEMD
    said = re.match(r"systemd (\d+)", done.stdout)
    return int(said[1]) if said else OLDEST_SYSTEMD


def instance(module: str) -> str:
    """Return the unit of a module; it wins over the template of that name."""
    return f"rabbitflow@{module}.service"


def worker_unit(load: Load, host: Host, settings: Settings) -> str:
    """Return the unit of a module's worker; of :data:`USUAL`, the template."""
    numbers = limits(load, host, settings)
    port = load.metrics_port
    return _service(
        host,
        description="rabbitflow worker %i",
        command="worker %i",
        state="rabbitflow/%i",
        start=(
            *([f"Environment=RABBITFLOW_METRICS_PORT={port}"] if port is not None else []),
            "EnvironmentFile=-/etc/rabbitflow/rabbitflow.env",
            "EnvironmentFile=-/etc/rabbitflow/%i.env",
        ),
        numbers=numbers,
    )


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
"""


def _service(
    host: Host,
    *,
    description: str,
    command: str,
    state: str,
    start: Sequence[str],
    numbers: Limits,
) -> str:
    values: Mapping[str, object] = {
        "description": description,
        "user": host.user,
        "directory": host.directory,
        "drain_s": numbers.drain_s,
        "start": "\n".join(start),
        "exec": f"{host.venv}/bin/rabbitflow {command}",
        "stop_s": numbers.stop_s,
        "watchdog_s": numbers.watchdog_s,
        "backoff": _BACKOFF if host.systemd >= STEPPED_RESTART_SINCE else "RestartSec=5",
        "memory": numbers.memory,
        "tasks": numbers.tasks,
        "state": state,
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
Environment=RABBITFLOW_SHUTDOWN_TIMEOUT_S={drain_s}
Environment=PYTHONUNBUFFERED=1
{start}
ExecStart={exec}
ExecReload=/bin/kill -HUP $MAINPID
# Only the supervisor is told to stop: a child that is told twice gives its events back at once.
KillMode=mixed
# The drain, and a little more; the worker asks for what it needs beyond that.
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
StateDirectory={state}
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
