"""Where the running daemon answers: /status (JSON), /metrics (Prometheus), /healthz. Loopback only.

falcon routes, and the server is the standard library's, which is enough on loopback; there is no HTTP of our own. The server runs
in a thread of the daemon and only reads reports.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from socketserver import ThreadingMixIn
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import falcon
import orjson

from streamer.errors import UsageError
from streamer.metrics import exposition
from streamer.report import StreamReport

Report = Callable[[], Sequence[StreamReport]]


class _Status:
    def __init__(self, report: Report) -> None:
        self._report = report

    def on_get(self, request: falcon.Request, response: falcon.Response) -> None:
        response.content_type = falcon.MEDIA_JSON
        response.data = orjson.dumps({"streams": list(self._report())})


class _Metrics:
    def __init__(self, report: Report) -> None:
        self._report = report

    def on_get(self, request: falcon.Request, response: falcon.Response) -> None:
        response.content_type = "text/plain; version=0.0.4; charset=utf-8"
        response.data = exposition(self._report)


class _Health:
    def on_get(self, request: falcon.Request, response: falcon.Response) -> None:
        response.content_type = falcon.MEDIA_TEXT
        response.text = "ok\n"


def application(report: Report) -> falcon.App:  # type: ignore[type-arg]
    """Return the WSGI application."""
    app = falcon.App()
    app.add_route("/status", _Status(report))
    app.add_route("/metrics", _Metrics(report))
    app.add_route("/healthz", _Health())
    return app


class _Server(ThreadingMixIn, WSGIServer):
    """The standard library's server, a thread for each request."""

    daemon_threads = True


class _Server6(_Server):
    address_family = socket.AF_INET6


class _Handler(WSGIRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Requests are no event of replication."""


@contextmanager
def serving(address: tuple[str, int], report: Report) -> Iterator[None]:
    """Serve while the context lasts. Raises UsageError if the port is taken."""
    host, port = address
    try:
        server = make_server(
            host, port, application(report), server_class=_Server6 if ":" in host else _Server, handler_class=_Handler
        )
    except OSError as error:
        raise UsageError(
            f"http.listen {host}:{port}: {error.strerror}",
            "end the daemon that listens there, or set another port in [http] listen",
        ) from None
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, name="http", daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join(timeout=2)
