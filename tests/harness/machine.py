"""A machine that systemd runs: booted in namespaces on a copy-on-write view of this one's files."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

BOOT = Path(__file__).parents[1] / "deploy" / "boot.sh"
NEEDED = ("unshare", "nsenter", "setpriv", "ip", "systemctl", "systemd-analyze")
CLEAN = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8", "HOME": "/root"}
BOOT_WITHIN_S = 60.0


def why_not() -> str | None:
    """Why no machine can be booted here, or None."""
    if os.geteuid() != 0:
        return "it takes root to make namespaces"
    missing = [command for command in NEEDED if shutil.which(command) is None]
    if missing:
        return f"not installed: {', '.join(missing)}"
    if not Path("/lib/systemd/systemd").exists():
        return "systemd is not installed"
    if _cgroup2() is None:
        return "no cgroup2 hierarchy is mounted"
    return None


class Machine:
    """A booted machine with a network, processes and files of its own; gone when it is closed.

    ``host`` is a directory here that is ``/run/host`` there.
    """

    def __init__(self) -> None:
        self._place = Path(tempfile.mkdtemp(prefix="rabbitflow-machine-"))
        self.host = self._place / "host"
        for name in ("root", "layer", "host"):
            (self._place / name).mkdir()
        hierarchy = _cgroup2()
        assert hierarchy is not None
        self._cgroup = hierarchy / self._place.name
        self._unshare: subprocess.Popen[bytes] | None = None
        self._init = 0

    def boot(self) -> Self:
        """Start systemd and wait until it is up."""
        self._cgroup.mkdir()
        with contextlib.suppress(OSError):
            # Where they belong to the older hierarchy, limits are set and not enforced.
            (self._cgroup.parent / "cgroup.subtree_control").write_text("+memory +pids +cpu")
        log = self._place / "boot.log"
        with log.open("wb") as output:
            self._unshare = subprocess.Popen(
                [
                    *(
                        "/bin/sh",
                        "-c",
                        'echo $$ > "$0" && exec "$@"',
                        self._cgroup / "cgroup.procs",
                    ),
                    *("unshare", "--mount", "--pid", "--fork", "--kill-child", "--cgroup"),
                    *("--uts", "--ipc", "--net", "/bin/sh", str(BOOT), str(self._place)),
                ],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=CLEAN,
            )
        deadline = time.monotonic() + BOOT_WITHIN_S
        while time.monotonic() < deadline and self._unshare.poll() is None:
            for child in psutil.Process(self._unshare.pid).children():
                self._init = child.pid
                state = self.run("systemctl", "is-system-running", check=False).strip()
                if state in ("running", "degraded"):
                    return self
            time.sleep(0.2)
        raise RuntimeError(f"systemd does not start here: {log.read_text()[-2000:]}")

    @property
    def enforces_memory(self) -> bool:
        """Whether the kernel hands the memory controller to this machine."""
        return "memory" in self.run("cat", "/sys/fs/cgroup/cgroup.controllers").split()

    def command(self, *arguments: str) -> list[str]:
        """What runs a command in the machine, from here."""
        assert self._init
        return ["nsenter", f"--target={self._init}", "--all", "--root", "--wd", "--", *arguments]

    def run(
        self, *arguments: str, check: bool = True, given: str | None = None, within_s: float = 120
    ) -> str:
        """Run a command in the machine and return what it printed on both streams."""
        done = subprocess.run(
            self.command(*arguments),
            env=CLEAN,
            input=given,
            stdin=subprocess.DEVNULL if given is None else None,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=within_s,
            check=False,
        )
        if check and done.returncode:
            asked = " ".join(arguments)
            raise AssertionError(f"{asked} ended with {done.returncode}: {done.stdout}")
        return done.stdout

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start a command in the machine."""
        return subprocess.Popen(
            self.command(*arguments),
            env=CLEAN,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def write(self, path: str, text: str, mode: str = "644") -> None:
        """Write a file of the machine."""
        self.run("install", "-D", "-m", mode, "/dev/stdin", path, given=text)

    def show(self, unit: str, *properties: str) -> dict[str, str]:
        """Properties of a unit, as systemd has them."""
        names = ",".join(properties)
        lines = self.run("systemctl", "show", unit, f"--property={names}").splitlines()
        return dict(line.split("=", 1) for line in lines if "=" in line)

    def journal(self, unit: str) -> str:
        """What the journal has of a unit and of what systemd says about it."""
        return self.run("journalctl", "--no-pager", "--output=short-precise", f"--unit={unit}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._unshare is not None:
            if self._init and self._unshare.poll() is None:
                # The end of its first process is the end of all of them.
                with contextlib.suppress(psutil.NoSuchProcess):
                    psutil.Process(self._init).kill()
            self._unshare.kill()
            self._unshare.wait(30)
        for group in _deepest_first(self._cgroup):
            _remove(group)
        shutil.rmtree(self._place, ignore_errors=True)


def _cgroup2() -> Path | None:
    for line in Path("/proc/mounts").read_text().splitlines():
        _, place, kind, *_ = line.split()
        if kind == "cgroup2":
            return Path(place)
    return None


def _deepest_first(group: Path) -> Iterator[Path]:
    for path, _, _ in os.walk(group, topdown=False):
        yield Path(path)


def _remove(group: Path) -> None:
    # The kernel takes a moment to let go of processes that were killed.
    deadline = time.monotonic() + 5
    while group.exists() and time.monotonic() < deadline:
        try:
            group.rmdir()
        except OSError:
            time.sleep(0.05)
