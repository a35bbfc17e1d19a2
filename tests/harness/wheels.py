"""The wheel of this project, and everything that has to be installed with it."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def build(directory: Path, *kinds: str, version: str | None = None) -> list[Path]:
    """Build ``--wheel`` or ``--sdist``, as another version where one is given, and return them."""
    source = ROOT
    if version is not None:
        source = directory / "source"
        shutil.copytree(ROOT / "rabbitflow", source / "rabbitflow")
        for name in ("pyproject.toml", "README.md", "LICENSE"):
            shutil.copy(ROOT / name, source)
        stated = source / "rabbitflow/_version.py"
        stated.write_text(re.sub('".*"$', f'"{version}"', stated.read_text(), flags=re.MULTILINE))
    before = set(directory.glob("rabbitflow-*"))
    _run("-m", "build", "--no-isolation", *kinds, f"--outdir={directory}", str(source))
    return sorted(set(directory.glob("rabbitflow-*")) - before)


def download(directory: Path, *requirements: str) -> None:
    """Fill ``directory`` with wheels that install without a network; pip is one of them."""
    _run(
        *("-m", "pip", "download", "--quiet", "--disable-pip-version-check"),
        *(f"--dest={directory}", f"--find-links={directory}", "pip", *requirements),
    )


def _run(*arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, timeout=300, check=False
    )
    if done.returncode:
        raise AssertionError(f"python {' '.join(arguments)}: {done.stdout}{done.stderr}")
