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
from rabbitflow.unitfile import OLDEST_SYSTEMD, Host, Limits, service, sysusers, target, tmpfiles
from rabbitflow.worker.discovery import Found

SHORTEST_WATCHDOG_S = 60
LONGEST_WATCHDOG_S = 300

SYSTEM = "systemd/system"
TEMPLATE = "rabbitflow@.service"
TARGET = "rabbitflow.target"
RELAY = "rabbitflow-relay.service"
RELAY_METRICS_PORT = 9463  # below those of the workers


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


def written(
    loads: Sequence[Load], host: Host, settings: Settings, *, with_relay: bool = False
) -> dict[str, str]:
    """Return the files of a host by path below ``/etc``: a unit for each module, one for the relay
    where it is asked for, the target, the account, the directory of the credentials."""
    files = {
        f"{SYSTEM}/{instance(load.module)}": worker_unit(load, host, settings) for load in loads
    }
    if with_relay:
        files[f"{SYSTEM}/{RELAY}"] = relay_unit(host, settings)
    return {
        **files,
        f"{SYSTEM}/{TARGET}": target(),
        "sysusers.d/rabbitflow.conf": sysusers(host),
        "tmpfiles.d/rabbitflow.conf": tmpfiles(),
    }


def template(host: Host, settings: Settings) -> dict[str, str]:
    """Return the files of a host whose modules nobody has looked at, by path below ``/etc``: one
    unit for any of them, and the relay's."""
    return {
        **written([], host, settings, with_relay=True),
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
    port = load.metrics_port
    return service(
        host,
        limits(load, host, settings),
        name="%i",
        description="rabbitflow worker %i",
        command="worker %i",
        environment=[] if port is None else [f"RABBITFLOW_METRICS_PORT={port}"],
        has_database=host.has_database,
        can_reload=True,
    )


def relay_unit(host: Host, settings: Settings) -> str:
    """Return the unit of the relay, which announces what an outbox holds."""
    return service(
        host,
        limits(Load("relay", (1,), settings.publish_timeout_s), host, settings),
        name="relay",
        description="rabbitflow relay of the outbox",
        command="relay",
        environment=[f"RABBITFLOW_METRICS_PORT={RELAY_METRICS_PORT}"],
        has_database=True,
        can_reload=False,
    )
