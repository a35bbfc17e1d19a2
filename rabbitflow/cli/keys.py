"""``rabbitflow keys``: make the keys that events are signed and their fields encrypted with."""

from __future__ import annotations

import os
from pathlib import Path

import click

from rabbitflow.cli.options import errors_in_one_line
from rabbitflow.errors import ConfigurationError
from rabbitflow.event import is_event_type
from rabbitflow.keyfiles import KEY_BYTES, PRIVATE, SECRET, Key, checked_name, read_keys, write_keys
from rabbitflow.signing import Signer

type_option = click.option(
    "--type", "types", multiple=True, metavar="TYPE", help="All that it may announce; repeatable."
)


@click.group()
def keys() -> None:
    """Make keys: to sign what a producer announces, to know whose it is, to encrypt fields of it.

    The docs say how they are rotated: docs/security.md.
    """


@keys.command()
@click.argument("name")
@click.argument("file", type=click.Path(path_type=Path))
@type_option
@errors_in_one_line
def signing(name: str, file: Path, types: tuple[str, ...]) -> None:
    """Write a new private key NAME to FILE, and print the line of its public half.

    The producer gets FILE (RABBITFLOW_SIGNING_KEY_FILE); the line goes into the file of trusted
    keys that consumers get (RABBITFLOW_TRUSTED_KEYS_FILE). FILE is never overwritten.
    """
    key = Key(checked_name(name), PRIVATE, os.urandom(KEY_BYTES))
    line = Signer(key.name, key.material).public(_checked(types)).line()
    write_keys(file, [key])
    click.echo(line)


@keys.command()
@click.argument("file", type=click.Path(path_type=Path))
@type_option
@errors_in_one_line
def public(file: Path, types: tuple[str, ...]) -> None:
    """Print the line of the public half of the private key in FILE."""
    click.echo(Signer.read(file).public(_checked(types)).line())


@keys.command()
@click.argument("name")
@click.argument("file", type=click.Path(path_type=Path))
@errors_in_one_line
def encryption(name: str, file: Path) -> None:
    """Write a new key NAME for encrypted fields to FILE, or put it first in FILE.

    The first key encrypts, and every key of the file decrypts (RABBITFLOW_ENCRYPTION_KEYS_FILE).
    """
    older = read_keys(file, SECRET) if file.exists() else []
    if any(key.name == name for key in older):
        raise ConfigurationError(f"{file} has a key named {name} already")
    key = Key(checked_name(name), SECRET, os.urandom(KEY_BYTES))
    write_keys(file, [key, *older], replace=bool(older))
    said = f"; it still decrypts {', '.join(key.name for key in older)}" if older else ""
    click.echo(f"{file} encrypts with {name} now{said}")


def _checked(types: tuple[str, ...]) -> tuple[str, ...]:
    for event_type in types:
        if not is_event_type(event_type):
            raise ConfigurationError(f"--type: {event_type!r} is no event type")
    return types
