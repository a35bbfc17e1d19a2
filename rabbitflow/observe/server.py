"""``/metrics``, ``/healthz`` and ``/readyz`` of a worker, on the standard library's WSGI server."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app

from rabbitflow.errors import ConfigurationError

Readiness = dict[str, Any]


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    allow_reuse_address = True


class _QuietHandler(WSGIRequestHandler):
    timeout = 10.0  # a peer that sends nothing must not hold a thread for ever

    def log_message(self, format: str, *args: Any) -> None:
        """Log no scrape: there is one every few seconds."""


class StatusServer:
    """Serves a worker's state in a thread of its own.

    Args:
        host: loopback unless told otherwise: the figures say what a business does.
        port: 0 for any free one.
        registry: what ``/metrics`` shows.
        readiness: what ``/readyz`` answers; its ``ready`` decides between 200 and 503.

    Raises:
        ConfigurationError: the port is taken, or may not be opened.
    """

    def __init__(
        self,
        host: str,
        port: int,
        registry: CollectorRegistry,
        readiness: Callable[[], Readiness],
    ) -> None:
        self._metrics = make_wsgi_app(registry)
        self._readiness = readiness
        try:
            self._server = make_server(
                host, port, self._answer, server_class=_Server, handler_class=_QuietHandler
            )
        except (OSError, OverflowError) as error:
            raise ConfigurationError(
                f"metrics can't be served on {host}:{port}: {error}; choose another --metrics-port"
            ) from error
        self.port: int = self._server.server_port
        self._thread = threading.Thread(
            target=self._server.serve_forever, name="rabbitflow-status", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

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
