"""``/metrics``, ``/healthz`` and ``/readyz`` of a worker."""

from __future__ import annotations

import json
import select
import socket
import threading
from collections.abc import Callable, Iterable
from functools import cached_property
from typing import TYPE_CHECKING, Any

from rabbitflow.errors import ConfigurationError

if TYPE_CHECKING:
    from wsgiref.simple_server import WSGIServer

Readiness = dict[str, Any]

WAITING_REQUESTS = 5
"""How many connections wait to be accepted, as in the standard library's servers."""


class StatusServer:
    """Serves a worker's state in a thread of its own.

    It listens from the start; what speaks HTTP is imported when somebody asks for the first time,
    because it takes 8 MiB, more than all the rest of a supervisor that nobody asks.

    Args:
        host: loopback unless told otherwise: the figures say what a business does.
        port: 0 for any free one.
        metrics: returns the WSGI application of ``/metrics``; called once, when it is asked for.
        readiness: what ``/readyz`` answers; its ``ready`` decides between 200 and 503.

    Raises:
        ConfigurationError: the port is taken, or may not be opened.
    """

    def __init__(
        self,
        host: str,
        port: int,
        metrics: Callable[[], Any],
        readiness: Callable[[], Readiness],
    ) -> None:
        self._new_metrics = metrics
        self._readiness = readiness
        try:
            self._listening = socket.create_server((host, port), backlog=WAITING_REQUESTS)
        except (OSError, OverflowError) as error:
            raise ConfigurationError(
                f"metrics can't be served on {host}:{port}: {error}; choose another --metrics-port"
            ) from error
        self.port: int = self._listening.getsockname()[1]
        self._server: WSGIServer | None = None
        self._starting = threading.Lock()
        self._is_closing = False
        self._woken, self._waking = socket.socketpair()
        self._thread = threading.Thread(target=self._serve, name="rabbitflow-status", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop serving."""
        with self._starting:
            self._is_closing = True
        if self._server is None:
            self._waking.send(b"\0")
        else:
            self._server.shutdown()
        self._thread.join()
        for end in (self._listening, self._woken, self._waking):
            end.close()

    def _serve(self) -> None:
        select.select([self._listening, self._woken], [], [])
        with self._starting:
            if self._is_closing:
                return
            # Not at the top: somebody asks for the first time.
            from rabbitflow.observe.wsgi import server_on  # noqa: PLC0415

            self._server = server_on(self._listening, self._answer)
        self._server.serve_forever()

    @cached_property
    def _metrics(self) -> Any:
        return self._new_metrics()

    def _answer(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        match environ.get("PATH_INFO", "/"):
            case "/metrics":
                answer: Iterable[bytes] = self._metrics(environ, start_response)
                return answer
            case "/healthz":
                return _json(start_response, "200 OK", {"alive": True})
            case "/readyz":
                readiness = self._readiness()
                status = "200 OK" if readiness["ready"] else "503 Service Unavailable"
                return _json(start_response, status, readiness)
        return _json(start_response, "404 Not Found", {"see": ["/metrics", "/healthz", "/readyz"]})


def _json(start_response: Any, status: str, body: Readiness) -> Iterable[bytes]:
    encoded = json.dumps(body).encode() + b"\n"
    start_response(
        status,
        [("Content-Type", "application/json"), ("Content-Length", str(len(encoded)))],
    )
    return [encoded]
