"""An event of a known producer is told from every other, by its signature alone."""

from __future__ import annotations

import base64
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from rabbitflow import ConfigurationError, Event, EventError, Publisher, SyncPublisher
from rabbitflow.cli import main
from rabbitflow.doctor.checks import Severity, findings
from rabbitflow.doctor.facts import Facts
from rabbitflow.keyfiles import PRIVATE, PUBLIC, Key, is_open_to_all, read_keys, write_keys
from rabbitflow.keyring import announceable, check_key_files, secret_files
from rabbitflow.settings import Settings
from rabbitflow.signing import Signer, TrustedKeys
from rabbitflow.topology import SIGNATURE, SIGNED_BY, Names
from tests.unit.test_doctor import FACTS

SECRET = bytes(range(32))
SIGNER = Signer("checkout-1", SECRET)
NAMES = Names("shop")
TRUSTED = TrustedKeys([SIGNER.public()], NAMES)
TYPE, ID, BODY = "ORDER_PLACED", "0199", b'{"type": "ORDER_PLACED"}'
HEADERS = SIGNER.headers(NAMES.exchange(TYPE), ID, BODY)

texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=60)


def refusal(
    headers: dict[str, Any] = HEADERS,
    event_type: str | None = TYPE,
    event_id: str | None = ID,
    body: bytes = BODY,
    trusted: TrustedKeys = TRUSTED,
) -> str:
    with pytest.raises(EventError) as refused:
        trusted.verify(headers, event_type, event_id, body)
    return str(refused.value)


@given(st.from_regex(r"[A-Za-z][A-Za-z0-9_.-]{0,60}", fullmatch=True), texts, st.binary())
def test_what_was_signed_is_trusted(event_type: str, event_id: str, body: bytes) -> None:
    headers = SIGNER.headers(NAMES.exchange(event_type), event_id, body)
    TRUSTED.verify(headers, event_type, event_id, body)


