"""An encrypted field is read by who has the key, for the event it was written for; shown never."""

from __future__ import annotations

import dataclasses
import json
import logging
import pickle
import stat
import traceback
from datetime import date
from pathlib import Path
from typing import Any, Generic, TypeVar

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from rabbitflow import ConfigurationError, Encrypted, Event, EventError, Upcasters
from rabbitflow.cipher import TOKEN, Cipher
from rabbitflow.cli import main
from rabbitflow.doctor.checks import findings
from rabbitflow.encryption import holds_encrypted, opened
from rabbitflow.event import EventDecoder
from rabbitflow.keyfiles import SECRET, Key, read_keys
from rabbitflow.keyring import check_key_files
from rabbitflow.settings import Settings
from rabbitflow.upcast import UpcastingDecoder
from tests.unit.test_event import json_data
from tests.unit.test_signing import found_with

CIPHER = Cipher([Key("k1", SECRET, bytes(32))])
CARD = "4111-1111-1111-1111"


class Card(BaseModel):
    number: str
    valid: date


class Order(BaseModel):
    model_config = ConfigDict(hide_input_in_errors=True)

    number: int
    card: Encrypted[str]


class Wallet(BaseModel):
    main: Encrypted[Card]
    others: list[Encrypted[int]] = []
    named: dict[str, Encrypted[str] | None] = {}


@dataclasses.dataclass
class Plain:
    card: Encrypted[str]


DataT = TypeVar("DataT")


class Page(BaseModel, Generic[DataT]):
    children: list[Page[DataT]] = []
    item: DataT


EVENT = Event(type="ORDER_PLACED", data=Order(number=1, card=CARD))
BODY = EVENT.encode(CIPHER)


def token_of(body: bytes) -> str:
    token = json.loads(body)["data"]["card"]
    assert isinstance(token, str)
    return token


def refusal(body: bytes, cipher: Cipher | None = CIPHER, data_type: Any = Order) -> str:
    with pytest.raises(EventError) as refused:
        EventDecoder(data_type, cipher)(body)
    shown = "".join(traceback.format_exception(refused.value))
    assert CARD not in shown
    return str(refused.value)


@given(json_data)
def test_any_value_comes_back_and_is_on_no_wire(value: Any) -> None:
    event = Event(type="A", data={"secret": Encrypted(value)})
    body = event.encode(CIPHER)
    assert json.loads(body)["data"]["secret"].startswith(TOKEN)
    read = EventDecoder(dict[str, Encrypted[Any]], CIPHER)(body)
    assert read.data["secret"].get_secret_value() == value


@pytest.mark.parametrize(
    "data",
    [
        Wallet(
            main=Card(number=CARD, valid=date(2027, 1, 31)),
            others=[1, 2],
            named={"a": CARD, "b": None},
        ),
        Plain(Encrypted(CARD)),
        Page[Encrypted[str]](item=CARD, children=[Page[Encrypted[str]](item="x")]),
    ],
    ids=lambda data: type(data).__name__,
)
def test_a_field_is_encrypted_wherever_it_is(data: Any) -> None:
    event = Event(type="A", data=data)
    body = event.encode(CIPHER)
    assert CARD.encode() not in body
    read = EventDecoder(type(data), CIPHER)(body)
    assert read.data == data
    assert CARD not in repr(read)


def test_types_without_one_are_known_and_cost_nothing() -> None:
    for data_type in (Any, dict, Card, list[Card], Page[int]):
        assert not holds_encrypted(TypeAdapter(data_type).core_schema)
    for data_type in (Order, Plain, list[Order | None], Page[Encrypted[str]], Encrypted[Any]):
        assert holds_encrypted(TypeAdapter(data_type).core_schema)


@given(st.data())
def test_any_flipped_bit_is_refused(data: st.DataObject) -> None:
    token = token_of(BODY)
    at = data.draw(st.integers(len(TOKEN), len(token) - 1))
    changed = token[:at] + chr(ord(token[at]) ^ 1 << data.draw(st.integers(0, 6))) + token[at + 1 :]
    body = json.dumps({**json.loads(BODY), "data": {"number": 1, "card": changed}}).encode()
    assert "data.card" in refusal(body)


@given(st.text())
def test_whatever_anybody_writes_as_a_token_is_refused_as_a_value(text: str) -> None:
    for token in (text, TOKEN + text, f"{TOKEN}k1.{text}"):
        with pytest.raises(ValueError, match=r"which is not known here|it was changed"):
            CIPHER.open(token, EVENT.id)


def test_in_another_event_it_opens_for_nobody() -> None:
    other = Event(type="ORDER_PLACED", data={"number": 2, "card": token_of(BODY)})
    assert "encrypted for another event" in refusal(other.encode())


def test_every_event_is_encrypted_anew() -> None:
    assert token_of(EVENT.encode(CIPHER)) != token_of(EVENT.encode(CIPHER))


