"""How events become a state: a plain function, or a class that says what it does with each."""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable
from typing import Any, TypeVar, cast

from pydantic import PydanticSchemaGenerationError, PydanticUserError, TypeAdapter, ValidationError

from rabbitflow.errors import ConfigurationError, EventError
from rabbitflow.event import Event, readable

StateT = TypeVar("StateT")
MethodT = TypeVar("MethodT", bound=Callable[..., Any])
Fold = Callable[[StateT, Event[Any]], StateT]
"""Takes the state and an event, and returns the state after it."""

_APPLIES = "__rabbitflow_applies__"


def applies(*event_types: str) -> Callable[[MethodT], MethodT]:
    """Mark a method as what its class does with events of these types.

    It takes the event (``Event`` or ``Event[Model]``) or, annotated with any other type, the
    event's data, validated. It returns the new state, or changes ``self`` and returns nothing.
    Events of other types leave the state as it is::

        class Account(BaseModel):
            balance: int = 0

            @applies("MONEY_DEPOSITED")
            def deposited(self, money: Money) -> "Account":
                return self.model_copy(update={"balance": self.balance + money.amount})

        account = await store.rebuild("account-1", Account)
    """
    if not event_types or not all(isinstance(name, str) for name in event_types):
        raise ConfigurationError('name the event types, @applies("MONEY_DEPOSITED")')

    def mark(method: MethodT) -> MethodT:
        setattr(method, _APPLIES, event_types)
        return method

    return mark


@functools.cache
def applied_by(state_type: type) -> dict[str, Callable[..., Any]]:
    """Return the methods of a class that are marked with ``applies``, by event type.

    Raises:
        ConfigurationError: two methods claim the same type.
    """
    methods: dict[str, Callable[..., Any]] = {}
    for name, method in inspect.getmembers(state_type, inspect.isfunction):
        for event_type in getattr(method, _APPLIES, ()):
            if event_type in methods:
                raise ConfigurationError(
                    f"{state_type.__qualname__} applies {event_type} twice:"
                    f" {methods[event_type].__name__} and {name}"
                )
            methods[event_type] = method
    return methods


@functools.cache
def fold_of(state_type: type[StateT]) -> Fold[StateT]:
    """Return the fold that a class with methods marked by ``applies`` stands for.

    Raises:
        ConfigurationError: it has none, or one that can't be called with an event.
    """
    appliers = {
        event_type: _applier(method)
        for event_type, method in applied_by(cast(Any, state_type)).items()
    }
    if not appliers:
        raise ConfigurationError(
            f"{state_type.__qualname__} applies nothing; mark its methods with"
            ' @applies("MONEY_DEPOSITED"), or give a function (state, event)'
        )

    def fold(state: StateT, event: Event[Any]) -> StateT:
        applier = appliers.get(event.type)
        if applier is None:
            return state
        after = applier(state, event)
        return state if after is None else cast(StateT, after)

    return fold


def initial_of(fold: Callable[..., Any]) -> Any:
    """Return what a fold starts with where the caller does not say: its state's type, called.

    Raises:
        ConfigurationError: the type is not annotated, or can't be made without arguments.
    """
    if isinstance(fold, type):
        state_type: Any = fold
    else:
        try:
            hints = typing.get_type_hints(fold)
            first = next(iter(inspect.signature(fold).parameters))
        except (NameError, TypeError, ValueError, StopIteration):
            hints, first = {}, ""
        state_type = hints.get(first)
    state_type = typing.get_origin(state_type) or state_type
    try:
        return state_type()
    except Exception as error:
        raise ConfigurationError(
            f"no initial state for {getattr(fold, '__qualname__', fold)}: annotate its state with"
            f" a type that can be made without arguments, or give one ({error})"
        ) from error


def _applier(method: Callable[..., Any]) -> Callable[[Any, Event[Any]], Any]:
    code = method.__code__
    place = f"{method.__qualname__} ({code.co_filename}:{code.co_firstlineno})"
    parameters = list(inspect.signature(method).parameters)
    try:
        hints = typing.get_type_hints(method, include_extras=True)
    except NameError as error:
        raise ConfigurationError(f"{place}: its annotations can't be resolved: {error}") from error
    if len(parameters) != 2 or parameters[1] not in hints:
        raise ConfigurationError(
            f"{place} takes self and one annotated argument: Event[Model], or the data's type"
        )
    hint = hints[parameters[1]]
    if hint is Event:
        return method
    is_event = isinstance(hint, type) and issubclass(hint, Event)
    data_type = hint.__pydantic_generic_metadata__["args"][0] if is_event else hint
    try:
        validate = TypeAdapter(data_type).validate_python
    except (PydanticSchemaGenerationError, PydanticUserError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigurationError(f"{place}: its data type can't be validated: {reason}") from error

    def apply(state: Any, event: Event[Any]) -> Any:
        try:
            data = validate(event.data)
        except ValidationError as error:
            raise EventError(f"event {event.id} does not fit {place}: {readable(error)}") from error
        return method(state, event.model_copy(update={"data": data}) if is_event else data)

    return apply
