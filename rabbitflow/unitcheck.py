"""What an installed unit lacks, compared with the one that its consumers ask for."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rabbitflow.units import SYSTEM, TEMPLATE

AT_LEAST = ("TimeoutStopSec", "TimeoutStartSec", "WatchdogSec")
ANY_VALUE = ("MemoryMax", "TasksMax", "RestartSec", "LimitNOFILE", "User", "WorkingDirectory")
NOT_COMPARED = (
    "Description",
    "Documentation",
    "EnvironmentFile",
    "RestartSteps",
    "RestartMaxDelaySec",
    "StateDirectory",
)
MANY = ("LoadCredential",)
LISTS = ("After", "Wants", "PartOf", "WantedBy")
DRAIN = "RABBITFLOW_SHUTDOWN_TIMEOUT_S"

WHY = {
    "Type": "systemd would not know when it is ready, and no watchdog would run",
    "KillMode": "every child would be told twice to stop, and give its events back unfinished",
    "RestartPreventExitStatus": "a wrong configuration would be started over and over",
    "OOMPolicy": "one consumer without memory would stop its neighbours",
    "TimeoutStopSec": "handlers would be killed before their drain deadline",
    "WatchdogSec": "a stuck handler would have its neighbours killed, or a stuck supervisor stay",
    "LoadCredential": "a URL, with its password, would have to be in the environment",
    "LimitCORE": "a core would hold the broker's password",
}

_UNITS_S = {
    "us": 1e-6,
    "ms": 1e-3,
    "": 1.0,
    "s": 1.0,
    "sec": 1.0,
    "second": 1.0,
    "seconds": 1.0,
    "m": 60.0,
    "min": 60.0,
    "minute": 60.0,
    "minutes": 60.0,
    "h": 3600.0,
    "hr": 3600.0,
    "hour": 3600.0,
    "hours": 3600.0,
    "d": 86400.0,
    "day": 86400.0,
    "days": 86400.0,
}
_SPAN = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z]*)\s*")

Unit = dict[str, list[str]]


@dataclass(frozen=True, slots=True)
class Lack:
    """One thing that an installed unit lacks."""

    unit: str
    directive: str
    says: str


@dataclass(slots=True)
class Installed:
    """A unit as systemd would read it: the file, then its drop-ins."""

    files: list[Path] = field(default_factory=list)
    directives: Unit = field(default_factory=dict)


def check(root: Path, needed: Mapping[str, str]) -> list[Lack]:
    """Return what the units below ``root`` (``/etc``) lack of those in ``needed``, by file name."""
    lacks: list[Lack] = []
    for path, text in needed.items():
        if path.startswith(SYSTEM):
            name = Path(path).name
            lacks += _compared(name, installed(root / SYSTEM, name), parsed(text))
    return lacks


def installed(directory: Path, name: str) -> Installed:
    """Return a unit with its drop-ins; an instance without a file of its own is its template."""
    unit = Installed()
    is_instance = "@" in name
    own, template = directory / name, directory / TEMPLATE
    file = template if is_instance and not own.is_file() else own
    if file.is_file():
        unit.files.append(file)
        for drop_ins in (TEMPLATE, name) if is_instance else (name,):
            unit.files += sorted((directory / f"{drop_ins}.d").glob("*.conf"))
    for path in unit.files:
        _read_into(unit.directives, path.read_text(encoding="utf-8"))
    return unit


def parsed(text: str) -> Unit:
    """Return the directives of a unit file, each with its values in order."""
    unit: Unit = {}
    _read_into(unit, text)
    return unit


def seconds(span: str) -> float:
    """Return a time span of systemd's (``90``, ``1min 30s``, ``infinity``) in seconds; 0 where it
    is none."""
    if span.strip() == "infinity":
        return math.inf
    parts = _SPAN.findall(span)
    if not parts or _SPAN.sub("", span).strip() or any(unit not in _UNITS_S for _, unit in parts):
        return 0.0
    return sum(float(number) * _UNITS_S[unit] for number, unit in parts)


def _read_into(unit: Unit, text: str) -> None:
    for line in text.replace("\\\n", " ").splitlines():
        name, equals, value = line.strip().partition("=")
        if not equals or name.startswith(("#", ";", "[")):
            continue
        if value.strip():
            unit.setdefault(name.strip(), []).append(" ".join(value.split()))
        else:
            # An empty value takes back what was said before, and may itself be what is meant.
            unit[name.strip()] = []


def _compared(name: str, unit: Installed, needed: Unit) -> Iterator[Lack]:
    if not unit.files:
        yield Lack(name, "", "is not installed")
        return
    for directive, values in needed.items():
        if directive in NOT_COMPARED:
            continue
        found = unit.directives.get(directive)
        says = _difference(directive, values, found)
        if says is not None:
            why = WHY.get(directive)
            yield Lack(name, directive, f"{says}; {why}" if why else says)


def _difference(directive: str, needed: Sequence[str], found: Sequence[str] | None) -> str | None:
    wanted = f"{directive}={' '.join(needed)}"
    if found is None:
        return f"lacks {wanted}"
    if directive == "Environment":
        return _of_environment(needed, found)
    if directive == "ExecStart":
        return _of_command(needed, found)
    if directive in ANY_VALUE:
        return None if found else f"lacks {wanted}"
    if directive in AT_LEAST:
        is_enough = bool(found) and seconds(found[-1]) >= seconds(needed[-1])
    elif directive in MANY:
        is_enough = set(needed) <= set(found)
    elif directive in LISTS:
        is_enough = set(" ".join(needed).split()) <= set(" ".join(found).split())
    else:
        is_enough = list(found) == list(needed) or (len(needed) == 1 and found[-1:] == needed)
    return None if is_enough else f"has {directive}={' '.join(found)}, and needs {wanted}"


def _of_environment(needed: Sequence[str], found: Sequence[str]) -> str | None:
    given = dict(value.strip('"').partition("=")[::2] for value in " ".join(found).split())
    for assignment in needed:
        name, _, value = assignment.partition("=")
        if name == DRAIN:
            if seconds(given.get(name, "0")) < seconds(value):
                return f"lacks Environment={assignment}; the longest handler may run that long"
        elif name.endswith("_URL_FILE") and name not in given:
            return f"lacks Environment={assignment}; the URL is not read from the credential"
    return None


def _of_command(needed: Sequence[str], found: Sequence[str]) -> str | None:
    if not found:
        return f"lacks ExecStart={needed[-1]}"
    program, *arguments = found[-1].split()
    asked = needed[-1].split()[1:]
    if not set(asked) <= set(arguments):
        return f"has ExecStart={found[-1]}, and needs {needed[-1]}"
    if not Path(program.lstrip("-@:+!")).is_file():
        return f"starts {program}, which is not there"
    return None
