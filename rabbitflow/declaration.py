"""Declaring a topology on the broker, and saying in one line where it has another one already."""

from __future__ import annotations

import asyncio
import re
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass

from aiormq.exceptions import (
    ChannelAccessRefused,
    ChannelLockedResource,
    ChannelNotFoundEntity,
    ChannelPreconditionFailed,
)

from rabbitflow.broker import (
    Channel,
    Connection,
    lost_connections,
    throwaway_channel,
)
from rabbitflow.errors import AccessRefused, ConfigurationError, TopologyMismatch
from rabbitflow.settings import Settings
from rabbitflow.topology import Binding, Exchange, Queue, Topology

ANSWER_WITHIN_S = 30.0
"""How long the broker may take over one declaration. A queue of a cluster whose nodes all start at
once takes seconds; a node that keeps its connections and does nothing more takes for ever."""

_INEQUIVALENT = re.compile(
    r"inequivalent arg '(?P<argument>[^']+)' for (?P<kind>queue|exchange) '(?P<name>[^']+)'"
    r".*?: received (?P<wanted>.+?) but current is (?P<current>.+)",
    re.DOTALL,
)
_VALUE = re.compile(r"(?:the value )?'([^']*)'")


@dataclass(frozen=True, slots=True)
class Mismatch:
    """One argument that differs: ours and the broker's value; "none" where unset.

    Fields:
        current_value: what ``current`` shows, as the broker has it; None where unset.
    """

    kind: str
    name: str
    argument: str
    wanted: str
    current: str
    current_value: str | int | None = None

    def __str__(self) -> str:
        return (
            f"{self.kind} {self.name} exists with {self.argument} = {self.current},"
            f" wanted {self.wanted}"
        )


async def declare(connection: Connection, topology: Topology, settings: Settings) -> None:
    """Declare everything in ``topology``; what is there already, with the same arguments, stays.

    All that differs is found before anything is raised, so that one look shows the whole of it.

    Raises:
        TopologyMismatch: exchanges or queues exist with other arguments.
        AccessRefused: the user has no configure permission.
        ConnectionLost: the connection ended.
    """
    mismatches: list[Mismatch] = []
    left = deque(_steps(topology))
    while left:
        # One channel for all, until the broker closes it because it refuses a declaration.
        async with throwaway_channel(connection, settings) as channel:
            mismatch = await _first_mismatch(channel, left)
        if mismatch is not None:
            mismatches.append(mismatch)
    if mismatches:
        raise _as_error(mismatches)


async def declare_on(channel: Channel, topology: Topology) -> None:
    """Declare everything in ``topology`` over a channel that is for more than this.

    Raises:
        TopologyMismatch: an exchange or queue exists with other arguments; the first that does. The
            channel is closed.
        AccessRefused, ConnectionLost: as :func:`declare`.
    """
    mismatch = await _first_mismatch(channel, deque(_steps(topology)))
    if mismatch is not None:
        raise _as_error([mismatch])


async def _first_mismatch(channel: Channel, left: deque[_Step]) -> Mismatch | None:
    """Take steps off ``left`` until one finds something else, which closes the channel."""
    mismatch = None
    while left and mismatch is None:
        mismatch = await _attempt(channel, left.popleft())
    return mismatch


def _as_error(mismatches: Iterable[Mismatch]) -> TopologyMismatch:
    return TopologyMismatch(
        "; ".join(map(str, mismatches))
        + "; a queue's arguments can't be changed in place: set the wanted value back, or let"
        " rabbitflow topology migrate CONSUMER MODULE replace the queue"
    )


async def compare(
    connection: Connection, stands: Exchange | Queue, settings: Settings
) -> Mismatch | None:
    """Return one argument in which the broker's exchange or queue differs, or None.

    It declares, which changes nothing where the exchange or queue is there; one that is not there
    is created.

    Raises:
        AccessRefused: the user has no configure permission.
        ConnectionLost: the connection ended.
    """
    step = _declare_queue(stands) if isinstance(stands, Queue) else _declare_exchange(stands)
    async with throwaway_channel(connection, settings) as channel:
        return await _attempt(channel, step)


