"""Where the running daemon answers: /status (JSON), /metrics (Prometheus), /healthz, and POST /syncs/NAME/kick, pause and resume.

Loopback only. falcon routes, and the server is the standard library's, which is enough on loopback; there is no HTTP of our own.
The server runs in a thread of the daemon, reads reports and hands on requests. The trap: a page that somebody's browser shows can
send requests to loopback as well; a browser tells where a POST comes from (Origin), and such a one is refused.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from socketserver import ThreadingMixIn
from typing import Protocol
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import falcon
import orjson

from streamer.errors import StreamerError, UnknownSyncError, UsageError
from streamer.metrics import exposition
from streamer.report import StreamReport


class Control(Protocol):
    """What the daemon tells, and what it can be asked for. See `Daemon` for what each raises."""

    @property
    def started(self) -> datetime:
        """When it was started: the numbers of kicks belong to this."""

    def report(self) -> Sequence[StreamReport]:
        """What every stream is doing now."""

    def kick(self, sync: str) -> Mapping[str, int]:
        """Let the sync catch up; return the number of the kick for each source."""

    def pause(self, sync: str) -> None:
        """Let the sync stop reading."""

    def resume(self, sync: str) -> None:
        """Let the sync go on."""


class _Status:
    def __init__(self, control: Control) -> None:
        self._control = control

    def on_get(self, request: falcon.Request, response: falcon.Response) -> None:
        response.content_type = falcon.MEDIA_JSON
        response.data = orjson.dumps({"started": self._control.started, "streams": list(self._control.report())})


class _Metrics:
    def __init__(self, control: Control) -> None:
        self._control = control

    def on_get(self, request: falcon.Request, response: falcon.Response) -> None:
        response.content_type = "text/plain; version=0.0.4; charset=utf-8"
        response.data = exposition(self._control.report)


class _Health:
    def on_get(self, request: falcon.Request, response: falcon.Response) -> None:
        response.content_type = falcon.MEDIA_TEXT
        response.text = "ok\n"


class _Sync:
    """One thing that a sync is asked to do; the answer is JSON in any case."""

    def __init__(self, act: Callable[[str], Mapping[str, object]]) -> None:
        self._act = act

    def on_post(self, request: falcon.Request, response: falcon.Response, name: str) -> None:
        answer: Mapping[str, object]
        try:
            if request.get_header("Origin") is not None:
                raise UsageError("a request of a web page is refused")
            answer = {"sync": name, **self._act(name)}
        except StreamerError as error:
            response.status = _status_of(error)
            answer = {"error": error.message, "remedy": error.hint}
        response.content_type = falcon.MEDIA_JSON
        response.data = orjson.dumps(answer)


def _status_of(error: StreamerError) -> str:
    if isinstance(error, UnknownSyncError):
        return falcon.HTTP_404
    return falcon.HTTP_409 if isinstance(error, UsageError) else falcon.HTTP_503


def application(control: Control) -> falcon.App:  # type: ignore[type-arg]
    """Return the WSGI application."""

    def kick(sync: str) -> Mapping[str, object]:
        return {"started": control.started, "kicks": control.kick(sync)}

    def pause(sync: str) -> Mapping[str, object]:
        control.pause(sync)
        return {"paused": True}

    def resume(sync: str) -> Mapping[str, object]:
        control.resume(sync)
        return {"paused": False}

    app = falcon.App()
    app.add_route("/status", _Status(control))
    app.add_route("/metrics", _Metrics(control))
    app.add_route("/healthz", _Health())
    app.add_route("/syncs/{name}/kick", _Sync(kick))
    app.add_route("/syncs/{name}/pause", _Sync(pause))
    app.add_route("/syncs/{name}/resume", _Sync(resume))
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
def serving(address: tuple[str, int], control: Control) -> Iterator[None]:
    """Serve while the context lasts. Raises UsageError if the port is taken."""
    host, port = address
    try:
        server = make_server(
            host, port, application(control), server_class=_Server6 if ":" in host else _Server, handler_class=_Handler
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