@given(st.data())
def test_any_flipped_bit_is_refused(data: st.DataObject) -> None:
    """In the body, the id, the type, the namespace, the signature."""
    signature = base64.b64decode(HEADERS[SIGNATURE].removeprefix("v1="))
    event_type, event_id, body, namespace = TYPE, ID, BODY, "shop"

    def flipped(given: bytes) -> bytes:
        bit = data.draw(st.integers(0, len(given) * 8 - 1))
        changed = bytearray(given)
        changed[bit // 8] ^= 1 << bit % 8
        return bytes(changed)

    match data.draw(st.sampled_from(["body", "id", "type", "namespace", "signature"])):
        case "body":
            body = flipped(body)
        case "id":
            event_id = flipped(event_id.encode()).decode("latin-1")
        case "type":
            event_type = flipped(event_type.encode()).decode("latin-1")
        case "namespace":
            namespace = flipped(namespace.encode()).decode("latin-1")
        case "signature":
            signature = flipped(signature)
    headers = {**HEADERS, SIGNATURE: "v1=" + base64.b64encode(signature).decode()}
    elsewhere = TrustedKeys([SIGNER.public()], Names(namespace))
    assert "does not fit" in refusal(headers, event_type, event_id, body, elsewhere)


@given(texts, texts)
def test_no_byte_moves_from_one_part_to_another(event_id: str, rest: str) -> None:
    headers = SIGNER.headers(NAMES.exchange(TYPE), event_id, rest.encode() + BODY)
    assert "does not fit" in refusal(headers, event_id=event_id + rest)


def test_a_signature_can_be_written_as_the_docs_say_in_any_language() -> None:
    def part(text: str) -> bytes:
        return len(text.encode()).to_bytes(4, "big") + text.encode()

    signed = (
        b"rabbitflow signature v1"
        + part("checkout-1")
        + part("shop.events.ORDER_PLACED")
        + part("0199")
        + BODY
    )
    signature = Ed25519PrivateKey.from_private_bytes(SECRET).sign(signed)
    headers = {
        "x-rabbitflow-signed-by": "checkout-1",
        "x-rabbitflow-signature": "v1=" + base64.b64encode(signature).decode(),
    }
    assert headers == HEADERS
    TRUSTED.verify(headers, TYPE, ID, BODY)


@pytest.mark.parametrize(
    ("headers", "reason"),
    [
        ({}, "it is not signed"),
        ({SIGNED_BY: "checkout-1"}, "in a way that is not known"),
        ({SIGNATURE: HEADERS[SIGNATURE]}, "names no key"),
        ({**HEADERS, SIGNED_BY: "checkout-2"}, "key checkout-2, which is not trusted"),
        ({**HEADERS, SIGNED_BY: "a\x1b[31m"}, "names no key"),
        ({**HEADERS, SIGNED_BY: b"\xff"}, "names no key"),
        ({**HEADERS, SIGNATURE: HEADERS[SIGNATURE].replace("v1", "v2")}, "not known here"),
        ({**HEADERS, SIGNATURE: bytearray(64)}, "not known here"),
        ({**HEADERS, SIGNATURE: "v1=" + "A" * 40}, "holds no signature"),
        ({**HEADERS, SIGNATURE: "v1=***"}, "holds no signature"),
        ({**HEADERS, SIGNATURE: "v1=é"}, "holds no signature"),
    ],
)
def test_a_refusal_names_its_reason(headers: dict[str, Any], reason: str) -> None:
    assert reason in refusal(headers)


anything = st.none() | st.integers() | st.text() | st.binary() | st.lists(st.text())


@given(anything, anything, st.none() | st.text(), st.none() | st.text())
def test_whatever_anybody_writes_is_refused_as_an_event(
    name: Any, signature: Any, event_type: str | None, event_id: str | None
) -> None:
    refusal({SIGNED_BY: name, SIGNATURE: signature}, event_type, event_id)
    refusal({**HEADERS, SIGNATURE: signature}, event_type, event_id)
    refusal({**HEADERS, SIGNATURE: f"v1={signature}"}, event_type, event_id)


def test_what_is_signed_must_say_its_type_and_id_outside_the_body() -> None:
    assert "lacks its type or message id" in refusal(event_id=None)
    assert "lacks its type or message id" in refusal(event_type=None)


def test_a_key_that_may_announce_some_types_announces_no_other() -> None:
    trusted = TrustedKeys([SIGNER.public(["RIDE_COMPLETED"])], NAMES)
    assert "trusted, and not to announce ORDER_PLACED" in refusal(trusted=trusted)
    trusted = TrustedKeys([SIGNER.public(["RIDE_COMPLETED", TYPE])], NAMES)
    trusted.verify(HEADERS, TYPE, ID, BODY)


def test_a_key_is_rotated_while_both_are_trusted() -> None:
    successor = Signer("checkout-2", bytes(32))
    headers = successor.headers(NAMES.exchange(TYPE), ID, BODY)
    both = TrustedKeys([SIGNER.public(), successor.public()], NAMES)
    both.verify(HEADERS, TYPE, ID, BODY)
    both.verify(headers, TYPE, ID, BODY)
    assert "not trusted" in refusal(trusted=TrustedKeys([successor.public()], NAMES))
    # The name of one and the signature of the other are nobody's.
    assert "does not fit" in refusal({**HEADERS, SIGNED_BY: "checkout-2"}, trusted=both)


def test_keys_are_made_by_the_command_and_never_overwritten(tmp_path: Path) -> None:
    file = tmp_path / "checkout.key"
    run = CliRunner().invoke
    made = run(main, ["keys", "signing", "checkout-1", str(file), "--type", TYPE])
    assert made.exit_code == 0, made.output
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert run(main, ["keys", "public", str(file), "--type", TYPE]).output == made.output
    assert file.read_text().split()[2] not in made.output
    trusted = tmp_path / "trusted"
    trusted.write_text(f"# who announces what\n\n{made.output}")
    (key,) = read_keys(trusted, PUBLIC)
    assert key == Signer.read(file).public([TYPE])
    before = file.read_text()
    again = run(main, ["keys", "signing", "checkout-2", str(file)])
    assert again.exit_code == 78
    assert "exists already" in again.output
    assert file.read_text() == before
    assert sorted(tmp_path.iterdir()) == [file, trusted]
    for wrong in (["signing", "a b", str(tmp_path / "b")], ["public", str(file), "--type", "1"]):
        assert run(main, ["keys", *wrong]).exit_code == 78


GOOD = Key("checkout-1", PRIVATE, SECRET).line()


@pytest.mark.parametrize(
    ("written", "reason"),
    [
        ("", "there is no key in"),
        ("# only a comment\n", "there is no key in"),
        (f"{GOOD}\n{GOOD}", "line 2: a second key named checkout-1"),
        (f"{GOOD}\n{GOOD.replace('-1', '-2')}", "holds several keys, and one is used"),
        (GOOD.replace(PRIVATE, PUBLIC), "line 1: not 'NAME ed25519-private BASE64'"),
        (GOOD[:-4], "line 1: not 'NAME"),
        (GOOD + " ORDER_PLACED", "line 1: not 'NAME"),
        (GOOD.removeprefix("checkout-1 "), "line 1: not 'NAME"),
        (GOOD.replace("A", "é", 1), "line 1: not 'NAME"),
        ("\xff", "line 1: not 'NAME"),
    ],
)
def test_a_garbled_file_is_one_line_that_never_shows_a_key(
    tmp_path: Path, written: str, reason: str
) -> None:
    file = tmp_path / "key"
    file.write_text(written)
    settings = Settings(signing_key_file=file)
    for use in (
        lambda: check_key_files(settings),
        lambda: Publisher(settings=settings),
        lambda: SyncPublisher(settings=settings),
    ):
        with pytest.raises(ConfigurationError) as refused:
            use()
        assert reason in str(refused.value)
        assert "\n" not in str(refused.value)
        assert GOOD.split()[2][:8] not in str(refused.value)


@pytest.mark.parametrize("name", ["signing_key_file", "trusted_keys_file"])
def test_a_file_that_is_not_there_or_no_text_is_one_line(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigurationError, match="can't be read: No such file"):
        check_key_files(Settings(**{name: tmp_path / "none"}))
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigurationError, match="can't be read: it is no text"):
        check_key_files(Settings(**{name: tmp_path / "binary"}))
    check_key_files(Settings())


