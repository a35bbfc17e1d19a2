"""The journal of a back-fill: a stream that says how far the past is copied, and which live events
the consumer's queue has got meanwhile."""

from __future__ import annotations

import json
from collections.abc import Mapping

from pamqp.commands import Basic

from rabbitflow.confirmed import ConfirmedChannel
from rabbitflow.errors import BrokerError
from rabbitflow.event import derived_id, new_event_id
from rabbitflow.log.reading import STALLED_S, StreamReader
from rabbitflow.publisher import CONTENT_TYPE, PERSISTENT
from rabbitflow.topology import BACKFILL_NOTE


class Journal:
    """Reads the journal from its beginning, and writes notes to it.

    Args:
        queue: the stream.
        reader: of it, from its first entry on.
        channel: confirms the notes.

    Attributes:
        progress: by event type, the offset up to which the past is in the consumer's queue.
        live_ids: of the events that reached the consumer's queue by themselves.
        is_fresh: whether it held no note.
        is_complete: whether a note says that the past is there and the queue is bound.
    """

    def __init__(self, queue: str, reader: StreamReader, channel: ConfirmedChannel) -> None:
        self.progress: dict[str, int] = {}
        self.live_ids: set[str] = set()
        self.is_fresh = True
        self.is_complete = False
        self._queue = queue
        self._reader = reader
        self._channel = channel

    async def write(
        self, progress: Mapping[str, int], *, is_complete: bool = False, mark: str | None = None
    ) -> None:
        """Keep a note; it is safe on the broker when this returns. Raises BrokerError."""
        note = {"progress": dict(progress), "is_complete": is_complete, "mark": mark}
        properties = Basic.Properties(
            content_type=CONTENT_TYPE,
            delivery_mode=PERSISTENT,
            message_id=mark,
            headers={BACKFILL_NOTE: True},
        )
        await self._channel.publish("", self._queue, json.dumps(note).encode(), properties)

    async def read(self) -> None:
        """Read everything that is in the journal now.

        Raises:
            BrokerError: it can't be read to its end.
        """
        own_mark = new_event_id()
        await self.write({}, mark=own_mark)
        mark = None
        while mark != own_mark:
            message = await self._reader.next(STALLED_S)
            if message is None:
                raise BrokerError(f"the journal {self._queue} gave nothing for {STALLED_S:g} s")
            properties = message.header.properties
            if BACKFILL_NOTE not in (properties.headers or {}):
                self.live_ids.add(properties.message_id or derived_id(message.body))
                continue
            note = json.loads(message.body)
            mark = note["mark"]
            self.is_fresh = self.is_fresh and mark is not None
            self.is_complete = self.is_complete or note["is_complete"]
            self.progress |= note["progress"]
