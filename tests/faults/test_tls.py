"""TLS: the right certificates work end to end; each wrong one is a clear line."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import SecretStr

from rabbitflow import AccessRefused, BrokerError, BrokerUnavailable, ConfigurationError, Publisher
from rabbitflow.broker import close, connect
from rabbitflow.settings import Settings, load_settings
from tests.harness.certificates import Authority, TlsNode
from tests.harness.command import Command
from tests.harness.node import server_binary
from tests.harness.tlspeer import tls_peer
from tests.harness.waiting import eventually
from tests.harness.workers import Worker

PAYMENT = """
payment = Consumer("payment", retry=Retry.fixed(attempts=2, wait=1))

@payment.on("ORDER_PLACED")
async def charge(event: Event, ctx: Context) -> None:
    if ctx.attempt == 1:
        raise ConnectionError("the bank is away")
    ledger.write("payment", event.id)
"""

EXIT_CONFIGURATION = 78


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def strict(authority: Authority) -> Iterator[TlsNode]:
    """A node that wants a certificate of its clients."""
    if server_binary() is None:
        pytest.skip("TLS needs a broker of its own: apt-get install rabbitmq-server")
    broker = TlsNode(authority, "localhost", verify=True)
    try:
        broker.node.start()
        yield broker
    finally:
        broker.node.remove()


@pytest.fixture
def amqp_url(strict: TlsNode) -> str:
    return strict.url()


@pytest.fixture
def certified(settings: Settings, authority: Authority) -> Settings:
    certificate, key = authority.issue("client", "payment.example.com")
    files = {"tls_ca": authority.file, "tls_cert": certificate, "tls_key": key}
    return settings.model_copy(update=files)


async def refused(settings: Settings, kind: type[Exception] = AccessRefused) -> str:
    with pytest.raises(kind) as refusal:
        await close(await connect(settings, "a test"))
    said = str(refusal.value)
    del refusal
    gc.collect()  # the client library wants a running loop when a connection of its own goes
    assert "\n" not in said
    assert "guest:guest" not in said
    return said


async def test_worker_and_publish_go_by_tls_with_certificates_on_both_sides(
    certified: Settings, tmp_path: Path
) -> None:
    files = {
        f"RABBITFLOW_{name.upper()}": str(getattr(certified, name))
        for name in ("tls_ca", "tls_cert", "tls_key")
    }
    with Worker(certified, tmp_path) as worker:
        worker.module("payment", PAYMENT).start(**files)
        await worker.ready("payment")
        published = Command(certified, tmp_path)(
            "publish", "ORDER_PLACED", "--data", '{"orderId": "1"}', **files
        )
        assert published.returncode == 0, published.stderr
        async with Publisher(settings=certified) as publisher:  # in large frames, many at once
            await asyncio.gather(
                *(publisher.publish("ORDER_PLACED", {"text": "x" * 200_000}) for _ in range(20))
            )
        await eventually(
            lambda: len(worker.ledger.ids("payment")) == 21, within_s=30, what=worker.log
        )
        worker.signal()
        assert worker.exit_code() == 0


async def test_a_client_without_a_certificate_is_told_so(certified: Settings) -> None:
    bare = certified.model_copy(update={"tls_cert": None, "tls_key": None})
    assert "RABBITFLOW_TLS_CERT" in await refused(bare, BrokerError)


async def test_another_authority_is_one_line_and_exit_78(
    certified: Settings, tmp_path: Path
) -> None:
    other = certified.model_copy(update={"tls_ca": Authority(tmp_path / "other").file})
    assert "is not trusted" in await refused(other)
    with Worker(other, tmp_path) as worker:
        worker.module("payment", PAYMENT)
        worker.start(RABBITFLOW_TLS_CA=str(other.tls_ca))
        assert worker.exit_code() == EXIT_CONFIGURATION
        errors = [line for line in worker.log().splitlines() if " ERROR " in line]
        assert len(errors) == 1, worker.log()
        assert "is not trusted" in errors[0]
        assert "Traceback" not in worker.log()


async def test_nobody_is_trusted_whom_the_system_does_not_trust(certified: Settings) -> None:
    assert "is not trusted" in await refused(certified.model_copy(update={"tls_ca": None}))


async def test_a_certificate_for_another_host_is_refused(
    certified: Settings, strict: TlsNode
) -> None:
    url = SecretStr(strict.url("127.0.0.1"))
    said = await refused(certified.model_copy(update={"url": url}))
    assert "IP address mismatch" in said


async def test_an_expired_certificate_is_refused(certified: Settings, authority: Authority) -> None:
    async with tls_peer(*authority.issue("old", "localhost", is_expired=True)) as port:
        url = SecretStr(f"amqps://guest:guest@localhost:{port}/")
        said = await refused(certified.model_copy(update={"url": url}))
    assert "certificate has expired" in said


async def test_a_port_without_tls_is_named(certified: Settings, strict: TlsNode) -> None:
    url = SecretStr(f"amqps://guest:guest@localhost:{strict.node.port}/")
    said = await refused(certified.model_copy(update={"url": url}), BrokerUnavailable)
    assert "no TLS is spoken" in said


@pytest.mark.parametrize("name", ["tls_ca", "tls_cert"])
async def test_a_file_that_is_missing_or_no_certificate_is_named(
    certified: Settings, tmp_path: Path, name: str
) -> None:
    missing = tmp_path / "nowhere.pem"
    wrong = certified.model_copy(update={name: missing})
    assert str(missing) in await refused(wrong, ConfigurationError)
    missing.write_text("not a certificate")
    assert str(missing) in await refused(wrong, ConfigurationError)


async def test_files_may_be_named_in_the_url(certified: Settings, strict: TlsNode) -> None:
    query = f"cafile={certified.tls_ca}&certfile={certified.tls_cert}&keyfile={certified.tls_key}"
    settings = load_settings(url=f"{strict.url()}?{query}")
    await close(await connect(settings, "a test"))
