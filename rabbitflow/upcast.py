"""Old events read as new ones: one registry for the wire, the replay and the store."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any, TypeVar

from pydantic_core import from_json, to_json

from rabbitflow.cipher import Cipher
from rabbitflow.errors import ConfigurationError, EventError
from rabbitflow.event import Event, EventDecoder, derived_id
from rabbitflow.nesting import refuse_deep

Step = Callable[[Any], Any]
StepT = TypeVar("StepT", bound=Step)


class Upcasters:
    """What turns the data of an event's old schema version into that of the next.

    Give one registry to every ``Consumer`` and ``EventStore`` that meets old events::

        upcasters = Upcasters()

        @upcasters.on("MONEY_DEPOSITED", version=1)
        def add_currency(data: dict) -> dict:  # from version 1 to 2
            return {**data, "currency": "INR"}

    Stored events are never rewritten; they are read as what they would be today.
    """

    def __init__(self) -> None:
        self._steps: dict[tuple[str, int], Step] = {}

    @property
    def steps(self) -> Mapping[tuple[str, int], Step]:
        """What is registered, by event type and the version it starts from."""
        return MappingProxyType(self._steps)

    def concerns(self, event_types: Iterable[str]) -> bool:
        """Whether any of the types has old versions."""
        return not {event_type for event_type, _ in self._steps}.isdisjoint(event_types)

    def on(self, event_type: str, *, version: int) -> Callable[[StepT], StepT]:
        """Register what turns the data of ``version`` into that of ``version + 1``.

        Raises:
            ConfigurationError: there is one for that version already, or the version is below 1.
        """
        if version < 1:
            raise ConfigurationError(f"a schema version is 1 or more, not {version}")

        def register(step: StepT) -> StepT:
            if (event_type, version) in self._steps:
                raise ConfigurationError(f"{event_type} version {version} has an upcaster already")
            self._steps[event_type, version] = step
            return step

        return register

    def data(self, event_type: str, version: int, data: Any) -> tuple[int, Any]:
        """Return the newest version there is a way to, and the data in it.

        Raises:
            EventError: an upcaster raised, or returned nothing.
        """
        while (step := self._steps.get((event_type, version))) is not None:
            try:
                data = step(data)
            except Exception as error:
                raise EventError(
                    f"{event_type} of version {version} can't be upcast:"
                    f" {type(error).__name__}: {error}"
                ) from error
            if data is None:
                raise EventError(f"the upcaster of {event_type} version {version} returned nothing")
            version += 1
        return version, data

    def apply(self, event: Event[Any]) -> Event[Any]:
        """Return ``event`` in the newest version, itself where it is."""
        if (event.type, event.version) not in self._steps:
            return event
        version, data = self.data(event.type, event.version, event.data)
        return event.model_copy(update={"version": version, "data": data})

    def body(self, body: bytes) -> bytes:
        """Return a body from the wire in the newest version; itself where it is, or is none."""
        try:
            refuse_deep(body)
            envelope = from_json(body)
        except ValueError:
            return body  # which its decoder refuses
        if not isinstance(envelope, dict) or "data" not in envelope:
            return body
        event_type, version = envelope.get("type"), envelope.get("version", 1)
        if not isinstance(event_type, str) or (event_type, version) not in self._steps:
            return body
        version, data = self.data(event_type, version, envelope["data"])
        return to_json({**envelope, "version": version, "data": data})


class UpcastingDecoder(EventDecoder[Any]):
    """An ``EventDecoder`` for event types that have old versions."""

    def __init__(
        self, upcasters: Upcasters, data_type: Any = Any, cipher: Cipher | None = None
    ) -> None:
        super().__init__(data_type, cipher)
        self._upcasters = upcasters

    def __call__(self, body: bytes, message_id: str | None = None) -> Event[Any]:
        """See ``EventDecoder``; an id that is missing follows from the body as it came."""
        upcast = self._upcasters.body(body)
        if upcast is not body:
            message_id = message_id or derived_id(body)
        return super().__call__(upcast, message_id)
