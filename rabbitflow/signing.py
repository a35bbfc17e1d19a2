"""Signatures: who announced an event, proven by a header that goes wherever the event goes.

A signature covers the exchange (so namespace and type), the id and the body, byte for byte, and no
other header or property. docs/security.md says how to write one in another language.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from rabbitflow.errors import ConfigurationError, EventError
from rabbitflow.keyfiles import (
    KEY_BYTES,
    NAME,
    PRIVATE,
    PUBLIC,
    Key,
    checked_name,
    read_key,
    read_keys,
)
from rabbitflow.settings import Settings
from rabbitflow.topology import SIGNATURE, SIGNED_BY, Names

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

SCHEME = "v1="
_CONTEXT = b"rabbitflow signature v1"
_SIGNATURE_BYTES = 64


class Signer:
    """Signs what a producer announces, by Ed25519 (RFC 8032).

    Args:
        name: of the key; consumers look its public half up by it.
        material: the private key, 32 bytes.
    """

    def __init__(self, name: str, material: bytes) -> None:
        ed25519 = _ed25519()
        if len(material) != KEY_BYTES:
            raise ConfigurationError(f"an Ed25519 key has {KEY_BYTES} bytes")
        self.name = checked_name(name)
        self._key = ed25519.Ed25519PrivateKey.from_private_bytes(material)

    @classmethod
    def read(cls, path: Path) -> Self:
        """Return the signer whose key a file holds (``rabbitflow keys signing``).

        Raises:
            ConfigurationError: it can't be read or holds no such key, or the extra ``crypto`` is
                not installed.
        """
        key = read_key(path, PRIVATE)
        return cls(key.name, key.material)

    @classmethod
    def of(cls, settings: Settings) -> Self | None:
        """Return the signer of the settings; None where they name no key."""
        path = settings.signing_key_file
        return None if path is None else cls.read(path)

    def headers(self, exchange: str, event_id: str, body: bytes) -> dict[str, str]:
        """Return the headers that say who announced an event."""
        signature = self._key.sign(_signed(self.name, exchange, event_id, body))
        return {SIGNED_BY: self.name, SIGNATURE: SCHEME + base64.b64encode(signature).decode()}

    def public(self, event_types: Iterable[str] = ()) -> Key:
        """Return the line for the trusted keys of consumers: the public half, and what it may
        announce, if not everything."""
        material = self._key.public_key().public_bytes_raw()
        return Key(self.name, PUBLIC, material, tuple(event_types))


class TrustedKeys:
    """Tells events of known producers from all others.

    Args:
        keys: the public keys, and what each may announce.
        names: of the namespace.
    """

    def __init__(self, keys: Iterable[Key], names: Names) -> None:
        ed25519 = _ed25519()
        self._names = names
        self._keys: dict[str, tuple[Ed25519PublicKey, frozenset[str]]] = {
            key.name: (
                ed25519.Ed25519PublicKey.from_public_bytes(key.material),
                frozenset(key.event_types),
            )
            for key in keys
        }

    @classmethod
    def of(cls, settings: Settings) -> Self | None:
        """Return the trusted keys of the settings; None where they name none, and everybody is
        trusted.

        Raises:
            ConfigurationError: the file can't be read or holds something else, or the extra
                ``crypto`` is not installed.
        """
        path = settings.trusted_keys_file
        return None if path is None else cls(read_keys(path, PUBLIC), Names(settings.namespace))

    def verify(
        self,
        headers: Mapping[str, Any],
        event_type: str | None,
        event_id: str | None,
        body: bytes,
    ) -> None:
        """Return where an event was announced by a producer that is trusted with its type.

        Args:
            headers: of the message.
            event_type: as the message says outside its body.
            event_id: the message id.
            body: as it came; it is not parsed.

        Raises:
            EventError: it was not, or somebody changed it; the text says which, and no key.
        """
        name, written = headers.get(SIGNED_BY), headers.get(SIGNATURE)
        if name is None and written is None:
            raise EventError("it is not signed, and only events of trusted producers are handled")
        if not isinstance(name, str) or NAME.fullmatch(name) is None:
            raise EventError(f"it is signed, and {SIGNED_BY} names no key")
        known = self._keys.get(name)
        if known is None:
            raise EventError(f"it is signed with key {name}, which is not trusted here")
        key, allowed = known
        if event_type is None or event_id is None:
            raise EventError("it is signed, and lacks its type or message id, which are signed too")
        if allowed and event_type not in allowed:
            raise EventError(f"key {name} is trusted, and not to announce {event_type[:128]}")
        signed = _signed(name, self._names.exchange(event_type), event_id, body)
        if not _fits(key, _signature_of(written), signed):
            raise EventError(
                f"the signature with key {name} does not fit: body, id, type or namespace are not"
                " what was signed"
            )


def _signed(name: str, exchange: str, event_id: str, body: bytes) -> bytes:
    """Return the bytes that are signed: no two different events have the same."""
    parts = [_CONTEXT]
    for text in (name, exchange, event_id):
        encoded = text.encode("utf-8", "surrogatepass")
        parts += (len(encoded).to_bytes(4), encoded)
    return b"".join((*parts, body))


def _signature_of(written: object) -> bytes:
    if not isinstance(written, str) or not written.startswith(SCHEME):
        raise EventError(f"it is signed in a way that is not known here, not by {SCHEME}…")
    try:
        signature = base64.b64decode(written.removeprefix(SCHEME), validate=True)
    except (binascii.Error, ValueError):
        signature = b""
    if len(signature) != _SIGNATURE_BYTES:
        raise EventError(f"{SIGNATURE} holds no signature")
    return signature


def _fits(key: Ed25519PublicKey, signature: bytes, signed: bytes) -> bool:
    from cryptography.exceptions import InvalidSignature  # noqa: PLC0415 - the extra crypto

    try:
        key.verify(signature, signed)
    except InvalidSignature:
        return False
    return True


def _ed25519() -> Any:
    try:
        from cryptography.hazmat.primitives.asymmetric import ed25519  # noqa: PLC0415
    except ImportError:
        raise ConfigurationError(
            "signatures need the extra crypto; install it with: pip install 'rabbitflow[crypto]'"
        ) from None
    return ed25519