async def verify(connection: Connection, topology: Topology, settings: Settings) -> None:
    """Check that exchanges and queues are there, which needs no configure permission.

    Raises:
        ConfigurationError: something is missing.
    """
    missing: list[str] = []
    left: deque[Exchange | Queue] = deque([*topology.exchanges, *topology.queues])
    while left:
        is_there = True
        async with throwaway_channel(connection, settings) as channel:
            while left and is_there:
                stands = left.popleft()
                is_there = await _is_there(channel, stands)
        if not is_there:
            missing.append(f"{'queue' if isinstance(stands, Queue) else 'exchange'} {stands.name}")
    if missing:
        raise ConfigurationError(
            f"not on the broker: {', '.join(missing)};"
            " an administrator declares them with: rabbitflow topology apply MODULE"
        )


_Step = Callable[[Channel], Awaitable[object]]


def _steps(topology: Topology) -> list[_Step]:
    steps: list[_Step] = [_declare_exchange(exchange) for exchange in topology.exchanges]
    steps += [_declare_queue(queue) for queue in topology.queues]
    steps += [_bind(binding) for binding in topology.bindings]
    return steps


def _declare_exchange(exchange: Exchange) -> _Step:
    return lambda channel: channel.exchange_declare(
        exchange.name, exchange_type=exchange.type, durable=True
    )


def _declare_queue(queue: Queue) -> _Step:
    return lambda channel: channel.queue_declare(
        queue.name, durable=True, arguments=dict(queue.arguments)
    )


def _bind(binding: Binding) -> _Step:
    return lambda channel: channel.queue_bind(binding.queue, binding.exchange)


async def _is_there(channel: Channel, stands: Exchange | Queue) -> bool:
    with lost_connections():
        try:
            async with asyncio.timeout(ANSWER_WITHIN_S):
                if isinstance(stands, Queue):
                    await channel.queue_declare(stands.name, passive=True)
                else:
                    await channel.exchange_declare(stands.name, passive=True)
        except ChannelNotFoundEntity:
            return False
    return True


async def _attempt(channel: Channel, step: _Step) -> Mismatch | None:
    """Return in which argument what is there differs, or None. If it does the channel is closed."""
    with lost_connections():
        try:
            async with asyncio.timeout(ANSWER_WITHIN_S):
                await step(channel)
        except ChannelPreconditionFailed as error:
            return _mismatch(str(error.args[0] if error.args else error))
        except ChannelLockedResource as error:
            raise ConfigurationError(
                f"a queue belongs to another connection alone: {error}"
            ) from error
        except ChannelAccessRefused as error:
            raise AccessRefused(
                f"the broker refused to declare: {error.args[0] if error.args else error};"
                " let an administrator run: rabbitflow topology apply MODULE,"
                " and start with --no-declare"
            ) from error
    return None


def _mismatch(reply: str) -> Mismatch:
    """Read the broker's reply text; its wording is the same from 3.8 to 4.x."""
    found = _INEQUIVALENT.search(reply)
    if found is None:
        raise TopologyMismatch(f"the broker refused a declaration: {reply}")
    return Mismatch(
        found["kind"],
        found["name"],
        found["argument"],
        _shown(found["wanted"]),
        _shown(found["current"]),
        _value(found["current"]),
    )


def _shown(value: str) -> str:
    quoted = _VALUE.search(value)
    return quoted[1] if quoted else value.strip()


def _value(reply: str) -> str | int | None:
    """Return the broker's own value: "none", "'50'" or "the value '50' of type 'signedint'"."""
    quoted = _VALUE.search(reply)
    if quoted is None:
        return None
    text = quoted[1]
    if reply.endswith("of type 'bool'"):
        return text == "true"
    is_number = text.removeprefix("-").isdigit() and not reply.endswith("of type 'longstr'")
    return int(text) if is_number else text
