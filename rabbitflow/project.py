"""The project in the current directory: which modules hold its consumers.

``pyproject.toml`` says it once, so that commands about all consumers need no arguments:

    [tool.rabbitflow]
    modules = ["workers"]
"""

from __future__ import annotations

import logging
import tomllib
from collections.abc import Sequence
from pathlib import Path

from rabbitflow.errors import ConfigurationError
from rabbitflow.topology import check_consumer_name
from rabbitflow.worker.discovery import Discovery, Found, discover

PROJECT_FILE = "pyproject.toml"

logger = logging.getLogger(__name__)


def project_modules(directory: Path | None = None) -> tuple[str, ...]:
    """Return ``[tool.rabbitflow] modules`` of the project in ``directory`` (the current one).

    Empty where there is no such file or no such entry.

    Raises:
        ConfigurationError: the file can't be read, or the entry is no list of module names.
    """
    path = (directory or Path.cwd()) / PROJECT_FILE
    try:
        with path.open("rb") as file:
            written = tomllib.load(file)
    except FileNotFoundError:
        return ()
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigurationError(f"{path} can't be read: {error}") from error
    tool = written.get("tool", {})
    table = tool.get("rabbitflow", {}) if isinstance(tool, dict) else {}
    modules = table.get("modules", []) if isinstance(table, dict) else None
    if not isinstance(modules, list) or not all(isinstance(name, str) and name for name in modules):
        raise ConfigurationError(
            f'{path}: [tool.rabbitflow] modules is a list of names, such as ["workers"]'
        )
    return tuple(modules)


async def discover_project(directory: Path | None = None) -> Discovery:
    """Return the consumers of the project in ``directory`` (the current one).

    Raises:
        ConfigurationError: the project names no modules, or nothing in them can be used.
    """
    modules = project_modules(directory)
    if not modules:
        raise ConfigurationError(
            f"name the consumers, or write [tool.rabbitflow] modules = [...] into the"
            f" {PROJECT_FILE} of {directory or Path.cwd()}"
        )
    discovery = await discover(modules)
    if not discovery.consumers:
        raise ConfigurationError(
            "; ".join(f"{broken.module}: {broken.error}" for broken in discovery.broken)
            or f"no consumer is defined in {', '.join(modules)} ({PROJECT_FILE})"
        )
    return discovery


async def discover_named(modules: Sequence[str], directory: Path | None = None) -> Discovery:
    """Return the consumers of ``modules``, else of the project in ``directory``.

    Raises:
        ConfigurationError: nothing in them can be used, or as :func:`discover_project`.
    """
    if not modules:
        return await discover_project(directory)
    discovery = await discover(modules)
    if not discovery.consumers:
        raise ConfigurationError(
            "; ".join(f"{broken.module}: {broken.error}" for broken in discovery.broken)
            or f"no consumer is defined in {', '.join(modules)}"
        )
    return discovery


async def discover_whole(named: Sequence[str]) -> list[Found]:
    """Return the consumers of the modules named, else of the project here; none may be left out.

    Raises:
        ConfigurationError: a module can't be imported, or as :func:`discover_named`.
    """
    discovery = await discover_named(named)
    if discovery.broken:
        raise ConfigurationError(
            "; ".join(f"{broken.module}: {broken.error}" for broken in discovery.broken)
        )
    return discovery.consumers


async def consumer_names(named: Sequence[str], directory: Path | None = None) -> tuple[str, ...]:
    """Return the consumers that a command is about: those named, else all of the project.

    A module that can't be imported is logged, and leaves out its consumers alone.

    Raises:
        ConfigurationError: a name that no consumer can have, or as :func:`discover_project`.
    """
    if named:
        return tuple(dict.fromkeys(map(check_consumer_name, named)))
    discovery = await discover_project(directory)
    for broken in discovery.broken:
        logger.warning("module %s is left out: %s", broken.module, broken.error)
    return tuple(found.name for found in discovery.consumers)
