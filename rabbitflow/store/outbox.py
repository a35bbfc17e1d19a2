"""The outbox: an event is written in the transaction that changes the state, and announced later.

Either both are kept or neither: no event without its change, no change without its event.
``rabbitflow relay`` announces what was committed.
"""

from __future__ import annotations

import time
import zlib
from typing import Any

from pydantic import ValidationError
from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Double,
    Insert,
    Integer,
    MetaData,
    SmallInteger,
    Table,
    Text,
    insert,
)
from sqlalchemy.engine import Connection
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession
from sqlalchemy.orm import Session

from rabbitflow.cipher import Cipher
from rabbitflow.errors import EventError
from rabbitflow.event import Event, readable

LANES = 16
"""Events of one key are in one lane, and a lane is announced in order, by one relay at a time."""

metadata = MetaData()
"""Describes the tables; they are made by the store's migrations, not from here."""

OUTBOX = Table(
    "rabbitflow_outbox",
    metadata,
    Column("position", BigInteger, primary_key=True),
    Column("id", Text, nullable=False),
    Column("lane", SmallInteger, nullable=False),
    Column("body", Text, nullable=False),
    Column("added_at", Double, nullable=False),
    Column("refused", Text),
)

INBOX = Table(
    "rabbitflow_inbox",
    metadata,
    Column("consumer", Text, primary_key=True),
    Column("event_id", Text, primary_key=True),
    Column("attempt", Integer, nullable=False),
    Column("is_replay", Boolean, nullable=False),
    Column("handled_at", Double, nullable=False),
    Column("follow_ups", Text),
)


async def add(
    session: AsyncSession | AsyncConnection,
    event: str | Event[Any],
    data: Any = None,
    *,
    cipher: Cipher | None = None,
    **fields: Any,
) -> Event[Any]:
    """Write an event into the transaction of ``session``, and return it.

    It is announced when, and only when, that transaction is committed and a relay runs. The tables
    are made by ``rabbitflow relay``, or when an :class:`~rabbitflow.store.EventStore` is opened.

    Args:
        session: yours, on the database that the relay looks at.
        event: the event type, with ``data``; or a whole :class:`Event`.
        data: as for :meth:`rabbitflow.Publisher.publish`.
        cipher: encrypts fields that are ``Encrypted``, before they are in the database.
        **fields: further fields of the event, such as ``key``: events of one key stay in order.

    Raises:
        EventError: it is no event, or no JSON.
        sqlalchemy.exc.DBAPIError: what your database says.
    """
    written = _event(event, data, fields)
    await session.execute(_row(written, cipher))
    return written


def add_sync(
    session: Session | Connection,
    event: str | Event[Any],
    data: Any = None,
    *,
    cipher: Cipher | None = None,
    **fields: Any,
) -> Event[Any]:
    """:func:`add` for code without an event loop."""
    written = _event(event, data, fields)
    session.execute(_row(written, cipher))
    return written


def _event(event: str | Event[Any], data: Any, fields: dict[str, Any]) -> Event[Any]:
    if isinstance(event, Event):
        if data is not None or fields:
            raise TypeError("an Event is added as it is: give data and fields with a type")
        return event
    try:
        return Event[Any](type=event, data=data, **fields)
    except ValidationError as error:
        raise EventError(readable(error)) from error


def _row(event: Event[Any], cipher: Cipher | None) -> Insert:
    return insert(OUTBOX).values(
        id=event.id,
        lane=zlib.crc32((event.key or event.id).encode()) % LANES,
        body=event.encode(cipher).decode(),
        added_at=time.time(),
    )
