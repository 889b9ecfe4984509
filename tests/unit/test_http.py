"""The daemon's HTTP server: what it answers, what it hands on, and that it comes and goes without a word."""

from __future__ import annotations

import http.client
import socket
import struct
import threading
import urllib.error
import urllib.request
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from datetime import UTC, datetime

import orjson
import pytest

from streamer import http_server
from streamer.errors import ConnectError, StreamerError, UnknownSyncError, UsageError
from streamer.http_server import serving
from streamer.model import TableName
from streamer.report import GuardLevel, NodeReport, State, StreamReport
from tests.servers import free_port
from tests.waiting import wait_for


class Streams:
    """Implements http.Control: notes what it is asked for, or raises `refusal`."""

    started = datetime(2026, 11, 21, tzinfo=UTC)

    def __init__(self, refusal: StreamerError | None = None, state: State = State.STREAMING) -> None:
        self.asked: list[tuple[str, str]] = []
        self._refusal = refusal
        self._state = state
        #: somebody wants a report, and gets it once the gate is open
        self.entered, self.gate = threading.Event(), threading.Event()
        self.gate.set()

    def report(self) -> list[StreamReport]:
        self.entered.set()
        self.gate.wait(10)
        return [StreamReport("shop", "a", self._state, "0/10", None, [])]

    def nodes(self) -> list[NodeReport]:
        return [NodeReport("a", None, None, None, "alert", GuardLevel.OK, [])]

    def kick(self, sync: str) -> Mapping[str, int]:
        self._ask("kick", sync)
        return {"a": 3}

    def copy_again(self, sync: str, table: TableName) -> None:
        self._ask(f"copy {table}", sync)

    def pause(self, sync: str) -> None:
        self._ask("pause", sync)

    def resume(self, sync: str) -> None:
        self._ask("resume", sync)

    def hear(self, sync: str, body: bytes) -> None:
        self._ask(f"hear {body.decode()}", sync)

    def _ask(self, what: str, sync: str) -> None:
        if self._refusal:
            raise self._refusal
        self.asked.append((what, sync))


def get(port: int, path: str) -> bytes:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
        body: bytes = answer.read()
    return body


