"""What a handler receives: read from its annotations, once, at start."""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import PydanticSchemaGenerationError, PydanticUserError

from rabbitflow.cipher import Cipher
from rabbitflow.context import Context
from rabbitflow.errors import ConfigurationError
from rabbitflow.event import Event, EventDecoder
from rabbitflow.upcast import Upcasters, UpcastingDecoder

HandlerFunction = Callable[..., Any]
Call = Callable[[Any, Any], Any]

_SESSIONS = frozenset(
    {"sqlalchemy.orm.session.Session", "sqlalchemy.ext.asyncio.session.AsyncSession"}
)
_ASKS = "annotate it with Event[Model], Context, or the type of the event's data"


@dataclass(frozen=True, slots=True)
class Signature:
    """How to call a handler.

    Fields:
        decode: reads a body into the event with the data type the handler asked for.
        call: runs the function with the arguments its annotations ask for; for an ``async def``
            it returns the awaitable.
        is_async: whether the result is awaited; a plain ``def`` runs in a thread.
        takes_session: whether it asks for a database session, which handlers with ``once=True``
            get.
    """

    decode: EventDecoder[Any]
    call: Call
    is_async: bool
    takes_session: bool = False


def where(function: HandlerFunction) -> str:
    """Return ``file:line`` of a function, for errors."""
    code = getattr(inspect.unwrap(_annotated(function)), "__code__", None)
    return f"{code.co_filename}:{code.co_firstlineno}" if code else repr(function)


def _annotated(function: HandlerFunction) -> HandlerFunction:
    """Return what holds the annotations: the function within a partial, the call of an object."""
    while isinstance(function, functools.partial):
        function = function.func
    return function if inspect.isroutine(function) else function.__call__  # type: ignore[operator]


def is_coroutine_function(function: HandlerFunction) -> bool:
    """Whether calling ``function`` gives an awaitable, also for objects with an async call."""
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
        getattr(function, "__call__", None)  # noqa: B004 - the method is inspected, not called
    )


