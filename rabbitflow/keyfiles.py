"""Files of keys: one a line, each with its name and what it is for.

A line is ``NAME KIND BASE64``, and for a public key the event types that it may announce, if not
all. Empty lines and those that begin with ``#`` are comments. Errors name a line, never what is on
it.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from rabbitflow.errors import ConfigurationError

PRIVATE, PUBLIC, SECRET = "ed25519-private", "ed25519", "aes256"
KEY_BYTES = 32
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")


class Key(NamedTuple):
    """A line of a file of keys. It is never shown whole.

    Fields:
        name: by which a signature or an encrypted value names it.
        kind: ``ed25519-private`` (signs), ``ed25519`` (verifies) or ``aes256`` (encrypts).
        material: the key itself, 32 bytes.
        event_types: what a public key may announce; empty for everything.
    """

    name: str
    kind: str
    material: bytes
    event_types: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"Key({self.name!r}, {self.kind!r}, …)"

    def line(self) -> str:
        """Return it as a line of a file, without its end."""
        material = base64.b64encode(self.material).decode()
        return " ".join((self.name, self.kind, material, *self.event_types))


def checked_name(name: str) -> str:
    """Return ``name``.

    Raises:
        ConfigurationError: it is none of a key.
    """
    if NAME.fullmatch(name) is None:
        raise ConfigurationError(
            "a key's name is 1 to 63 of A-Z, a-z, 0-9, '_' and '-', a letter or digit first"
        )
    return name


def read_keys(path: Path, kind: str) -> list[Key]:
    """Return the keys in a file, at least one, all of one kind and of different names.

    Raises:
        ConfigurationError: it can't be read, or a line of it is not such a key.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no text"
        raise ConfigurationError(f"the keys in {path} can't be read: {why}") from None
    keys: dict[str, Key] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        key = _key_of(line, kind)
        if key is None:
            types = " [EVENT_TYPE …]" if kind == PUBLIC else ""
            raise ConfigurationError(f"{path}, line {number}: not 'NAME {kind} BASE64{types}'")
        if key.name in keys:
            raise ConfigurationError(f"{path}, line {number}: a second key named {key.name}")
        keys[key.name] = key
    if not keys:
        raise ConfigurationError(f"there is no key in {path}")
    return list(keys.values())


def read_key(path: Path, kind: str) -> Key:
    """Return the only key in a file; errors as :func:`read_keys`."""
    key, *others = read_keys(path, kind)
    if others:
        raise ConfigurationError(f"{path} holds several keys, and one is used")
    return key


def write_keys(path: Path, keys: Iterable[Key], *, replace: bool = False) -> None:
    """Write a file that its owner alone may read. It appears whole or not at all.

    Raises:
        ConfigurationError: it exists and is not to be replaced, or can't be written.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.writelines(key.line() + "\n" for key in keys)
        if replace:
            part.replace(path)
        else:
            os.link(part, path)  # unlike a rename, it fails where the file is there
    except FileExistsError:
        raise ConfigurationError(
            f"{path} exists already, and a key that is lost can't be made again"
        ) from None
    except OSError as error:
        raise ConfigurationError(f"{path} can't be written: {error.strerror}") from None
    finally:
        part.unlink(missing_ok=True)


def is_open_to_all(path: Path) -> bool:
    """Whether every user of this host may read the file, or write it; False where it is not
    there."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    return bool(mode & (stat.S_IROTH | stat.S_IWOTH))


def _key_of(line: str, kind: str) -> Key | None:
    name, *rest = line.split()
    if len(rest) < 2 or rest[0] != kind or NAME.fullmatch(name) is None:
        return None
    event_types = tuple(rest[2:])
    if event_types and kind != PUBLIC:
        return None
    try:
        material = base64.b64decode(rest[1], validate=True)
    except (binascii.Error, ValueError):
        return None
    return Key(name, kind, material, event_types) if len(material) == KEY_BYTES else None
