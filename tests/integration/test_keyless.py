"""Tables without a primary key: what is captured by itself, by a key that the config names, and what is copied whole."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psycopg
import pytest

from streamer.admin.check import check
from streamer.admin.findings import Severity
from streamer.admin.setup import setup
from streamer.admin.tables import tables
from streamer.config import Config
from streamer.daemon import Daemon
from streamer.report import EdgeReport
from tests.configs import make_config
from tests.conftest import Pair
from tests.integration.streams import running, tuned_back
from tests.integration.verifying import verified
from tests.meanwhile import meanwhile
from tests.mysql_servers import MysqlDatabase
from tests.servers import Database, Row
from tests.waiting import wait_for, wait_for_equal

ALL = "SELECT * FROM log ORDER BY 1, 2, 3"
KEPT = "SELECT id FROM kept ORDER BY 1"


def make_log(source: Database, *more: str) -> None:
    """A table without a primary key, some of its rows alike."""
    source.execute("CREATE TABLE log (a int NOT NULL, b text NOT NULL, c text)")
    for statement in more:
        source.execute(statement)
    source.execute("INSERT INTO log SELECT i, 'b' || i, 'c' FROM generate_series(1, 5) i")


def config_for(
    source: Database, target: str, /, *, capture: str = "auto", table: dict[str, object] | None = None, **sync: str
) -> Config:
    tables = {"public.log": table} if table else {}
    return make_config({"a": source.url, "b": target}, capture=capture, syncs=None, tables=["*"], table=tables, **sync)


def run_once(config: Config) -> EdgeReport:
    """Run until caught up; return what the one edge says."""
    with tuned_back():
        daemon = Daemon(config, once=True)
        assert daemon.run(), daemon.report()
        return daemon.report()[0].edges[0]


def findings(config: Config, about: str) -> list[str]:
    return [f"{f.severity}: {f.reason}; {f.remedy}" for f in check(config) if about in f.object and f.severity is not Severity.OK]


# -- what is said ----------------------------------------------------------------------------------------------------------------


def test_a_table_without_a_key_is_announced_everywhere_with_its_ways_out(pair: Pair) -> None:
    source, target = pair
    make_log(source, "CREATE UNIQUE INDEX log_a_b ON log (a, b)")
    config = config_for(source, target.url)
    said: list[str] = []
    setup(config, None, said.append)
    (line,) = [s for s in said if s.startswith("warning")]
    assert 'table "public.log" has no usable replica identity: only inserts are replicated' in line
    (listed,), _ = tables(config, None)
    assert listed.targets == {"b": "copy, then inserts only"}
    assert listed.ways_out == [
        'ALTER TABLE "public"."log" REPLICA IDENTITY USING INDEX "log_a_b"',
        'ALTER TABLE "public"."log" REPLICA IDENTITY FULL; if columns tell rows apart, also '
        '[syncs.shop.table."public.log"] key = […]',
        'ALTER TABLE "public"."log" ADD PRIMARY KEY (…)',
        '[syncs.shop.table."public.log"] fullcopy = true',
        "leave it, if rows are only ever inserted",
    ]
    (found,) = findings(config, '"public.log" on "a"')
    assert found.startswith("warning: has no usable replica identity: only inserts are replicated; ALTER TABLE")
    assert found.endswith("; after a change run: streamer setup")
    source.execute('ALTER TABLE "public"."log" REPLICA IDENTITY USING INDEX "log_a_b"')
    setup(config, None, lambda line: None)
    assert findings(config, '"public.log" on "a"') == []
    assert tables(config, None)[0][0].lacks == ""


@pytest.mark.parametrize("partitioned", [False, True])
def test_a_table_that_got_a_key_after_setup_is_told_until_its_updates_are_replicated(
    source15: Database, target18: Database, partitioned: bool
) -> None:
    if partitioned:
        source15.execute("CREATE TABLE log (a int NOT NULL, b text NOT NULL, c text) PARTITION BY LIST (a)")
        source15.execute("CREATE TABLE log_rest PARTITION OF log DEFAULT")
        source15.execute("INSERT INTO log SELECT i, 'b' || i, 'c' FROM generate_series(1, 5) i")
    else:
        make_log(source15)
    config = config_for(source15, target18.url)
    setup(config, None, lambda line: None)
    run_once(config)
    source15.execute("ALTER TABLE log ADD PRIMARY KEY (a)")
    source15.execute("UPDATE log SET c = 'left out'")
    (found,) = (f for f in findings(config, '"public.log" on "a"') if f.startswith("error"))
    assert found == (
        "error: has a replica identity now, but is published for inserts only: its updates and deletes are not replicated; "
        "streamer setup, and for what was left out so far: streamer copy shop --table public.log"
    )
    said: list[str] = []
    setup(config, None, said.append)
    (line,) = (s for s in said if "from now on" in s)
    assert line.endswith("if there were any before, the targets lack them: streamer copy shop --table public.log")
    assert not [f for f in findings(config, '"public.log" on "a"') if f.startswith("error")]
    source15.execute("UPDATE log SET c = 'replicated' WHERE a = 1")
    run_once(config)
    assert target18.query("SELECT a, c FROM log WHERE c <> 'c'") == [(1, "replicated")]
    setup(config, None, said.append)
    assert sum("from now on" in s for s in said) == 1


# -- a key that the config names -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("capture", ["pgoutput", "wal2json", "trigger"])
def test_a_named_key_finds_the_rows_of_a_table_with_full_identity(
    source15: Database, target18: Database, mariadb: MysqlDatabase, tmp_path: Path, capture: str
) -> None:
    make_log(source15, "ALTER TABLE log REPLICA IDENTITY FULL")
    nodes = {
        "a": source15.url,
        "b": target18.url,
        "m": mariadb.url,
        "s": f"sqlite:///{tmp_path}/s.db",
        "j": f"jsonl:///{tmp_path}/j",
    }
    config = make_config(nodes, capture=capture, tables=["*"], table={"log": {"key": ["b", "a"]}})
    setup(config, None, lambda line: None)
    run_once(config)
    # values that only the target has are no obstacle where a key finds the row
    target18.execute("UPDATE log SET c = 'other'")
    source15.execute("UPDATE log SET c = c || a")
    source15.execute("UPDATE log SET b = 'moved' WHERE a = 1")
    source15.execute("DELETE FROM log WHERE a = 2")
    run_once(config)
    rows = source15.query(ALL)
    assert rows == [(1, "moved", "c1"), (3, "b3", "c3"), (4, "b4", "c4"), (5, "b5", "c5")]
    assert target18.query(ALL) == rows
    assert list(mariadb.query("SELECT a, b, c FROM log ORDER BY 1")) == rows
    with closing(sqlite3.connect(tmp_path / "s.db")) as file:
        assert file.execute("SELECT a, b, c FROM log ORDER BY 1").fetchall() == rows
    assert '"key":{"a":"2","b":"b2"}' in (tmp_path / "j").read_text()


@pytest.mark.parametrize("identity", ["DEFAULT", "FULL"])
@pytest.mark.parametrize("capture", ["pgoutput", "wal2json", "trigger"])
def test_a_key_with_a_generated_column_is_told_and_takes_no_row_for_another(
    source15: Database, target18: Database, tmp_path: Path, capture: str, identity: str
) -> None:
    """The rest of the key travelled alone: updates were lost without a word, and rows with the same rest became one."""
    source15.execute(
        f"CREATE TABLE log (a int, g text GENERATED ALWAYS AS (lower(b)) STORED, b text, PRIMARY KEY (a, g)); "
        f"ALTER TABLE log REPLICA IDENTITY {identity}; INSERT INTO log (a, b) VALUES (1, 'X'), (1, 'Y'), (2, 'Z')"
    )
    nodes = {"a": source15.url, "b": target18.url, "s": f"sqlite:///{tmp_path}/s.db"}
    config = make_config(nodes, capture=capture, tables=["*"])
    told = findings(config, '"public.log" on "a"')
    setup(config, None, lambda line: None)
    run_once(config)
    source15.execute("INSERT INTO log (a, b) VALUES (3, 'P'), (3, 'Q'), (3, 'R')")
    source15.execute("UPDATE log SET b = 'W' WHERE b = 'X'; DELETE FROM log WHERE b = 'Y'")
    run_once(config)
    rows = [(1, "W"), (2, "Z"), (3, "P"), (3, "Q"), (3, "R")]
    if capture != "trigger" and identity == "DEFAULT":
        assert any("has no usable replica identity: only inserts are replicated" in line for line in told)
        rows = [(1, "X"), (1, "Y"), *rows[1:]]
    assert target18.query("SELECT a, b FROM log ORDER BY 1, 2") == rows
    with closing(sqlite3.connect(tmp_path / "s.db")) as file:
        assert file.execute("SELECT a, b FROM log ORDER BY 1, 2").fetchall() == rows
    with running(config) as streams:
        assert not [one.problem for one in verified(config, streams) if one.problem]


def test_a_named_key_must_be_there_and_hold_no_null(source18: Database, target15: Database) -> None:
    make_log(source18, "ALTER TABLE log REPLICA IDENTITY FULL")
    for key, reason in (("nobody", 'has no column "nobody"'), ("c", 'column "c", which the config names as its key, may be NULL')):
        config = config_for(source18, target15.url, table={"key": [key]})
        assert any(reason in line and line.startswith("error") for line in findings(config, '"public.log" on "a"'))
        with running(config, wait=False) as streams:
            streams.wait_for_problem(reason)
    (line,) = findings(config_for(source18, target15.url, table={"key": ["a"]}), '"public.log" on "a"')
    assert line == (
        "warning: nothing keeps two rows from having the same a, the key that the config names; "
        'CREATE UNIQUE INDEX ON "public"."log" ("a")'
    )
    source18.execute("ALTER TABLE log ADD PRIMARY KEY (a, b)")
    (line,) = findings(config_for(source18, target15.url, table={"key": ["a"]}), '"public.log" on "a"')
    assert 'remove the key of syncs.shop.table."public.log"' in line


# -- copied whole ----------------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["postgresql", "mysql", "sqlite"])
def foreign(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, object]]:
    """The url of a target of each kind, and what asks it."""
    if request.param == "postgresql":
        target: Database = request.getfixturevalue("target18")
        yield target.url, target.query
    elif request.param == "mysql":
        mariadb: MysqlDatabase = request.getfixturevalue("mariadb")
        yield mariadb.url, lambda query: list(mariadb.query(query))
    else:
        with closing(sqlite3.connect(tmp_path / "s.db", timeout=10)) as connection:
            yield f"sqlite:///{tmp_path}/s.db", lambda query: connection.execute(query).fetchall()


def test_each_run_copies_the_table_whole(source15: Database, foreign: tuple[str, object]) -> None:
    url, ask = foreign
    make_log(source15)
    source15.execute("CREATE TABLE kept (id int PRIMARY KEY)")
    config = config_for(source15, url, table={"fullcopy": True}, run="manual")
    setup(config, None, lambda line: None)
    first = run_once(config)
    assert ask(ALL) == source15.query(ALL)  # type: ignore[operator]
    source15.execute("UPDATE log SET c = NULL WHERE a < 3")
    source15.execute("DELETE FROM log WHERE a = 4")
    source15.execute("INSERT INTO log SELECT 5, 'b5', 'c'")  # a row that is there already
    source15.execute("INSERT INTO kept VALUES (1)")
    second = run_once(config)
    assert ask(ALL) == source15.query(ALL)  # type: ignore[operator]
    assert ask("SELECT id FROM kept") == [(1,)]  # type: ignore[operator]
    assert [(r.table, r.rows) for r in first.full_copies + second.full_copies] == [("public.log", 5), ("public.log", 5)]
    assert second.counters.inserted == 1


def test_a_table_that_is_copied_whole_is_in_no_publication(source18: Database, target15: Database) -> None:
    make_log(source18)
    setup(config_for(source18, target15.url), None, lambda line: None)
    assert ("log",) in source18.query("SELECT tablename FROM pg_publication_tables")
    config = config_for(source18, target15.url, table={"fullcopy": True})
    setup(config, None, lambda line: None)
    assert ("log",) not in source18.query("SELECT tablename FROM pg_publication_tables")
    (listed,), _ = tables(config, None)
    assert listed.targets == {"b": "copied whole every 1h"}


def test_a_running_sync_copies_again_when_it_is_time(source18: Database, target15: Database) -> None:
    make_log(source18)
    source18.execute("CREATE TABLE kept (id int PRIMARY KEY)")
    with running(config_for(source18, target15.url, table={"fullcopy": True}, fullcopy_every="1s")):
        for number in range(2):
            source18.execute(f"UPDATE log SET c = 'round {number}'")
            source18.execute(f"INSERT INTO kept VALUES ({number})")
            wait_for_equal(lambda: target15.query(ALL), source18.query(ALL), "the table copied again")
            wait_for_equal(lambda: target15.query(KEPT), source18.query(KEPT), "the other table")


def test_readers_see_the_old_rows_or_the_new_ones_and_need_not_wait(source18: Database, target15: Database) -> None:
    make_log(source18)
    config = config_for(source18, target15.url, table={"fullcopy": True})
    setup(config, None, lambda line: None)
    run_once(config)
    source18.execute("INSERT INTO log SELECT i, 'b', 'c' FROM generate_series(1, 20000) i")
    seen: set[Row] = set()

    def read(done: threading.Event) -> None:
        with psycopg.connect(target15.url, autocommit=True, options="-c lock_timeout=100") as connection:
            while not done.is_set():
                seen.update(connection.execute("SELECT count(*) FROM log").fetchall())

    with meanwhile(read):
        wait_for(lambda: seen, "the reader to have begun")
        run_once(config)
    assert seen <= {(5,), (20005,)}


def test_a_table_whose_changes_are_wanted_later_is_copied_once_more(source18: Database, target15: Database) -> None:
    make_log(source18)
    source18.execute("ALTER TABLE log ADD PRIMARY KEY (a)")
    whole = config_for(source18, target15.url, table={"fullcopy": True})
    setup(whole, None, lambda line: None)
    run_once(whole)
    source18.execute("UPDATE log SET c = 'between'")  # neither copied nor captured
    streamed = config_for(source18, target15.url)
    setup(streamed, None, lambda line: None)
    source18.execute("INSERT INTO log VALUES (9, 'b9', 'captured')")
    run_once(streamed)
    assert target15.query(ALL) == source18.query(ALL)
    source18.execute("DELETE FROM log WHERE a = 9")
    run_once(streamed)
    assert target15.query(ALL) == source18.query(ALL)
    # and back
    setup(whole, None, lambda line: None)
    source18.execute("DELETE FROM log WHERE a = 1")
    run_once(whole)
    assert target15.query(ALL) == source18.query(ALL)


# -- triggers --------------------------------------------------------------------------------------------------------------------


def test_triggers_capture_a_table_by_a_unique_index_and_copy_one_without_any_whole(source15: Database, target18: Database) -> None:
    make_log(source15)
    source15.execute("CREATE TABLE numbered (n int NOT NULL UNIQUE, v text)")
    config = config_for(source15, target18.url, capture="trigger")
    said: list[str] = []
    setup(config, None, said.append)
    (line,) = [s for s in said if s.startswith("warning")]
    assert 'table "public.log" has no key by which triggers could tell its rows apart: it is copied whole, again and again' in line
    whole, keyed = tables(config, None)[0]
    assert (whole.targets, keyed.targets, keyed.key) == ({"b": "copied whole every 1h"}, {"b": "copy, then stream"}, ("n",))
    assert whole.ways_out[0] == '[syncs.shop.table."public.log"] key = […], columns that are NOT NULL and tell its rows apart'
    source15.execute("INSERT INTO numbered VALUES (1, 'a'), (2, 'b')")
    for statement in (
        "UPDATE log SET c = 'new' WHERE a > 2",
        "DELETE FROM log WHERE a = 1",
        "UPDATE numbered SET n = 3 WHERE n = 1",
    ):
        run_once(config)
        source15.execute(statement)
    run_once(config)
    assert target18.query(ALL) == source15.query(ALL)
    assert target18.query("SELECT * FROM numbered ORDER BY 1") == [(2, "b"), (3, "a")]


def test_triggers_leave_a_table_without_any_key_out_where_it_cannot_be_copied_whole(
    source15: Database, target18: Database, tmp_path: Path
) -> None:
    make_log(source15)
    source15.execute("CREATE TABLE kept (id int PRIMARY KEY)")
    nodes = {"a": source15.url, "b": target18.url, "j": f"jsonl:///{tmp_path}/j"}
    config = make_config(nodes, capture="trigger", tables=["*"])
    said: list[str] = []
    setup(config, None, said.append)
    assert any('table "public.log" has no key by which triggers could tell its rows apart: it is not replicated' in s for s in said)
    _, left_out = tables(config, None)[0]
    assert left_out.targets == {"b": "not captured", "j": "not captured"}
    assert '[syncs.shop] exclude = ["public.log"]' in left_out.ways_out
    source15.execute("INSERT INTO kept VALUES (1)")
    run_once(config)
    assert target18.query("SELECT * FROM kept") == [(1,)]
    assert target18.query(ALL) == []