def resolve(
    function: HandlerFunction,
    *,
    is_batch: bool = False,
    upcasters: Upcasters | None = None,
    cipher: Cipher | None = None,
) -> Signature:
    """Return how to call ``function``; for a batch, its arguments are lists, and so is what
    ``call`` is given. With ``upcasters`` it receives old events as new ones, with ``cipher`` what
    its types name as ``Encrypted``.

    Raises:
        ConfigurationError: an argument can't be filled, or its type can't be validated; the text
            names file and line.
    """
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise _fault(function, "it yields; a handler returns or raises")
    try:
        hints = typing.get_type_hints(_annotated(function), include_extras=True)
        parameters = inspect.signature(function).parameters.values()
    except (NameError, TypeError, ValueError) as error:
        raise _fault(function, f"its annotations can't be resolved: {error}") from error
    positional: list[Call] = []
    keyword: dict[str, Call] = {}
    data_types: list[Any] = []
    for parameter in parameters:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        hint = hints.get(parameter.name, parameter.empty)
        is_optional = parameter.default is not parameter.empty
        if hint is parameter.empty and not is_optional:
            raise _fault(function, f"argument {parameter.name!r} has no annotation: {_ASKS}")
        pick, data_type = _source_of(function, parameter.name, hint, is_batch=is_batch)
        if is_optional and pick in (_the_data, _each_data):
            continue  # a default is the author's own value, such as an injected client
        if pick not in (_the_context, _each_context, _the_session):
            data_types.append(data_type)
        if parameter.kind is parameter.KEYWORD_ONLY:
            keyword[parameter.name] = pick
        else:
            positional.append(pick)
    asked = [data_type for data_type in data_types if data_type is not Any]
    if any(data_type != asked[0] for data_type in asked[1:]):
        raise _fault(function, "it asks for the event's data as two different types")
    try:
        wanted = asked[0] if asked else Any
        decode: EventDecoder[Any] = (
            UpcastingDecoder(upcasters, wanted, cipher)
            if upcasters
            else EventDecoder(wanted, cipher)
        )
    except (PydanticSchemaGenerationError, PydanticUserError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise _fault(function, f"its data type can't be validated: {reason}") from error
    return Signature(
        decode,
        _caller(function, positional, keyword),
        is_coroutine_function(function),
        takes_session=_the_session in (*positional, *keyword.values()),
    )


def _source_of(
    function: HandlerFunction, name: str, hint: Any, *, is_batch: bool
) -> tuple[Call, Any]:
    """Return what fills an argument annotated with ``hint``, and the data type that it asks for."""
    if is_batch and hint is not inspect.Parameter.empty:
        hint = _element_of(function, name, hint)
    data_type: Any = Any
    if hint is Context:
        pick = _the_context
    elif isinstance(hint, type) and issubclass(hint, Event):
        pick = _the_event
        arguments = hint.__pydantic_generic_metadata__["args"]
        data_type = arguments[0] if arguments else Any
    elif (session := _session_type(hint)) is not None:
        if is_batch:
            raise _fault(function, "a batch handler gets no session; once=True is for one event")
        if session.endswith("AsyncSession") is not is_coroutine_function(function):
            raise _fault(function, "an async def takes an AsyncSession, and a def a Session")
        return _the_session, Any
    else:
        pick, data_type = _the_data, hint
    return _BATCHED[pick] if is_batch else pick, data_type


def _session_type(hint: Any) -> str | None:
    """Return the name of SQLAlchemy's session that ``hint`` is; SQLAlchemy is not needed for it."""
    lineage = hint.__mro__ if isinstance(hint, type) else ()
    names = [f"{each.__module__}.{each.__qualname__}" for each in lineage]
    return next((name for name in names if name in _SESSIONS), None)


def _the_event(event: Event[Any], context: Context) -> Any:
    return event


def _the_data(event: Event[Any], context: Context) -> Any:
    return event.data


def _the_context(event: Event[Any], context: Context) -> Any:
    return context


def _the_session(event: Event[Any], context: Context) -> Any:
    return context.session


def _each_data(events: Any, contexts: Any) -> Any:
    return [event.data for event in events]


def _each_event(events: Any, contexts: Any) -> Any:
    return events


def _each_context(events: Any, contexts: Any) -> Any:
    return contexts


_BATCHED: dict[Call, Call] = {
    _the_event: _each_event,
    _the_data: _each_data,
    _the_context: _each_context,
}


def _element_of(function: HandlerFunction, name: str, hint: Any) -> Any:
    """Return T of an argument ``list[T]`` of a batch handler."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (list, Sequence) and len(arguments) == 1:
        return arguments[0]
    raise _fault(function, f"argument {name!r} of a batch handler is a list: list[Event[Model]]")


def _caller(
    function: HandlerFunction,
    positional: list[Call],
    keyword: dict[str, Call],
) -> Call:
    """Return ``function`` as a call of event and context, the common shapes without a loop."""
    if not keyword:
        match positional:
            case [only] if only is _the_event:
                return lambda event, context: function(event)
            case [only] if only is _the_data:
                return lambda event, context: function(event.data)
            case [first, second] if first is _the_event and second is _the_context:
                return function
            case [first, second] if first is _the_data and second is _the_context:
                return lambda event, context: function(event.data, context)
    return lambda event, context: function(
        *[pick(event, context) for pick in positional],
        **{name: pick(event, context) for name, pick in keyword.items()},
    )


def _fault(function: HandlerFunction, what: str) -> ConfigurationError:
    name = getattr(function, "__qualname__", repr(function))
    return ConfigurationError(f"handler {name} ({where(function)}): {what}")


def awaitable_result(result: object) -> Awaitable[Any] | None:
    """Return what a plain ``def`` gave back where it must still be awaited.

    A decorator that wraps an ``async def`` in a plain function returns a coroutine; dropping it
    would report success for work that never ran.
    """
    return result if inspect.isawaitable(result) else None
