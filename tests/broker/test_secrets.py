"""A full run with secrets that nobody would guess: they are nowhere to be seen afterwards."""

from __future__ import annotations

import contextlib
import secrets
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from click.testing import CliRunner
from pydantic import SecretStr
from yarl import URL

from rabbitflow import Encrypted, Publisher
from rabbitflow.cipher import Cipher
from rabbitflow.cli import main
from rabbitflow.keyfiles import PRIVATE, SECRET, Key, write_keys
from rabbitflow.settings import Settings
from rabbitflow.signing import Signer
from tests.harness.broker import Probe
from tests.harness.command import Command
from tests.harness.node import Broker, free_port
from tests.harness.waiting import eventually
from tests.harness.workers import Worker

pytestmark = pytest.mark.only_on("rabbitmq", reason="the embedded broker has no users to add")

PAYMENT = """
from pydantic import BaseModel
from rabbitflow import Encrypted

class Order(BaseModel):
    orderId: str
    card: Encrypted[str] | None = None

payment = Consumer("payment", retry=Retry.fixed(attempts=2, wait=1))

@payment.on("ORDER_PLACED")
async def charge(event: Event[Order], ctx: Context) -> None:
    ctx.log.info("charging %s", event)
    if event.data.orderId == "crash" and not Path("crashed").exists():
        Path("crashed").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if event.data.orderId == "fail":
        raise ConnectionError(f"the bank is away for {event.data!r}")
    assert event.data.orderId != "good" or len(event.data.card.get_secret_value()) > 20
    ledger.write("payment", event.id)
"""


@pytest.fixture
def secretive(rabbitmq: Broker, settings: Settings) -> Iterator[tuple[Settings, str]]:
    """A user whose password has characters that a URL must escape, and that password."""
    if rabbitmq.ctl is None:
        pytest.skip("a user takes rabbitmqctl on the broker's own machine")
    user, password = f"{settings.namespace}-secret", f"s3cr3t-{secrets.token_hex(12)}-/@?"
    rabbitmq.ctl("add_user", user, password)
    try:
        rabbitmq.ctl("set_permissions", user, ".*", ".*", ".*")
        url = URL(rabbitmq.url).with_user(user).with_password(password)
        yield settings.model_copy(update={"url": SecretStr(str(url))}), password
    finally:
        rabbitmq.ctl("delete_user", user)


class Watch:
    """Looks for secrets, wherever others can look."""

    def __init__(self, *secrets: str) -> None:
        self._needles = [secret.encode() for secret in secrets]
        self.found: list[str] = []
        self.looked_at: dict[str, int] = {}

    def look(self, place: str, said: bytes | str) -> None:
        """Remember where it is."""
        content = said.encode() if isinstance(said, str) else said
        self.looked_at[place] = self.looked_at.get(place, 0) + len(content)
        self.found += [place for needle in self._needles if needle in content]

    def arguments(self) -> None:
        """Look at the arguments of every process here, as ps shows them."""
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                arguments = (process / "cmdline").read_bytes()
                self.look("arguments", arguments)
                self.look("name", (process / "comm").read_bytes())