def post(port: int, path: str, body: bytes | None = None, /, **headers: str) -> tuple[int, object]:
    """The status and the JSON of an answer."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", body, method="POST", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, orjson.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, orjson.loads(error.read())


def test_status_metrics_and_health_are_answered() -> None:
    port = free_port()
    with serving(("127.0.0.1", port), Streams()):
        status = orjson.loads(get(port, "/status"))
        assert status["streams"][0]["state"] == "streaming"
        assert status["started"] == "2026-11-21T00:00:00+00:00"
        assert b"streamer_edge_rows_total" in get(port, "/metrics")
        assert get(port, "/healthz") == b"ok\n"


def test_what_a_sync_is_asked_and_told_is_handed_on() -> None:
    port, streams = free_port(), Streams()
    with serving(("127.0.0.1", port), streams):
        kicked = {"sync": "shop", "started": "2026-11-21T00:00:00+00:00", "kicks": {"a": 3}}
        assert post(port, "/syncs/shop/kick") == (200, kicked)
        assert post(port, "/syncs/shop/pause") == (200, {"sync": "shop", "paused": True})
        assert post(port, "/syncs/shop/resume") == (200, {"sync": "shop", "paused": False})
        assert post(port, "/syncs/shop/verified", b"{}") == (200, {"sync": "shop", "verified": True})
        assert post(port, "/syncs/shop/verified") == (200, {"sync": "shop", "verified": True})
    assert streams.asked == [("kick", "shop"), ("pause", "shop"), ("resume", "shop"), ("hear {}", "shop"), ("hear ", "shop")]


@pytest.mark.parametrize(
    ("refusal", "status"), [(UnknownSyncError, 404), (UsageError, 409), (ConnectError, 503)], ids=lambda value: str(value)
)
def test_a_refusal_is_one_line_with_its_remedy(refusal: type[StreamerError], status: int) -> None:
    port = free_port()
    with serving(("127.0.0.1", port), Streams(refusal("it cannot be", "do this"))):
        for what in ("kick", "pause", "resume"):
            assert post(port, f"/syncs/shop/{what}") == (status, {"error": "it cannot be", "remedy": "do this"})


def test_nothing_is_changed_by_a_get_or_for_a_web_page() -> None:
    port, streams = free_port(), Streams()
    with serving(("127.0.0.1", port), streams):
        with pytest.raises(urllib.error.HTTPError, match="405"):
            get(port, "/syncs/shop/kick")
        assert post(port, "/syncs/shop/kick", Origin="https://elsewhere.example")[0] == 409
    assert streams.asked == []


def test_a_server_that_is_closed_while_it_waits_does_not_complain() -> None:
    for _ in range(50):  # the loop may be anywhere when its sockets are closed
        with serving(("127.0.0.1", free_port()), Streams()):
            pass


def test_a_port_that_something_else_has_is_one_line_with_the_remedy() -> None:
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        address = stranger.getsockname()
        refused = pytest.raises(UsageError, match="Address already in use; end what listens there, or set another port in")
        with refused, serving(address, Streams()):
            pass


def test_a_port_that_another_streamer_has_is_waited_for_and_taken_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "RETRY_SECONDS", 0.01)
    port, first, second = free_port(), Streams(), Streams()
    with ExitStack() as active:
        active.enter_context(serving(("127.0.0.1", port), first))
        with serving(("127.0.0.1", port), second):
            post(port, "/syncs/shop/kick")
            active.close()
            wait_for(lambda: reached(port), "the standby to answer")
            post(port, "/syncs/shop/pause")
    assert (first.asked, second.asked) == ([("kick", "shop")], [("pause", "shop")])


def reached(port: int) -> bool:
    with suppress(OSError):
        return get(port, "/healthz") == b"ok\n"
    return False


def test_a_standby_that_is_stopped_does_not_wait_for_the_port() -> None:
    port = free_port()
    with serving(("127.0.0.1", port), Streams()):
        with serving(("127.0.0.1", port), Streams()):
            pass
        assert reached(port)


# -- who may ask -----------------------------------------------------------------------------------------------------------------

TOKEN = "correct-horse-battery"


@pytest.mark.parametrize(("header", "what"), [({}, "missing"), ({"Authorization": f"Bearer {TOKEN}x"}, "wrong")])
def test_without_the_right_token_nothing_is_told_or_done(header: dict[str, str], what: str) -> None:
    port, streams = free_port(), Streams()
    refusal = {"error": f"the bearer token is {what}", "remedy": "it is that of [http] token in the daemon's config"}
    with serving(("127.0.0.1", port), streams, TOKEN):
        for path in ("/syncs/shop/kick", "/syncs/shop/pause", "/status", "/metrics", "/nothing"):
            assert post(port, path, **header) == (401, refusal)
    assert streams.asked == []


def test_the_right_token_opens_everything_and_a_health_check_needs_none() -> None:
    port, streams = free_port(), Streams()
    with serving(("127.0.0.1", port), streams, TOKEN):
        assert post(port, "/syncs/shop/kick", Authorization=f"Bearer {TOKEN}")[0] == 200
        assert get(port, "/healthz") == b"ok\n"
        assert get(port, "/readyz") == b"1 of 1 streams ready\n"


@pytest.mark.parametrize(
    ("state", "status"),
    [
        (State.STREAMING, 200),
        (State.COPYING, 200),
        (State.RESTING, 200),
        (State.PAUSED, 200),
        (State.STANDBY, 200),
        (State.STARTING, 503),
        (State.RETRYING, 503),
        (State.FAILED, 503),
        (State.STOPPED, 503),
    ],
)
def test_readiness_is_that_of_the_streams(state: State, status: int) -> None:
    port = free_port()
    with serving(("127.0.0.1", port), Streams(state=state)):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        connection.request("GET", "/readyz")
        assert connection.getresponse().status == status
        connection.close()


# -- the end ---------------------------------------------------------------------------------------------------------------------


def test_an_answer_that_has_begun_is_given_when_the_server_ends() -> None:
    port, streams = free_port(), Streams()
    streams.gate.clear()
    answers: list[bytes] = []
    scrape = threading.Thread(target=lambda: answers.append(get(port, "/metrics")))
    with serving(("127.0.0.1", port), streams):
        scrape.start()
        assert streams.entered.wait(10)
        threading.Timer(0.2, streams.gate.set).start()
    scrape.join(10)
    assert b"streamer_edge_rows_total" in answers[0]


def test_a_client_that_goes_away_is_not_complained_of(capsys: pytest.CaptureFixture[str]) -> None:
    port = free_port()
    with serving(("127.0.0.1", port), Streams()):
        for request in (b"", b"GET /metr", b"GET /metrics HTTP/1.1\r\n\r\n"):
            with socket.create_connection(("127.0.0.1", port)) as client:
                client.sendall(request)
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset, not a farewell
        assert get(port, "/healthz") == b"ok\n"
    assert "Traceback" not in capsys.readouterr().err