def test_a_worker_with_a_garbled_key_exits_78_before_it_starts(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(GOOD)
    said = CliRunner().invoke(
        main, ["worker", "nothing"], env={"RABBITFLOW_TRUSTED_KEYS_FILE": str(tmp_path / "keys")}
    )
    assert said.exit_code == 78
    assert said.output.count("\n") == 1
    assert GOOD.split()[2] not in said.output


def test_a_key_is_not_shown_with_its_material() -> None:
    key = Key("checkout-1", PRIVATE, SECRET)
    assert repr(SECRET) not in repr(key)
    assert GOOD.split()[2] not in repr(key)


def test_without_the_extra_what_needs_it_says_so_in_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "key").write_text(GOOD)
    settings = Settings(signing_key_file=tmp_path / "key")
    check_key_files(settings)
    for module in ("cryptography.hazmat.primitives.asymmetric", "cryptography"):
        monkeypatch.setitem(__import__("sys").modules, module, None)
    with pytest.raises(ConfigurationError, match=r"rabbitflow\[crypto\]"):
        Signer("a", SECRET)
    with pytest.raises(ConfigurationError, match=r"rabbitflow\[crypto\]"):
        TrustedKeys([], NAMES)
    with pytest.raises(ConfigurationError, match=r"rabbitflow\[crypto\]"):
        check_key_files(settings)
    Publisher(settings=Settings())


def found_with(settings: Settings) -> Facts:
    files = tuple(filter(is_open_to_all, secret_files(settings)))
    return replace(FACTS, open_files=files, announceable=announceable(settings))


def test_the_doctor_finds_a_key_that_everybody_may_read(tmp_path: Path) -> None:
    file = tmp_path / "key"
    write_keys(file, [Key("checkout-1", PRIVATE, SECRET)])
    settings = Settings(signing_key_file=file)
    assert findings(found_with(settings)) == []
    file.chmod(0o644)
    (found,) = findings(found_with(settings))
    assert found.severity is Severity.ERROR
    assert (found.about, found.advice) == (str(file), f"chmod o-rwx {file}")


def test_the_doctor_finds_events_that_no_trusted_key_may_announce(tmp_path: Path) -> None:
    file = tmp_path / "trusted"
    settings = Settings(trusted_keys_file=file)
    write_keys(file, [SIGNER.public(["RIDE_COMPLETED"])])
    (found,) = findings(found_with(settings))
    assert "no trusted key may announce ORDER_PLACED" in found.problem
    for allowed in (["ORDER_PLACED"], []):
        write_keys(file, [SIGNER.public(allowed)], replace=True)
        assert findings(found_with(settings)) == []


def test_nothing_is_signed_and_nobody_is_asked_where_no_key_is_named() -> None:
    assert Signer.of(Settings()) is None
    assert TrustedKeys.of(Settings()) is None
    assert Event(type="A", data=1).encode()