def test_without_a_key_a_model_that_names_the_field_refuses_it_and_others_see_a_text() -> None:
    assert "there is no key" in refusal(BODY, None)
    other = Cipher([Key("k2", SECRET, bytes(32))])
    assert "encrypted with key k1, which is not known here" in refusal(BODY, other)
    assert EventDecoder()(BODY).data["card"] == token_of(BODY)

    class Opaque(BaseModel):
        card: Encrypted[str] | str

    assert EventDecoder(Opaque)(BODY).data.card == token_of(BODY)
    assert EventDecoder(Opaque, CIPHER)(BODY).data.card == Encrypted(CARD)


def test_a_plain_value_on_the_wire_is_refused() -> None:
    """Or whoever has no key could write what only who has one may."""
    plain = Event(type="ORDER_PLACED", data={"number": 1, "card": "mine"}).encode()
    assert "data.card: Value should be encrypted" in refusal(plain)


def test_a_value_of_another_type_is_refused_without_showing_it() -> None:
    event = Event(type="ORDER_PLACED", data={"number": 1, "card": Encrypted(CARD)})
    body = event.encode(CIPHER)

    class Wrong(BaseModel):
        card: Encrypted[int]

    assert "does not fit its type" in refusal(body, data_type=Wrong)


def test_nothing_is_written_without_a_key() -> None:
    for write in (EVENT.encode, EVENT.data.model_dump_json):
        with pytest.raises(Exception, match="there is no key for it here") as refused:
            write()
        assert CARD not in "".join(traceback.format_exception(refused.value))


def test_a_value_is_shown_nowhere(caplog: pytest.LogCaptureFixture) -> None:
    order = EVENT.data
    logging.getLogger("test").warning("%s %r %s", order, order.card, EVENT)
    assert CARD not in caplog.text
    assert CARD not in f"{order} {order.card} {order.model_dump()} {vars(order)}"
    assert order.card.get_secret_value() == CARD
    assert pickle.loads(pickle.dumps(order)) == order
    assert len({order.card, Encrypted(CARD)}) == 1
    with pytest.raises(ValidationError) as refused:
        Order(number=1, card=[CARD])
    assert CARD not in str(refused.value)


def test_a_model_read_from_json_of_ones_own_takes_plain_values_only() -> None:
    order = Order.model_validate_json(json.dumps({"number": 1, "card": CARD}))
    assert order == Order(number=1, card=Encrypted(CARD))
    with pytest.raises(ValidationError, match="read without a key"):
        Order.model_validate(json.loads(BODY)["data"])


def test_an_upcaster_leaves_what_it_can_not_read() -> None:
    upcasters = Upcasters()
    upcasters.on("ORDER_PLACED", version=1)(lambda data: {**data, "number": 2})
    read = UpcastingDecoder(upcasters, Order, CIPHER)(BODY)
    assert read.data == Order(number=2, card=CARD)


def test_an_event_without_an_id_of_its_own_is_bound_to_its_message_id() -> None:
    body = json.loads(BODY)
    del body["id"]
    read = EventDecoder(Order, CIPHER)(json.dumps(body).encode(), EVENT.id)
    assert read.data == EVENT.data


def test_keys_are_rotated_in_one_file(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    run = CliRunner().invoke
    assert run(main, ["keys", "encryption", "k1", str(file)]).exit_code == 0
    body = EVENT.encode(Cipher.read(file))
    rotated = run(main, ["keys", "encryption", "k2", str(file)])
    assert rotated.exit_code == 0
    assert "encrypts with k2 now; it still decrypts k1" in rotated.output
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    both = Cipher.read(file)
    assert EventDecoder(Order, both)(body).data == EVENT.data
    assert token_of(EVENT.encode(both)).startswith("rfe1.k2.")
    again = run(main, ["keys", "encryption", "k2", str(file)])
    assert (again.exit_code, again.output.count("\n")) == (78, 1)
    # The old key is destroyed: what it encrypted is forgotten, wherever it is kept.
    file.write_text(file.read_text().splitlines()[0])
    assert "key k1, which is not known" in refusal(body, Cipher.read(file))
    for material in (key.material for key in read_keys(file, SECRET)):
        assert repr(material) not in rotated.output
    settings = Settings(encryption_keys_file=file)
    check_key_files(settings)
    file.chmod(0o604)
    assert findings(found_with(settings))[0].about == str(file)
    file.write_text("k1 aes256 AAAA")
    with pytest.raises(ConfigurationError, match="line 1: not 'NAME aes256 BASE64'"):
        check_key_files(settings)


def test_data_that_was_kept_is_opened_as_far_as_there_are_keys() -> None:
    data = {"a": [json.loads(BODY)["data"]["card"], 1, "rfe1.k9.AAAA", "rfe1."]}
    assert opened(data, CIPHER, EVENT.id) == {"a": [Encrypted(CARD), 1, "rfe1.k9.AAAA", "rfe1."]}
    with pytest.raises(EventError, match="encrypted for another event"):
        opened(data, CIPHER, "another")


def test_without_the_extra_a_key_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(
        __import__("sys").modules, "cryptography.hazmat.primitives.ciphers.aead", None
    )
    with pytest.raises(ConfigurationError, match=r"rabbitflow\[crypto\]"):
        Cipher([Key("k1", SECRET, bytes(32))])
