"""The daemon's HTTP server: what it answers, what it hands on, and that it comes and goes without a word."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Mapping
from datetime import UTC, datetime

import orjson
import pytest

from streamer.errors import ConnectError, StreamerError, UnknownSyncError, UsageError
from streamer.http import serving
from streamer.report import State, StreamReport
from tests.servers import free_port


class Streams:
    """Implements http.Control: notes what it is asked for, or raises `refusal`."""

    started = datetime(2026, 11, 21, tzinfo=UTC)

    def __init__(self, refusal: StreamerError | None = None) -> None:
        self.asked: list[tuple[str, str]] = []
        self._refusal = refusal

    def report(self) -> list[StreamReport]:
        return [StreamReport("shop", "a", State.STREAMING, "0/10", None, [])]

    def kick(self, sync: str) -> Mapping[str, int]:
        self._ask("kick", sync)
        return {"a": 3}

    def pause(self, sync: str) -> None:
        self._ask("pause", sync)

    def resume(self, sync: str) -> None:
        self._ask("resume", sync)

    def _ask(self, what: str, sync: str) -> None:
        if self._refusal:
            raise self._refusal
        self.asked.append((what, sync))


def get(port: int, path: str) -> bytes:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
        body: bytes = answer.read()
    return body


def post(port: int, path: str, **headers: str) -> tuple[int, object]:
    """The status and the JSON of an answer."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", method="POST", headers=headers)
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


def test_kick_pause_and_resume_are_handed_on() -> None:
    port, streams = free_port(), Streams()
    with serving(("127.0.0.1", port), streams):
        kicked = {"sync": "shop", "started": "2026-11-21T00:00:00+00:00", "kicks": {"a": 3}}
        assert post(port, "/syncs/shop/kick") == (200, kicked)
        assert post(port, "/syncs/shop/pause") == (200, {"sync": "shop", "paused": True})
        assert post(port, "/syncs/shop/resume") == (200, {"sync": "shop", "paused": False})
    assert streams.asked == [("kick", "shop"), ("pause", "shop"), ("resume", "shop")]


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


def test_a_taken_port_is_one_line_with_the_remedy() -> None:
    port = free_port()
    with (
        serving(("127.0.0.1", port), Streams()),
        pytest.raises(UsageError, match="set another port in"),
        serving(("127.0.0.1", port), Streams()),
    ):
        pass
