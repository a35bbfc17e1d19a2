"""The command ``rabbitflow``: each command parses, calls one function and prints."""

from __future__ import annotations

import importlib
from typing import Any

import click

from rabbitflow._version import __version__

COMMANDS = {
    "broker": "rabbitflow.cli.broker:broker",
    "dlq": "rabbitflow.cli.dlq:dlq",
    "pause": "rabbitflow.cli.control:pause",
    "publish": "rabbitflow.cli.publish:publish",
    "resume": "rabbitflow.cli.control:resume",
    "store": "rabbitflow.cli.store:store",
    "topology": "rabbitflow.cli.topology:topology",
    "worker": "rabbitflow.cli.worker:worker",
}


class _Commands(click.Group):
    """A group whose commands are imported when they are asked for, so that --help is quick."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        path = COMMANDS.get(cmd_name)
        if path is None:
            return None
        module, _, name = path.partition(":")
        command: Any = getattr(importlib.import_module(module), name)
        return command if isinstance(command, click.Command) else None


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="rabbitflow")
def main() -> None:
    """Announce what happened, let others react: event workers on RabbitMQ.

    Every option reads an environment variable too: --url is RABBITFLOW_URL, --namespace is
    RABBITFLOW_NAMESPACE.
    """
