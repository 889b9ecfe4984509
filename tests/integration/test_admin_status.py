"""`streamer status` and `streamer tables`: what they say before, while and after a daemon runs."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from streamer import http
from streamer.admin.run import run
from streamer.admin.setup import setup
from streamer.admin.status import Line, exit_code, print_status, status
from streamer.admin.tables import print_tables, tables
from streamer.config import Config
from streamer.daemon import Daemon
from streamer.errors import UsageError
from tests.configs import make_config
from tests.conftest import Pair
from tests.servers import Database
from tests.waiting import wait_for, wait_for_equal

TABLES = "CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, 'x'); CREATE TABLE log (line text)"


def set_up(config: Config) -> None:
    setup(config, None, lambda line: None)


@contextmanager
def running(config: Config) -> Iterator[Daemon]:
    daemon = Daemon(config)
    thread = threading.Thread(target=daemon.run)
    with http.serving(config.http.address, daemon):
        thread.start()
        try:
            yield daemon
        finally:
            daemon.stop()
            thread.join()


def states(config: Config) -> Callable[[], list[str]]:
    return lambda: [str(line.state) for line in status(config)]


def test_status_follows_the_life_of_a_sync(pair: Pair, tmp_path: Path) -> None:
    source, target = pair
    source.execute(TABLES)
    config = make_config({"a": source.url, "b": target.url, "s": f"sqlite:///{tmp_path}/s.sqlite"})
    before = status(config)
    assert [(line.target, line.state, line.position) for line in before] == [("b", "not running", None), ("s", "not running", None)]
    assert [line.error for line in before] == ['sync "shop" has no slot on "a"'] * 2
    assert {line.remedy for line in before} == {"run: streamer setup --sync shop"}
    assert exit_code(before) == 1
    set_up(config)
    assert [line.error for line in status(config)] == [None, None]
    with running(config):
        wait_for_equal(states(config), ["streaming", "streaming"], "both edges to stream")
        source.execute("INSERT INTO t VALUES (2, 'y')")
        wait_for(lambda: all(line.rows == 1 for line in status(config)), "the row to be counted")
        now = status(config)
        assert exit_code(now) == 0
        assert all(line.position and line.copied == 1 for line in now)
    after = status(config)
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
        lines = status(config)
    assert exit_code(lines) == 2
    assert lines[0].error is not None
    assert 'slot "streamer_shop_a" does not exist on "a"' in lines[0].error
    print_status(lines, as_json=False)
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].split() == ["sync", "source", "target", "state", "position", "lag", "bytes", "lag", "s", "rows", "copied"]
    assert printed[1].split()[:4] == ["shop", "a", "b", "failed"]
    assert printed[2].startswith("shop: ")
    assert "streamer teardown --sync shop" in printed[2]


def test_a_source_that_is_away_is_trouble_of_its_edges(source15: Database, target18: Database) -> None:
    source15.execute(TABLES)
    config = make_config({"a": source15.url, "b": target18.url})
    set_up(config)
    with running(config):
        wait_for_equal(states(config), ["streaming"], "the edge to stream")
        source15.server.stop()
        wait_for_equal(states(config), ["retrying"], "the edge to notice")
        assert exit_code(status(config)) == 1
        source15.server.start()
        wait_for_equal(states(config), ["streaming"], "the edge to come back")


def test_nodes_that_are_away_are_shown_with_their_error() -> None:
    away = "postgresql://postgres@127.0.0.1:1/"
    lines = status(make_config({"a": f"{away}a", "b": f"{away}b"}))
    assert [line.state for line in lines] == ["not running"]
    assert lines[0].error is not None
    assert "Connection refused" in lines[0].error


def test_what_is_not_streamer_is_not_believed() -> None:
    class Other(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"hello")

        def log_message(self, format: str, *args: object) -> None: ...

    config = make_config({"a": "postgresql://x@127.0.0.1:1/a", "b": "postgresql://x@127.0.0.1:1/b"})
    server = HTTPServer(config.http.address, Other)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        with pytest.raises(UsageError, match=r"what answers on http://127\.0\.0\.1:\d+/status is not streamer; set another port"):
            status(config)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_status_as_json_holds_every_field(capsys: pytest.CaptureFixture[str]) -> None:
    line = Line("shop", "a", "b", "streaming", "0/1", 5, 0.5, 3, 2, None, None)
    print_status([line], as_json=True)
    assert json.loads(capsys.readouterr().out) == {
        "edges": [
            {
                "sync": "shop",
                "source": "a",
                "target": "b",
                "state": "streaming",
                "position": "0/1",
                "lag_bytes": 5,
                "lag_seconds": 0.5,
                "rows": 3,
                "copied": 2,
                "error": None,
                "remedy": None,
                "schedule": "continuous",
                "run": None,
                "next_run": None,
                "replaced": None,
            }
        ]
    }


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
