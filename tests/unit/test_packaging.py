"""What is shipped: the public names, the marker of types, one version, arguments in one place."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import rabbitflow

PACKAGE = Path(rabbitflow.__file__).parent


def test_every_public_name_is_there() -> None:
    for name in ("Event", "Consumer", "Retry", "Context", "Publisher"):
        assert name in rabbitflow.__all__
    assert all(hasattr(rabbitflow, name) for name in rabbitflow.__all__)
    assert rabbitflow.__all__ == sorted(rabbitflow.__all__)


def test_types_are_shipped_and_the_version_has_one_source() -> None:
    assert (PACKAGE / "py.typed").exists()
    assert rabbitflow.__version__ == version("rabbitflow")


def test_arguments_and_headers_of_the_broker_are_written_in_one_place() -> None:
    literal = re.compile(r'"x-[a-z-]+"')
    strays = [
        f"{path.name}: {found}"
        for path in PACKAGE.rglob("*.py")
        if path.name != "topology.py" and "devbroker" not in path.parts
        for found in literal.findall(path.read_text())
    ]
    assert not strays


def test_the_command_and_the_module_are_the_same() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "rabbitflow", "--version"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == f"rabbitflow, version {rabbitflow.__version__}\n"
