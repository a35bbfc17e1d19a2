"""A TCP proxy in front of a broker: it cuts, swallows and stops on demand."""

from __future__ import annotations

import asyncio
import contextlib
from types import TracebackType
from typing import Self


class Proxy:
    """Passes bytes both ways until told otherwise.

    Attributes:
        swallows_answers: what the broker says does not reach the client.
        is_silent: nothing passes either way, and no connection ends: it is half open.
        delay_s: how long every piece is held before it is passed on, in seconds.
        refuses: new connections are closed at once.
        accepted: how many connections clients have opened.
        asked: every byte that clients sent, for counting what they asked for.
    """

    def __init__(self, host: str, port: int) -> None:
        self.swallows_answers = False
        self.is_silent = False
        self.delay_s = 0.0
        self.refuses = False
        self.accepted = 0
        self.asked = bytearray()
        self.port = 0
        self._target = host, port
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._muted: set[asyncio.StreamWriter] = set()
        self._pumps: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()
        for pump in self._pumps:
            pump.cancel()
        await asyncio.gather(*self._pumps, return_exceptions=True)

    @property
    def url(self) -> str:
        """The broker's URL by way of the proxy."""
        return f"amqp://guest:guest@127.0.0.1:{self.port}/"

    def cut(self) -> None:
        """Reset every connection."""
        for writer in list(self._writers):
            writer.transport.abort()

    def mute(self) -> None:
        """Let no answer through any more on the connections of now; later ones are passed on."""
        self._muted |= self._writers

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.refuses:
            writer.transport.abort()
            return
        self.accepted += 1
        upstream_reader, upstream_writer = await asyncio.open_connection(*self._target)
        self._writers |= {writer, upstream_writer}
        for source, sink, is_answer in (
            (reader, upstream_writer, False),
            (upstream_reader, writer, True),
        ):
            pump = asyncio.create_task(self._pump(source, sink, is_answer=is_answer))
            self._pumps.add(pump)
            pump.add_done_callback(self._pumps.discard)

    async def _pump(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, is_answer: bool
    ) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await source.read(65536):
                if not is_answer:
                    self.asked += data
                if self.delay_s:
                    await asyncio.sleep(self.delay_s)
                is_swallowed = is_answer and (self.swallows_answers or sink in self._muted)
                if not (self.is_silent or is_swallowed):
                    sink.write(data)
                    await sink.drain()
        sink.transport.abort()
        self._writers.discard(sink)
        self._muted.discard(sink)
