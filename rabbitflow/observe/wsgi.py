"""The standard library's WSGI server, on a socket that listens already."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

Application = Callable[[dict[str, Any], Any], Iterable[bytes]]


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _QuietHandler(WSGIRequestHandler):
    timeout = 10.0  # a peer that sends nothing must not hold a thread for ever

    def log_message(self, format: str, *args: Any) -> None:
        """Log no scrape: there is one every few seconds."""


def server_on(listening: socket.socket, application: Application) -> WSGIServer:
    """Return a server of ``application`` on ``listening``, which it closes in the end."""
    address = listening.getsockname()
    server = _Server(address, _QuietHandler, bind_and_activate=False)
    server.socket.close()
    server.socket, server.server_address = listening, address
    # Not what server_bind does: that asks the name service for the name of our own address.
    server.server_name, server.server_port = address[:2]
    server.setup_environ()
    server.set_app(application)
    return server
