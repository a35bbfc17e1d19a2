"""Certificates of a test's own authority, and RabbitMQ nodes that show them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import trustme

from tests.harness.node import PrivateNode, free_port


class Authority:
    """An authority that a test made, with its files in a directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._ca = trustme.CA()
        directory.mkdir(parents=True, exist_ok=True)
        self.file = directory / "ca.pem"
        self._ca.cert_pem.write_to_path(self.file)

    def issue(self, name: str, identity: str, *, is_expired: bool = False) -> tuple[Path, Path]:
        """Return the files of a certificate and of its key."""
        until = datetime.now(UTC) - timedelta(days=1) if is_expired else None
        issued = self._ca.issue_cert(identity, not_after=until)
        certificate, key = self._directory / f"{name}.pem", self._directory / f"{name}.key"
        certificate.unlink(missing_ok=True)
        for blob in issued.cert_chain_pems:
            blob.write_to_path(certificate, append=True)
        issued.private_key_pem.write_to_path(key)
        return certificate, key


class TlsNode:
    """A private node with a port for TLS, which wants a client's certificate where it is told."""

    def __init__(self, authority: Authority, identity: str, *, verify: bool = False) -> None:
        certificate, key = authority.issue(f"node-{free_port()}", identity)
        self.node = PrivateNode()
        self.port = free_port()
        with (self.node.directory / "rabbitmq.conf").open("a") as configuration:
            configuration.write(
                f"listeners.ssl.1 = 127.0.0.1:{self.port}\n"
                f"ssl_options.cacertfile = {authority.file}\n"
                f"ssl_options.certfile = {certificate}\n"
                f"ssl_options.keyfile = {key}\n"
                f"ssl_options.verify = {'verify_peer' if verify else 'verify_none'}\n"
                f"ssl_options.fail_if_no_peer_cert = {'true' if verify else 'false'}\n"
            )

    def url(self, host: str = "localhost") -> str:
        """Where it listens."""
        return f"amqps://guest:guest@{host}:{self.port}/"
