"""`streamer teardown` on real servers: the catalogs before setup and after teardown are the same."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import pytest

from streamer.admin.run import run
from streamer.admin.setup import setup
from streamer.admin.teardown import teardown
from streamer.config import Config
from streamer.errors import StreamerError, UsageError
from streamer.report import State
from tests.configs import make_config
from tests.conftest import Pair
from tests.integration.streams import daemon_running
from tests.servers import Database
from tests.waiting import wait_for

TABLES = "CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1), (2); CREATE TABLE log (line text)"
CATALOG = (
    "SELECT relname, relkind::text FROM pg_class WHERE relnamespace::regnamespace::text NOT LIKE 'pg\\_%' ORDER BY 1, 2",
    "SELECT nspname FROM pg_namespace WHERE nspname NOT LIKE 'pg\\_t%' ORDER BY 1",
    "SELECT typname FROM pg_type ORDER BY 1",
    "SELECT proname FROM pg_proc WHERE oid >= 16384 ORDER BY 1",
    "SELECT pubname FROM pg_publication",
    "SELECT slot_name FROM pg_replication_slots WHERE database = current_database()",
    "SELECT roname FROM pg_replication_origin",
)


def catalog(database: Database) -> list[object]:
    return [database.query(query) for query in CATALOG]


def set_up(config: Config) -> None:
    setup(config, None, lambda line: None)


def tear_down(
    config: Config, only: str | None = None, *, force: bool = False, agree: bool = True
) -> tuple[list[str], list[StreamerError]]:
    said: list[str] = []
    problems = teardown(config, only, force=force, confirm=lambda lines: agree, say=said.append)
    return said, problems


def test_teardown_leaves_nothing_behind(pair: Pair, tmp_path: Path) -> None:
    source, target = pair
    for database in pair:
        database.execute(TABLES)
    before = [catalog(database) for database in pair]
    file = tmp_path / "s.sqlite"
    config = make_config({"a": source.url, "b": target.url, "s": f"sqlite:///{file}"}, copy="always", tables=["t", "log"])
    set_up(config)
    assert run(config, sync=None, source=None, once=True) == []
    source.execute("INSERT INTO t VALUES (3)")
    assert run(config, sync=None, source=None, once=True) == []
    assert [catalog(database) for database in pair] != before
    said, problems = tear_down(config)
    assert not problems
    assert 'a: removed slot "streamer_shop_a"' in said
    assert 'b: removed replication origin "streamer:shop:b:a:a"' in said
    assert [catalog(database) for database in pair] == before
    assert target.query("SELECT count(*) FROM t") == [(3,)]
    with closing(sqlite3.connect(file)) as connection:
        assert connection.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY 1").fetchall() == [("log",), ("t",)]
    assert tear_down(config) == (["there is nothing to remove"], [])


def test_teardown_of_one_sync_leaves_the_other(source15: Database, target18: Database, tmp_path: Path) -> None:
    source15.execute(TABLES)
    nodes = {"a": source15.url, "b": target18.url, "s": f"sqlite:///{tmp_path}/s.sqlite"}
    syncs = {
        "one": {"sources": ["a"], "targets": ["b", "s"], "tables": ["t"]},
        "two": {"sources": ["a"], "targets": ["b", "s"], "tables": ["log"]},
    }
    config = make_config(nodes, syncs=syncs)
    set_up(config)
    assert run(config, sync="two", source=None, once=True) == []
    said, problems = tear_down(config, "one")
    assert not problems
    assert 'a: removed slot "streamer_one_a"' in said
    assert not any("schema" in line or "two" in line for line in said)
    source15.execute("INSERT INTO log VALUES ('after')")
    assert run(config, sync="two", source=None, once=True) == []
    assert target18.query("SELECT * FROM log") == [("after",)]
    said, problems = tear_down(config, "two")
    assert not problems
    assert {'a: removed schema "streamer"', 'b: removed schema "streamer"'} <= set(said)


def test_teardown_asks_and_takes_no_for_an_answer(source15: Database, target18: Database) -> None:
    source15.execute(TABLES)
    config = make_config({"a": source15.url, "b": target18.url})
    set_up(config)
    before = catalog(source15)
    asked: list[str] = []

    def refuse(lines: Sequence[str]) -> bool:
        asked.extend(lines)
        return False

    assert teardown(config, None, force=False, confirm=refuse, say=asked.append) == []
    assert 'a: slot "streamer_shop_a"' in asked
    assert catalog(source15) == before


def test_a_node_that_is_away_does_not_stop_the_others(source15: Database, target18: Database) -> None:
    source15.execute(TABLES)
    config = make_config({"a": source15.url, "b": target18.url})
    set_up(config)
    away = make_config({"a": source15.url, "b": "postgresql://postgres@127.0.0.1:1/target"})
    said, problems = tear_down(away)
    assert 'a: removed slot "streamer_shop_a"' in said
    assert [p.message.split(":")[0] for p in problems] == ['node "b"']
    said, problems = tear_down(config)
    assert not problems
    assert 'b: removed schema "streamer"' in said


def test_a_slot_that_is_read_is_only_dropped_by_force(pair: Pair) -> None:
    source, target = pair
    source.execute(TABLES)
    config = make_config({"a": source.url, "b": target.url})
    set_up(config)
    with daemon_running(config) as daemon:
        wait_for(lambda: source.query("SELECT 1 FROM pg_replication_slots WHERE active AND NOT temporary"), "the slot to be read")
        with pytest.raises(UsageError, match=r'slot "streamer_shop_a" on "a" is read by process \d+; stop streamer run first'):
            tear_down(config)
        said, problems = tear_down(config, force=True)
        assert not problems
        assert 'a: removed slot "streamer_shop_a"' in said
        wait_for(lambda: daemon.report()[0].state in (State.FAILED, State.RETRYING), "the daemon to notice")


def test_a_daemon_that_still_copies_is_noticed_too(source15: Database, target18: Database) -> None:
    source15.execute(TABLES)
    config = make_config({"a": source15.url, "b": target18.url})
    set_up(config)
    with target18.connect() as writer:
        writer.execute("SET application_name = 'streamer shop: a -> b'")
        with pytest.raises(UsageError, match=r'edge shop: a -> b is written by process \d+ on "b"; stop streamer run first'):
            tear_down(config)
    assert tear_down(config)[1] == []
