"""TLS to the broker: whose certificate is believed, which one is shown, what went wrong.

The certificate authority and the host name are verified unless the URL says ``no_verify_ssl=1``.
Files are read anew for each connection, so that renewed certificates need no restart.
"""

from __future__ import annotations

import logging
import ssl
from pathlib import Path

from aiormq.exceptions import IncompatibleProtocolError
from yarl import URL

from rabbitflow.errors import AccessRefused, BrokerError, BrokerUnavailable, ConfigurationError
from rabbitflow.settings import Settings

_ASKS_FOR_CERTIFICATE = ("CERTIFICATE_REQUIRED", "HANDSHAKE_FAILURE", "BAD_CERTIFICATE")

logger = logging.getLogger(__name__)


def is_meant(url: URL) -> bool:
    """Whether the connection goes by TLS."""
    return url.scheme == "amqps"


def context(url: URL, settings: Settings) -> ssl.SSLContext | None:
    """Return how to connect to ``url``; None where it goes without TLS.

    ``cafile``, ``certfile`` and ``keyfile`` of the URL's query win over the settings.

    Raises:
        ConfigurationError: a file can't be read, or holds something else.
    """
    if not is_meant(url):
        return None
    ca = url.query.get("cafile") or settings.tls_ca
    certificate = url.query.get("certfile") or settings.tls_cert
    key = url.query.get("keyfile") or settings.tls_key
    if key and not certificate:
        raise ConfigurationError("RABBITFLOW_TLS_KEY is set, and RABBITFLOW_TLS_CERT is not")
    # At least TLS 1.2, from Python 3.10 on.
    made = _made(ca)
    if certificate:
        try:
            # An encrypted key would otherwise ask for its password at the terminal.
            made.load_cert_chain(certificate, key, password=lambda: "")
        except (OSError, ValueError) as error:
            held = " and ".join(str(Path(file)) for file in (certificate, key) if file)
            raise ConfigurationError(
                f"{held} can't be used as the client's certificate and its key: {_said(error)}"
            ) from error
    if url.query.get("no_verify_ssl", "0") != "0":
        logger.warning("the broker at %s may be anybody: no_verify_ssl is set", url.host)
        made.check_hostname = False
        made.verify_mode = ssl.CERT_NONE
    return made


def _made(ca: str | Path | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cafile=ca)
    except OSError as error:
        raise ConfigurationError(
            f"{ca} can't be used as certificate authority (RABBITFLOW_TLS_CA): {_said(error)}"
        ) from error


def refusal(error: BaseException, url: URL, shown: str, settings: Settings) -> BrokerError | None:
    """Say why no connection came of it, where TLS is why; None where it is not."""
    if not is_meant(url):
        return None
    # What ends the first exchange comes wrapped by the client library.
    cause = error.__cause__ or error
    if isinstance(cause, ssl.SSLCertVerificationError):
        return AccessRefused(
            f"the certificate of the broker at {shown} is not trusted: {cause.verify_message};"
            " check RABBITFLOW_TLS_CA, the host name in RABBITFLOW_URL, and the certificate's dates"
        )
    if isinstance(cause, ssl.SSLError) and cause.reason == "WRONG_VERSION_NUMBER":
        return BrokerUnavailable(
            f"no TLS is spoken at {shown}; is it the port of amqps:// (5671 by default)?"
        )
    if isinstance(cause, ssl.SSLError) and any(
        reason in (cause.reason or "") for reason in _ASKS_FOR_CERTIFICATE
    ):
        return AccessRefused(
            f"the broker at {shown} refused the client's certificate, or misses one:"
            " check RABBITFLOW_TLS_CERT and RABBITFLOW_TLS_KEY"
        )
    # With TLS 1.3 a server asks for it after the handshake, and often only hangs up.
    hung_up = isinstance(error, IncompatibleProtocolError) or isinstance(
        cause, ConnectionResetError
    )
    if hung_up and not (settings.tls_cert or url.query.get("certfile")):
        return BrokerUnavailable(
            f"the broker at {shown} hung up after the TLS handshake: does it want a client's"
            " certificate (RABBITFLOW_TLS_CERT, RABBITFLOW_TLS_KEY)?"
        )
    return None


def _said(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__
