"""The files of keys that a process is told of by its settings."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from rabbitflow.errors import ConfigurationError
from rabbitflow.keyfiles import PRIVATE, PUBLIC, SECRET, read_key, read_keys
from rabbitflow.settings import Settings


def check_key_files(settings: Settings) -> None:
    """Look whether the files can be used, without the library that works with what is in them.

    Raises:
        ConfigurationError: one can't be read, or holds something else; or that library, the extra
            ``crypto``, is not installed.
    """
    if settings.signing_key_file is not None:
        read_key(settings.signing_key_file, PRIVATE)
    if settings.trusted_keys_file is not None:
        read_keys(settings.trusted_keys_file, PUBLIC)
    if settings.encryption_keys_file is not None:
        read_keys(settings.encryption_keys_file, SECRET)
    named = settings.signing_key_file, settings.trusted_keys_file, settings.encryption_keys_file
    if any(named) and find_spec("cryptography") is None:
        raise ConfigurationError(
            "keys need the extra crypto; install it with: pip install 'rabbitflow[crypto]'"
        )


def secret_files(settings: Settings) -> list[Path]:
    """Return the files that hold a secret, keys and credentials."""
    named = (
        settings.signing_key_file,
        settings.encryption_keys_file,
        settings.tls_key,
        settings.url_file,
        settings.database_url_file,
    )
    return [path for path in named if path is not None]


def announceable(settings: Settings) -> frozenset[str] | None:
    """Return what the trusted keys may announce together; None where that is everything.

    Raises:
        ConfigurationError: their file can't be used.
    """
    if settings.trusted_keys_file is None:
        return None
    limits = [key.event_types for key in read_keys(settings.trusted_keys_file, PUBLIC)]
    return frozenset().union(*limits) if all(limits) else None
