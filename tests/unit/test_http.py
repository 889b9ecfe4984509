"""The daemon's HTTP server: what it answers, and that it comes and goes without a word."""

from __future__ import annotations

import urllib.request

import orjson
import pytest

from streamer.errors import UsageError
from streamer.http import serving
from streamer.report import State, StreamReport
from tests.servers import free_port


def report() -> list[StreamReport]:
    return [StreamReport("shop", "a", State.STREAMING, "0/10", None, [])]


def get(port: int, path: str) -> bytes:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
        body: bytes = answer.read()
    return body


def test_status_metrics_and_health_are_answered() -> None:
    port = free_port()
    with serving(("127.0.0.1", port), report):
        assert orjson.loads(get(port, "/status"))["streams"][0]["state"] == "streaming"
        assert b"streamer_edge_rows_total" in get(port, "/metrics")
        assert get(port, "/healthz") == b"ok\n"


def test_a_server_that_is_closed_while_it_waits_does_not_complain() -> None:
    for _ in range(50):  # the loop may be anywhere when its sockets are closed
        with serving(("127.0.0.1", free_port()), report):
            pass


def test_a_taken_port_is_one_line_with_the_remedy() -> None:
    port = free_port()
    with (
        serving(("127.0.0.1", port), report),
        pytest.raises(UsageError, match="set another port in"),
        serving(("127.0.0.1", port), report),
    ):
        pass
