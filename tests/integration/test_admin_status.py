"""`streamer status` and `streamer tables`: what they say before, while and after a daemon runs."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from streamer import http_server
from streamer.admin.run import run
from streamer.admin.setup import setup
from streamer.admin.status import Line, Severity, Status, status
from streamer.admin.status_table import print_status
from streamer.admin.tables import print_tables, tables
from streamer.config import Config
from streamer.daemon import Daemon
from streamer.errors import UsageError
from tests.configs import make_config
from tests.conftest import Pair
from tests.integration.streams import daemon_running
from tests.servers import Database
from tests.waiting import wait_for, wait_for_equal

TABLES = "CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, 'x'); CREATE TABLE log (line text)"


def set_up(config: Config) -> None:
    setup(config, None, lambda line: None)


@contextmanager
def running(config: Config) -> Iterator[Daemon]:
    with daemon_running(config) as daemon, http_server.serving(config.http.address, daemon):
        yield daemon


def states(config: Config) -> Callable[[], list[str]]:
    return lambda: [str(line.state) for line in status(config).edges]


def test_status_follows_the_life_of_a_sync(pair: Pair, tmp_path: Path) -> None:
    source, target = pair
    source.execute(TABLES)
    config = make_config({"a": source.url, "b": target.url, "s": f"sqlite:///{tmp_path}/s.sqlite"})
    assert status(config).severity is Severity.CRITICAL
    before = status(config).edges
    assert [(line.target, line.state, line.position) for line in before] == [("b", "not running", None), ("s", "not running", None)]
    assert [line.error for line in before] == ['sync "shop" has no slot on "a"'] * 2
    assert {line.remedy for line in before} == {"run: streamer setup --sync shop"}
    set_up(config)
    assert [line.error for line in status(config).edges] == [None, None]
    with running(config):
        wait_for_equal(states(config), ["streaming", "streaming"], "both edges to stream")
        source.execute("INSERT INTO t VALUES (2, 'y')")
        wait_for(lambda: all(line.rows == 1 for line in status(config).edges), "the row to be counted")
        assert status(config).severity is Severity.OK
        now = status(config).edges
        assert all(line.position and line.copied == 1 and line.inserted == 1 and line.last_applied for line in now)
    after = status(config).edges
    assert [line.state for line in after] == ["not running", "not running"]
    assert all(line.position and line.lag_bytes is not None and line.rows is None for line in after)


def test_an_edge_that_has_failed_is_shown_with_its_remedy(
    source15: Database, target18: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    source15.execute(TABLES)
    config = make_config({"a": source15.url, "b": target18.url})
    set_up(config)
    assert run(config, sync=None, source=None, once=True) == []
    source15.execute("SELECT pg_drop_replication_slot('streamer_shop_a')")
    with running(config):
        wait_for_equal(states(config), ["failed"], "the edge to fail")
        found = status(config)
    assert found.severity is Severity.CRITICAL
    assert found.edges[0].error is not None
    assert 'slot "streamer_shop_a" does not exist on "a"' in found.edges[0].error
    print_status(found, as_json=False)
    summary, headers, edge, error = capsys.readouterr().out.splitlines()
    assert summary == "CRITICAL: 1 of 1 edge failed"
    assert headers == ("sync  source  target  state   position  lag bytes  lag s  last applied  inserted  updated  deleted  copied")
    assert edge.split()[:4] == ["shop", "a", "b", "failed"]
    assert error.startswith("shop: ")
    assert "streamer teardown --sync shop" in error


def test_a_source_that_is_away_is_trouble_of_its_edges(source15: Database, target18: Database) -> None:
    source15.execute(TABLES)
    config = make_config({"a": source15.url, "b": target18.url})
    set_up(config)
    with running(config):
        wait_for_equal(states(config), ["streaming"], "the edge to stream")
        source15.server.stop()
        wait_for_equal(states(config), ["retrying"], "the edge to notice")
        assert status(config).severity is Severity.WARNING
        source15.server.start()
        wait_for_equal(states(config), ["streaming"], "the edge to come back")


def test_nodes_that_are_away_are_shown_with_their_error() -> None:
    away = "postgresql://postgres@127.0.0.1:1/"
    lines = status(make_config({"a": f"{away}a", "b": f"{away}b"})).edges
    assert [line.state for line in lines] == ["not running"]
    assert lines[0].error is not None
    assert "Connection refused" in lines[0].error


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"hello", r"what answers on http://127\.0\.0\.1:\d+/status is not streamer; set another port"),
        (
            b'{"version": "0.0.9", "streams": [], "nodes": [{"node": "a"}]}',
            r"the daemon that runs is of another version \(0\.0\.9, this is .*\): it does not tell 'slots'; restart it",
        ),
    ],
    ids=["something else", "another version"],
)
def test_what_is_not_this_streamer_is_not_believed(answer: bytes, said: str) -> None:
    class Other(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, format: str, *args: object) -> None: ...

    config = make_config({"a": "postgresql://x@127.0.0.1:1/a", "b": "postgresql://x@127.0.0.1:1/b"})
    server = HTTPServer(config.http.address, Other)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        with pytest.raises(UsageError, match=said):
            status(config)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_status_as_json_holds_every_field(capsys: pytest.CaptureFixture[str]) -> None:
    line = Line("shop", "a", "b", "streaming", "0/1", 5, 0.5, 3, 2, None, None)
    print_status(Status([line], [], running=True), as_json=True)
    document = json.loads(capsys.readouterr().out)
    assert (document["severity"], document["running"], document["nodes"]) == ("ok", True, [])
    assert list(document["edges"][0]) == [field.name for field in fields(Line)]
    assert (document["edges"][0]["lag_seconds"], document["edges"][0]["last_applied"]) == (0.5, None)


def test_a_blocked_target_is_a_warning_to_monitoring_though_the_edge_streams() -> None:
    line = Line("shop", "a", "b", "streaming", "0/1", 5, 40.0, 3, 2, 'node "b" is at work on one group', "see what it waits for")
    assert (line.severity, replace(line, error=None, remedy=None).severity) == (Severity.WARNING, Severity.OK)


def test_tables_tells_what_will_happen_to_each(pair: Pair, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, target = pair
    source.execute(TABLES + "; CREATE TABLE kept (id int PRIMARY KEY); ANALYZE")
    target.execute(
        "CREATE TABLE kept (id int PRIMARY KEY); INSERT INTO kept VALUES (1); CREATE TABLE t (id int PRIMARY KEY, v text)"
    )
    config = make_config({"a": source.url, "b": target.url, "s": f"sqlite:///{tmp_path}/s.sqlite"})
    found, problems = tables(config, None)
    assert not problems
    created = "will be created, copy, then "
    assert [(t.table, t.key, t.identity, t.rows, t.targets) for t in found] == [
        ("public.kept", ("id",), "primary key", 0, {"b": "stream", "s": f"{created}stream"}),
        ("public.log", (), "none", 0, {"b": f"{created}inserts only", "s": f"{created}inserts only"}),
        ("public.t", ("id",), "primary key", 1, {"b": "copy, then stream", "s": f"{created}stream"}),
    ]
    set_up(config)
    assert run(config, sync=None, source=None, once=True) == []
    found, problems = tables(config, "shop")
    assert not problems
    assert [plan for t in found for plan in t.targets.values()] == ["stream"] * 2 + ["inserts only"] * 2 + ["stream"] * 2
    print_tables(found, as_json=True)
    assert json.loads(capsys.readouterr().out)["tables"][2]["table"] == "public.t"


def test_tables_names_the_targets_that_are_away(source15: Database) -> None:
    source15.execute(TABLES)
    found, problems = tables(make_config({"a": source15.url, "b": "postgresql://x@127.0.0.1:1/b"}), None)
    assert [t.targets for t in found] == [{"b": "cannot be reached"}] * 2
    assert len(problems) == 1


def test_an_unknown_sync_is_refused(source15: Database) -> None:
    with pytest.raises(UsageError, match='the config has no sync "other"; it has shop'):
        tables(make_config({"a": source15.url, "b": "postgresql://x@127.0.0.1:1/b"}), "other")
