"""The consumers that a command is about: those named, else those of the project."""

from __future__ import annotations

from pathlib import Path

import pytest

from rabbitflow.errors import ConfigurationError
from rabbitflow.project import consumer_names, discover_project, project_modules


def write(directory: Path, text: str) -> None:
    (directory / "pyproject.toml").write_text(text)


def test_a_project_names_its_modules(tmp_path: Path) -> None:
    write(tmp_path, '[tool.rabbitflow]\nmodules = ["workers", "billing.consumers"]\n')
    assert project_modules(tmp_path) == ("workers", "billing.consumers")


@pytest.mark.parametrize("text", [None, "", "[tool]\n", "[tool.rabbitflow]\n"])
def test_a_project_may_name_none(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        write(tmp_path, text)
    assert project_modules(tmp_path) == ()


@pytest.mark.parametrize(
    "text",
    [
        "not toml",
        '[tool.rabbitflow]\nmodules = "workers"\n',
        "[tool.rabbitflow]\nmodules = [1]\n",
        '[tool.rabbitflow]\nmodules = [""]\n',
        "[tool]\nrabbitflow = 1\n",
    ],
)
def test_an_entry_that_does_not_fit_is_refused_with_its_place(tmp_path: Path, text: str) -> None:
    write(tmp_path, text)
    with pytest.raises(ConfigurationError, match=str(tmp_path / "pyproject.toml")):
        project_modules(tmp_path)


async def test_named_consumers_need_no_project(tmp_path: Path) -> None:
    assert await consumer_names(["payment", "email", "payment"], tmp_path) == ("payment", "email")
    with pytest.raises(ConfigurationError, match="a consumer's name is"):
        await consumer_names(["Payment!"], tmp_path)


async def test_without_a_project_the_way_to_name_consumers_is_shown(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"\[tool.rabbitflow\] modules"):
        await discover_project(tmp_path)


async def test_the_consumers_of_a_project_are_found_beside_a_broken_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path, '[tool.rabbitflow]\nmodules = ["shop"]\n')
    package = tmp_path / "shop"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "broken.py").write_text("raise ValueError('boom')")
    (package / "payment.py").write_text(
        "from rabbitflow import Consumer\n"
        "payment = Consumer('payment')\n"
        "@payment.on('ORDER_PLACED')\n"
        "async def charge(order: dict) -> None: ...\n"
    )
    assert await consumer_names([]) == ("payment",)
    assert "module shop.broken is left out: ValueError: boom" in caplog.text