def answer(port: int, path: str) -> bytes:
    """What the worker says of itself, be it well or not."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/{path}", timeout=10) as said:
            return bytes(said.read())
    except urllib.error.HTTPError as said:
        return said.read()


async def test_no_secret_is_in_a_log_argument_metric_error_or_state_of_a_full_run(
    secretive: tuple[Settings, str], probe: Probe, tmp_path: Path
) -> None:
    """A broker's password, the key that signs, the key that encrypts, and a value it encrypted."""
    settings, password = secretive
    signing, encryption = (Key(kind, kind, secrets.token_bytes(32)) for kind in (PRIVATE, SECRET))
    card = f"4111-{secrets.token_hex(12)}"
    signing_file, trusted_file, encryption_file = (
        tmp_path / name for name in ("signing", "trusted", "encryption")
    )
    signer = Signer(signing.name, signing.material)
    write_keys(signing_file, [signing])
    write_keys(trusted_file, [signer.public()])
    write_keys(encryption_file, [encryption])
    keys = {
        "RABBITFLOW_SIGNING_KEY_FILE": str(signing_file),
        "RABBITFLOW_TRUSTED_KEYS_FILE": str(trusted_file),
        "RABBITFLOW_ENCRYPTION_KEYS_FILE": str(encryption_file),
    }
    written = [key.line().split()[2] for key in (signing, encryption)]
    # The part of the password before what a URL escapes is the same in both forms.
    watch = Watch(password.rpartition("-")[0], card, *(text.rstrip("=") for text in written))
    port = free_port()
    rabbitflow = Command(settings, tmp_path, TEST_LEDGER=str(tmp_path / "ledger.db"), **keys)
    producer = settings.model_copy(update={"signing_key_file": signing_file})
    publisher = Publisher(settings=producer, cipher=Cipher([encryption]))

    def run(*arguments: str, code: int = 0, **env: str) -> str:
        process = rabbitflow(*arguments, **env)
        assert process.returncode == code, process.stderr
        watch.look(f"rabbitflow {arguments[0]}", process.stdout + process.stderr)
        return process.stdout

    with Worker(settings, tmp_path) as worker:
        worker.module("payment", PAYMENT).start(
            "--log-level",
            "DEBUG",
            RABBITFLOW_METRICS_PORT=str(port),
            PYTHONASYNCIODEBUG="1",
            **keys,
        )
        await worker.ready("payment")
        watch.arguments()
        done = set()
        for order in ("good", "fail", "crash"):
            event = await publisher.publish(
                "ORDER_PLACED", {"orderId": order, "card": Encrypted(card)}
            )
            watch.look("event", repr(event))
            if order != "fail":
                done.add(event.id)
        await publisher.close()
        done.add(run("publish", "ORDER_PLACED", "--data", '{"orderId": "plain"}').strip())
        await eventually(lambda: probe.depth(probe.names.dead("payment")) == 1, within_s=30)
        await eventually(lambda: set(worker.ledger.ids("payment")) == done, within_s=30)
        watch.arguments()
        for path in ("metrics", "healthz", "readyz"):
            watch.look(path, answer(port, path))
        run("status", "services", "--json")
        run("doctor", "services", "--json")
        run("dlq", "list", "payment", "--json")
        run("topology", "diff", "services")
        dead = probe.take(probe.names.dead("payment"))
        assert dead is not None
        watch.look("dead letter", f"{dead[0]} {dead[2]!r}")
        # Errors: a wrong vhost, a wrong port, a malformed URL, all with the password in them.
        for mistake, code in {
            settings.broker_url.removesuffix("/") + "/nowhere": 1,
            str(URL(settings.broker_url).with_port(free_port())): 1,
            settings.broker_url.replace("amqp://", "http://"): 78,
            settings.broker_url.replace("%2F", "/").replace("%3F", "?"): 78,
        }.items():
            run("publish", "ORDER_PLACED", "--data", "{}", code=code, RABBITFLOW_URL=mistake)
        # Keys in the place of other keys, and one that ends too early.
        garbled = tmp_path / "garbled"
        garbled.write_text(signing.line()[:-6])
        for setting, file in {
            "RABBITFLOW_SIGNING_KEY_FILE": encryption_file,
            "RABBITFLOW_TRUSTED_KEYS_FILE": signing_file,
            "RABBITFLOW_ENCRYPTION_KEYS_FILE": garbled,
        }.items():
            said = CliRunner().invoke(main, ["worker", "services"], env={setting: str(file)})
            assert said.exit_code == 78
            watch.look("a garbled key", said.output)
        descendants = [psutil.Process(worker.pid), *worker.children()]
        assert len(descendants) >= 2
        worker.signal()
        worker.exit_code()
        watch.look("worker's log", worker.log())
    for kept in filter(Path.is_file, settings.state_dir.rglob("*")):
        watch.look("state", kept.read_bytes())
    assert watch.found == []
    assert all(watch.looked_at[place] for place in ("arguments", "metrics", "worker's log"))
    # The search itself works: the environment, which its own user may read, does hold it.
    watch.look("environment", "\n".join(rabbitflow.environment.values()))
    watch.look("files", signing_file.read_text() + encryption_file.read_text() + card)
    assert watch.found == ["environment", "files", "files", "files"]
