"""Encrypted fields: values that only who has a key can read, on the broker, in logs and in files.

``card: Encrypted[str]`` in a model is a text on the wire, by AES-256-GCM, and a value in code. The
ciphertext is bound to the id of its event: in another event it opens for nobody.
"""

from __future__ import annotations

from functools import cache
from typing import Any, ClassVar, Final, Generic, NamedTuple, TypeVar, get_args

from pydantic import GetCoreSchemaHandler, TypeAdapter, ValidationError
from pydantic_core import PydanticCustomError, SchemaSerializer, core_schema, from_json, to_json

from rabbitflow.cipher import Cipher, is_token
from rabbitflow.errors import EventError

ValueT = TypeVar("ValueT")

_MARK = "rabbitflow_encrypted"
_MASKED = "**********"

MASKING: Final = "masking"
"""As pydantic's context: a value is written as asterisks, for whoever looks on."""


class Encrypted(Generic[ValueT]):
    """A value that is encrypted wherever its event is written down.

    As a field of a model it is given a plain value, and shows none: neither ``repr`` nor ``str``
    nor a log line tells it. It is written as JSON only where there is a key, as an event is
    published or stored; anything else that would write it is an error.
    """

    __slots__ = ("_value",)

    __pydantic_serializer__: ClassVar[SchemaSerializer]

    def __init__(self, value: ValueT) -> None:
        self._value = value

    def get_secret_value(self) -> ValueT:
        """Return the value."""
        return self._value

    def __repr__(self) -> str:
        return f"Encrypted({_MASKED!r})"

    __str__ = __repr__

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Encrypted) and bool(self._value == other._value)

    def __hash__(self) -> int:
        return hash((Encrypted, self._value))

    @classmethod
    def __get_pydantic_core_schema__(
        cls, source: Any, handler: GetCoreSchemaHandler
    ) -> core_schema.CoreSchema:
        inner = (get_args(source) or (Any,))[0]

        @cache
        def adapter() -> TypeAdapter[Any]:
            return TypeAdapter(inner)

        def validate(
            value: Any, plain: core_schema.ValidatorFunctionWrapHandler, info: Any
        ) -> Encrypted[Any]:
            if isinstance(info.context, Opening):
                return cls(_read(value, info.context, adapter()))
            if isinstance(value, Encrypted):
                value = value.get_secret_value()
            elif is_token(value):
                raise PydanticCustomError("encrypted", "Value is encrypted, and read without a key")
            return cls(plain(value))

        return core_schema.with_info_wrap_validator_function(
            validate,
            handler.generate_schema(inner),
            serialization=_SERIALIZATION,
            metadata={_MARK: True},
        )


class Sealing(NamedTuple):
    """What serializers are given that may write encrypted values: how, and for which event."""

    cipher: Cipher
    event_id: str


class Opening(NamedTuple):
    """What validators are given that read the wire: the keys, None where there are none, and of
    which event the value claims to be."""

    cipher: Cipher | None
    event_id: str


def opened(data: Any, cipher: Cipher, event_id: str) -> Any:
    """Return JSON data with each encrypted value in it opened, as :class:`Encrypted`. Those of keys
    that are not here stay as they are.

    Raises:
        EventError: one was changed, or encrypted for another event.
    """
    if isinstance(data, dict):
        return {name: opened(value, cipher, event_id) for name, value in data.items()}
    if isinstance(data, list):
        return [opened(value, cipher, event_id) for value in data]
    if not is_token(data) or not cipher.has_key_of(data):
        return data
    try:
        return Encrypted(from_json(cipher.open(data, event_id)))
    except ValueError as error:
        raise EventError(f"a field of event {event_id} can't be decrypted: {error}") from None


def holds_encrypted(schema: Any) -> bool:
    """Whether values of this core schema of pydantic may hold encrypted ones."""
    waiting, seen = [schema], set()
    while waiting:
        part = waiting.pop()
        if id(part) in seen:
            continue
        seen.add(id(part))
        if isinstance(part, dict):
            metadata = part.get("metadata")
            if isinstance(metadata, dict) and metadata.get(_MARK):
                return True
            waiting += part.values()
        elif isinstance(part, list | tuple):
            waiting += part
    return False


def _read(value: Any, opening: Opening, adapter: TypeAdapter[Any]) -> Any:
    """Return the value that came encrypted. No error shows it: what pydantic shows of its input is
    the text that came."""
    if not is_token(value):
        raise PydanticCustomError("encrypted", "Value should be encrypted")
    if opening.cipher is None:
        raise PydanticCustomError(
            "encrypted", "Value is encrypted, and there is no key (RABBITFLOW_ENCRYPTION_KEYS_FILE)"
        )
    try:
        plaintext = opening.cipher.open(value, opening.event_id)
    except ValueError as error:
        raise PydanticCustomError(
            "encrypted", "Value can't be decrypted: {why}", {"why": str(error)}
        ) from None
    try:
        return adapter.validate_json(plaintext)
    except ValidationError:
        pass
    # Not within the handler above: the error there holds the value.
    raise PydanticCustomError("encrypted", "Value does not fit its type once it is decrypted")


def _write(value: Encrypted[Any], info: Any) -> str | Encrypted[Any]:
    if info.mode != "json":
        return value
    sealing = info.context
    if sealing is MASKING:
        return _MASKED
    if not isinstance(sealing, Sealing):
        raise ValueError(
            "a field is Encrypted, and there is no key for it here"
            " (RABBITFLOW_ENCRYPTION_KEYS_FILE); get_secret_value() is the plain value"
        )
    plaintext = to_json(value.get_secret_value(), inf_nan_mode="constants", context=sealing)
    return sealing.cipher.seal(plaintext, sealing.event_id)


_SERIALIZATION = core_schema.plain_serializer_function_ser_schema(_write, info_arg=True)
# For values in dicts, dataclasses and whatever else pydantic has no schema of.
Encrypted.__pydantic_serializer__ = SchemaSerializer(
    core_schema.any_schema(serialization=_SERIALIZATION)
)
