"""What the running daemon answers: /status (JSON), /metrics (Prometheus), /healthz, /readyz, and POST /syncs/NAME/kick, pause,
resume, copy and verified. Where it does is the business of http_server.py.

falcon routes; there is no HTTP of our own. Requests read reports, or are handed on. With a token, all but the two of a health check
must bring it. The trap: a page that somebody's browser shows can send requests to loopback as well; a browser tells where a POST
comes from (Origin), and such a one is refused.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Final, Protocol

import falcon
import orjson

from streamer import __version__, logs
from streamer.errors import StreamerError, UnknownSyncError, UsageError
from streamer.metrics import exposition
from streamer.model import TableName
from streamer.report import NodeReport, State, StreamReport

OPEN: Final = ("/healthz", "/readyz")
"""What is answered to everybody."""
READY: Final = (State.STREAMING, State.COPYING, State.INDEXING, State.RESTING, State.PAUSED, State.STANDBY)
"""States of a stream that does what it should. A standby counts: it is ready to take over, and a rolling update waits for that."""


class Control(Protocol):
    """What the daemon tells, and what it can be asked for. See `Daemon` for what each raises."""

    @property
    def started(self) -> datetime:
        """When it was started: the numbers of kicks belong to this."""

    def report(self) -> Sequence[StreamReport]:
        """What every stream is doing now."""

    def nodes(self) -> Sequence[NodeReport]:
        """The slots of every source."""

    def kick(self, sync: str) -> Mapping[str, int]:
        """Let the sync catch up; return the number of the kick for each source."""

    def copy_again(self, sync: str, table: TableName) -> None:
        """Let the targets copy a table once more."""

    def pause(self, sync: str) -> None:
        """Let the sync stop reading."""

    def resume(self, sync: str) -> None:
        """Let the sync go on."""

    def hear(self, sync: str, body: bytes) -> None:
        """Take over what `streamer verify` has found."""


class _Status:
    def __init__(self, control: Control) -> None:
        self._control = control

    def on_get(self, request: falcon.Request, response: falcon.Response) -> None:
        response.content_type = falcon.MEDIA_JSON
        control = self._control
        response.data = orjson.dumps(
            {
                "version": __version__,
                "started": control.started,
                "log_records_lost": logs.lost_records(),
                "streams": list(control.report()),
                "nodes": list(control.nodes()),
            }
        )


class _Metrics:
    def __init__(self, control: Control) -> None:
        self._control = control

    def on_get(self, request: falcon.Request, response: falcon.Response) -> None:
        response.content_type = "text/plain; version=0.0.4; charset=utf-8"
        response.data = exposition(self._control.report, self._control.nodes)


class _Health:
    def on_get(self, request: falcon.Request, response: falcon.Response) -> None:
        response.content_type = falcon.MEDIA_TEXT
        response.text = "ok\n"


class _Readiness:
    def __init__(self, control: Control) -> None:
        self._control = control

    def on_get(self, request: falcon.Request, response: falcon.Response) -> None:
        states = [stream.state for stream in self._control.report()]
        ready = sum(state in READY for state in states)
        response.status = falcon.HTTP_200 if ready == len(states) else falcon.HTTP_503
        response.content_type = falcon.MEDIA_TEXT
        response.text = f"{ready} of {len(states)} streams ready\n"


class _Bearer:
    """Lets nobody in without the token.

    https://www.rfc-editor.org/rfc/rfc6750#section-2.1
    """

    def __init__(self, token: str) -> None:
        self._expected = f"Bearer {token}".encode()

    def process_request(self, request: falcon.Request, response: falcon.Response) -> None:
        given = (request.get_header("Authorization") or "").encode()
        if request.path in OPEN or hmac.compare_digest(given, self._expected):
            return
        response.status = falcon.HTTP_401
        response.set_header("WWW-Authenticate", "Bearer")
        what = "wrong" if given else "missing"
        _answer(response, {"error": f"the bearer token is {what}", "remedy": "it is that of [http] token in the daemon's config"})
        response.complete = True


def _answer(response: falcon.Response, answer: Mapping[str, object]) -> None:
    response.content_type = falcon.MEDIA_JSON
    response.data = orjson.dumps(answer)


class _Sync:
    """One thing that a sync is asked to do; the answer is JSON in any case."""

    def __init__(self, act: Callable[..., Mapping[str, object]], *parameters: str, body: bool = False) -> None:
        self._act = act
        self._parameters = parameters
        self._body = body

    def on_post(self, request: falcon.Request, response: falcon.Response, name: str) -> None:
        answer: Mapping[str, object]
        try:
            if request.get_header("Origin") is not None:
                raise UsageError("a request of a web page is refused")
            given: list[str | bytes] = [request.get_param(parameter, default="") for parameter in self._parameters]
            if self._body:
                given.append(request.bounded_stream.read())
            answer = {"sync": name, **self._act(name, *given)}
        except StreamerError as error:
            response.status = _status_of(error)
            answer = {"error": error.message, "remedy": error.hint}
        _answer(response, answer)


def _status_of(error: StreamerError) -> str:
    if isinstance(error, UnknownSyncError):
        return falcon.HTTP_404
    return falcon.HTTP_409 if isinstance(error, UsageError) else falcon.HTTP_503


def application(control: Control, token: str | None = None) -> falcon.App:  # type: ignore[type-arg]
    """Return the WSGI application; with a token, requests must bring it."""

    def kick(sync: str) -> Mapping[str, object]:
        return {"started": control.started, "kicks": control.kick(sync)}

    def pause(sync: str) -> Mapping[str, object]:
        control.pause(sync)
        return {"paused": True}

    def resume(sync: str) -> Mapping[str, object]:
        control.resume(sync)
        return {"paused": False}

    def copy_again(sync: str, table: str) -> Mapping[str, object]:
        control.copy_again(sync, TableName(*table.partition(".")[::2]))
        return {"table": table}

    def hear(sync: str, body: bytes) -> Mapping[str, object]:
        control.hear(sync, body)
        return {"verified": True}

    app = falcon.App(middleware=[_Bearer(token)] if token else [])
    app.add_route("/status", _Status(control))
    app.add_route("/metrics", _Metrics(control))
    app.add_route("/healthz", _Health())
    app.add_route("/readyz", _Readiness(control))
    app.add_route("/syncs/{name}/kick", _Sync(kick))
    app.add_route("/syncs/{name}/copy", _Sync(copy_again, "table"))
    app.add_route("/syncs/{name}/pause", _Sync(pause))
    app.add_route("/syncs/{name}/resume", _Sync(resume))
    app.add_route("/syncs/{name}/verified", _Sync(hear, body=True))
    return app
