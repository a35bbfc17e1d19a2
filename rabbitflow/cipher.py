"""The cipher of encrypted fields: AES-256-GCM, bound to an event's id, by one of several keys."""

from __future__ import annotations

import base64
import binascii
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Self

from rabbitflow.errors import ConfigurationError
from rabbitflow.keyfiles import NAME, SECRET, Key, read_keys

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

TOKEN = "rfe1."
"""What an encrypted value begins with: ``rfe1.KEY.BASE64``."""

_CONTEXT = b"rabbitflow encryption v1"
_NONCE_BYTES, _TAG_BYTES = 12, 16


class Cipher:
    """Encrypts with one key, and reads what was encrypted with any of several.

    Args:
        keys: the first encrypts.
    """

    def __init__(self, keys: Sequence[Key]) -> None:
        aesgcm = _aesgcm()
        if not keys:
            raise ConfigurationError("a cipher needs a key")
        self._keys: dict[str, AESGCM] = {key.name: aesgcm(key.material) for key in keys}
        self._name = keys[0].name

    @classmethod
    def read(cls, path: Path) -> Self:
        """Return the cipher whose keys a file holds (``rabbitflow keys encryption``).

        Raises:
            ConfigurationError: it can't be read or holds something else, or the extra ``crypto`` is
                not installed.
        """
        return cls(read_keys(path, SECRET))

    @classmethod
    def at(cls, path: Path | None) -> Self | None:
        """:meth:`read` the file that a setting names; None where it names none."""
        return None if path is None else cls.read(path)

    def seal(self, plaintext: bytes, event_id: str) -> str:
        """Return ``plaintext`` as text for an event's JSON."""
        # Random: a key is good for 2 ** 32 values (NIST SP 800-38D, section 8.3).
        nonce = os.urandom(_NONCE_BYTES)
        sealed = self._keys[self._name].encrypt(nonce, plaintext, _bound_to(self._name, event_id))
        return f"{TOKEN}{self._name}.{base64.urlsafe_b64encode(nonce + sealed).decode()}"

    def has_key_of(self, token: str) -> bool:
        """Whether it could have been encrypted with one of the keys."""
        return token.removeprefix(TOKEN).partition(".")[0] in self._keys

    def open(self, token: str, event_id: str) -> bytes:
        """Return what was encrypted.

        Raises:
            ValueError: there is no such key, or it is not what was encrypted for this event. The
                text says neither value nor key.
        """
        from cryptography.exceptions import InvalidTag  # noqa: PLC0415 - the extra crypto

        name, _, written = token.removeprefix(TOKEN).partition(".")
        key = self._keys.get(name)
        if key is None:
            named = f"key {name}" if NAME.fullmatch(name) else "a key"
            raise ValueError(f"it is encrypted with {named}, which is not known here")
        try:
            sealed = base64.b64decode(written, altchars=b"-_", validate=True)
            # Base64 has several forms of some texts, and one of them is what was written.
            is_ours = base64.urlsafe_b64encode(sealed).decode() == written
            if not is_ours or len(sealed) < _NONCE_BYTES + _TAG_BYTES:
                raise InvalidTag
            nonce, sealed = sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:]
            return key.decrypt(nonce, sealed, _bound_to(name, event_id))
        except (InvalidTag, binascii.Error, ValueError):
            raise ValueError("it was changed, or encrypted for another event") from None


def is_token(value: object) -> bool:
    """Whether a value is an encrypted one."""
    return isinstance(value, str) and value.startswith(TOKEN)


def _bound_to(name: str, event_id: str) -> bytes:
    parts = [_CONTEXT]
    for text in (name, event_id):
        encoded = text.encode("utf-8", "surrogatepass")
        parts += (len(encoded).to_bytes(4), encoded)
    return b"".join(parts)


def _aesgcm() -> type[AESGCM]:
    try:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # noqa: PLC0415
    except ImportError:
        raise ConfigurationError(
            "encrypted fields need the extra crypto; install it with:"
            " pip install 'rabbitflow[crypto]'"
        ) from None
    return AESGCM
