"""The command ``rabbitflow``: each command parses, calls one function and prints."""

from __future__ import annotations

import importlib
from typing import Any, NamedTuple

import click
from click.shell_completion import CompletionItem

from rabbitflow._version import __version__
from rabbitflow.errors import ConfigurationError

EXIT_CONFIGURATION = 78


class Named(NamedTuple):
    """Where a command is, and what it does in one line: told here, so that nothing is imported to
    list it, and an extra that is not installed is missed by its own commands only."""

    path: str
    does: str


COMMANDS = {
    "audit": Named(
        "rabbitflow.cli.audit:audit",
        "Show what happened, what it led to, and what each consumer did about it.",
    ),
    "broker": Named(
        "rabbitflow.cli.broker:broker",
        "Run an AMQP 0-9-1 broker for development and tests.",
    ),
    "completion": Named(
        "rabbitflow.cli.completion:completion",
        "Print what makes SHELL complete commands and options.",
    ),
    "dev": Named(
        "rabbitflow.cli.dev:dev",
        "Run a broker and every consumer with reload, and show what happens.",
    ),
    "dlq": Named(
        "rabbitflow.cli.dlq:dlq",
        "Look at the dead letters of consumers, replay, mend, export and purge them.",
    ),
    "doctor": Named(
        "rabbitflow.cli.doctor:doctor",
        "Look for what is wrong with consumers and their broker, and say what to do.",
    ),
    "keys": Named(
        "rabbitflow.cli.keys:keys",
        "Make the keys that events are signed and their fields encrypted with.",
    ),
    "log": Named(
        "rabbitflow.cli.log:log",
        "Read the event log: what is announced, live, and what was.",
    ),
    "pause": Named(
        "rabbitflow.cli.control:pause",
        "Stop CONSUMER from taking events, on every host, until it is resumed.",
    ),
    "publish": Named(
        "rabbitflow.cli.publish:publish",
        "Announce that TYPE happened, and print its id once the broker has it safe.",
    ),
    "record": Named(
        "rabbitflow.cli.record:record",
        "Append announced events to the event store, for keeps beyond the log.",
    ),
    "relay": Named(
        "rabbitflow.cli.relay:relay",
        "Announce the events that an outbox holds.",
    ),
    "replay": Named(
        "rabbitflow.cli.replay:replay",
        "Put past events into one consumer's queue once more.",
    ),
    "resume": Named(
        "rabbitflow.cli.control:resume",
        "Let CONSUMER take events again, on every host.",
    ),
    "status": Named(
        "rabbitflow.cli.status:status",
        "Show what waits, failed and is there, by consumer.",
    ),
    "store": Named(
        "rabbitflow.cli.store:store",
        "Look into an event store: history, state at a time, verification, export.",
    ),
    "systemd": Named(
        "rabbitflow.cli.systemd:systemd",
        "Write systemd units for workers, or say what installed ones lack.",
    ),
    "topology": Named(
        "rabbitflow.cli.topology:topology",
        "Show, declare, compare or replace the exchanges and queues that modules need.",
    ),
    "worker": Named(
        "rabbitflow.cli.worker:worker",
        "Run the consumers of modules, each in a process of its own.",
    ),
}


class _Commands(click.Group):
    """A group whose commands are imported when they are called, so that --help is quick."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        named = COMMANDS.get(cmd_name)
        if named is None:
            return None
        module, _, name = named.path.partition(":")
        try:
            command: Any = getattr(importlib.import_module(module), name)
        except ConfigurationError as error:
            click.echo(f"rabbitflow: {error}", err=True)
            ctx.exit(EXIT_CONFIGURATION)
        return command if isinstance(command, click.Command) else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS[name].does) for name in self.list_commands(ctx)])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Complete a command's name without importing any of them."""
        names = [name for name in self.list_commands(ctx) if name.startswith(incomplete)]
        options = click.Command.shell_complete(self, ctx, incomplete)
        return [CompletionItem(name, help=COMMANDS[name].does) for name in names] + options


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="rabbitflow")
def main() -> None:
    """Announce what happened, let others react: event workers on RabbitMQ.

    Every option reads an environment variable too: --url is RABBITFLOW_URL, --namespace is
    RABBITFLOW_NAMESPACE.
    """
