"""A stream from end to end between real databases: the initial copy, what is written meanwhile, and what breaks it off."""

from __future__ import annotations

import random
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from streamer.admin.setup import setup
from streamer.report import State
from tests.configs import make_config
from tests.conftest import Pair
from tests.integration.streams import Running, running
from tests.meanwhile import meanwhile
from tests.proxy import Proxy
from tests.servers import Database, Row
from tests.waiting import wait_for, wait_for_equal

ALL = "SELECT id, n FROM t ORDER BY id"
SUMS = "SELECT count(*), sum(id), sum(n), sum(id * n) FROM t"
LARGE = 100_000


def make_table(*nodes: Database) -> None:
    for node in nodes:
        node.execute("CREATE TABLE t (id bigint PRIMARY KEY, n bigint NOT NULL)")


def fill(database: Database, rows: int) -> None:
    database.execute("INSERT INTO t SELECT i, 0 FROM generate_series(1, %s) i", [rows])


def fill_wide(database: Database) -> None:
    """Make the table far larger than what sockets and pipes hold, so that a copy can be caught under way."""
    database.execute("ALTER TABLE t ADD COLUMN pad text NOT NULL DEFAULT repeat('x', 400)")
    fill(database, LARGE)


def rows_of_file(file: Path, query: str) -> list[Row]:
    with closing(sqlite3.connect(file, timeout=10)) as connection:
        return connection.execute(query).fetchall()


def wait_until_copying(streams: Running, edge: str = "a->b") -> None:
    """Wait until the copy of a table is under way."""
    wait_for(lambda: any(c.rows and not c.done for c in streams.edges[edge].copy), "the copy to be under way")


# -- which rows are copied ---------------------------------------------------------------------------------------------------------


def test_a_stream_did_not_count_as_ready_while_its_first_rows_were_copied(pair: Pair) -> None:
    source, target = pair
    make_table(source, target)
    fill(source, 10)
    with target.connect() as application:
        application.execute("BEGIN")
        application.execute("LOCK TABLE t IN EXCLUSIVE MODE")
        with running(make_config({"a": source.url, "b": target.url}), wait=False) as streams:
            wait_for(lambda: streams.edges["a->b"].state == State.COPYING, "the copy to be under way")
            assert [stream.state for stream in streams.reports] == [State.COPYING]
            application.execute("COMMIT")
            streams.wait_until_streaming()


def test_rows_are_copied_into_an_empty_table(pair: Pair) -> None:
    source, target = pair
    make_table(source, target)
    fill(source, 10)
    with running(make_config({"a": source.url, "b": target.url})):
        assert target.query(ALL) == source.query(ALL)


@pytest.mark.parametrize("copy", ["if-empty", "never"])
def test_a_table_with_rows_is_kept_and_changes_follow(pair: Pair, copy: str) -> None:
    source, target = pair
    make_table(source, target)
    fill(source, 3)
    target.execute("INSERT INTO t VALUES (1, 7), (100, 7)")
    with running(make_config({"a": source.url, "b": target.url}, copy=copy)):
        assert target.query(ALL) == [(1, 7), (100, 7)]
        source.execute("INSERT INTO t VALUES (4, 4)")
        source.execute("UPDATE t SET n = 5 WHERE id = 1")
        wait_for_equal(lambda: target.query(ALL), [(1, 5), (4, 4), (100, 7)], "the changes")


def test_with_never_an_empty_table_stays_empty(pair: Pair) -> None:
    source, target = pair
    make_table(source, target)
    fill(source, 3)
    with running(make_config({"a": source.url, "b": target.url}, copy="never")):
        source.execute("INSERT INTO t VALUES (4, 4)")
        wait_for_equal(lambda: target.query(ALL), [(4, 4)], "the change")


def test_with_always_rows_are_replaced_once_and_not_again_after_a_restart(pair: Pair) -> None:
    source, target = pair
    make_table(source, target)
    fill(source, 3)
    target.execute("INSERT INTO t VALUES (1, 7), (100, 7)")
    config = make_config({"a": source.url, "b": target.url}, copy="always")
    with running(config):
        assert target.query(ALL) == source.query(ALL)
    target.execute("INSERT INTO t VALUES (200, 0)")
    with running(config):
        assert (200, 0) in target.query(ALL)


# -- writes meanwhile --------------------------------------------------------------------------------------------------------------


@contextmanager
def writing(source: Database) -> Iterator[None]:
    """Insert, update and delete rows all over the table while the context lasts."""
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")
    dice = random.Random(seed)

    def write(stop: threading.Event) -> None:
        fresh = 10 * LARGE
        with source.connect() as connection:
            while not stop.is_set():
                fresh += 1
                row = dice.randrange(1, LARGE)
                connection.execute("INSERT INTO t VALUES (%s, 1)", [fresh])
                connection.execute("UPDATE t SET n = n + 1 WHERE id IN (%s, %s)", [row, row + 1])
                connection.execute("DELETE FROM t WHERE id = %s", [dice.choice([row, fresh - 1])])

    with meanwhile(write):
        yield


@pytest.mark.parametrize("capture", ["pgoutput", "wal2json"])
def test_what_is_written_during_the_copy_is_neither_lost_nor_doubled(
    source15: Database, target18: Database, tmp_path: Path, capture: str
) -> None:
    make_table(source15)
    fill(source15, LARGE)
    file = tmp_path / "shop.sqlite"
    config = make_config({"a": source15.url, "b": target18.url, "s": f"sqlite:///{file}"}, capture=capture)
    with writing(source15), running(config, wait=False) as streams:
        streams.wait_until_streaming()
        applied = streams.applied
        wait_for(lambda: all(n > applied[edge] for edge, n in streams.applied.items()), "changes after the copy")
    with running(config):
        wait_for_equal(lambda: target18.query(SUMS), source15.query(SUMS), "PostgreSQL to catch up")
        wait_for_equal(lambda: rows_of_file(file, SUMS), source15.query(SUMS), "SQLite to catch up")
        assert target18.query(ALL) == source15.query(ALL) == rows_of_file(file, ALL)


# -- a copy that is broken off -----------------------------------------------------------------------------------------------------


def kill_target(source: Database, target: Database, proxy: Proxy) -> None:
    target.server.kill()
    target.server.start()


def kill_source(source: Database, target: Database, proxy: Proxy) -> None:
    source.server.kill()
    source.server.start()


def cut_connections(source: Database, target: Database, proxy: Proxy) -> None:
    proxy.cut()


@pytest.mark.parametrize("breakage", [kill_target, kill_source, cut_connections])
def test_a_copy_that_is_broken_off_is_made_again(
    source15: Database, target18: Database, breakage: Callable[[Database, Database, Proxy], None]
) -> None:
    make_table(source15)
    fill_wide(source15)
    with Proxy(source15.server) as proxy:
        config = make_config({"a": proxy.url("source"), "b": target18.url})
        with running(config, wait=False) as streams:
            wait_until_copying(streams)
            proxy.freeze()
            breakage(source15, target18, proxy)
            proxy.thaw()
            problem = wait_for(lambda: streams.problems, "the failure to be noticed")[0]
            assert ('node "b"' if breakage is kill_target else 'node "a"') in problem
            assert target18.query("SELECT count(*) FROM t") in ([(0,)], [(LARGE,)])
            source15.execute("UPDATE t SET n = 1 WHERE id % 1000 = 0")

            streams.wait_until_streaming()
            wait_for_equal(lambda: target18.query(SUMS), source15.query(SUMS), "the target to hold all")
            wait_for(lambda: not streams.problems, "the streams to be content")


def test_a_copy_into_a_file_that_is_broken_off_is_made_again(source15: Database, tmp_path: Path) -> None:
    make_table(source15)
    fill_wide(source15)
    file = tmp_path / "shop.sqlite"
    with Proxy(source15.server) as proxy:
        config = make_config({"a": proxy.url("source"), "s": f"sqlite:///{file}"})
        with running(config, wait=False) as streams:
            wait_until_copying(streams, "a->s")
            proxy.freeze()
            proxy.cut()
            proxy.thaw()
            assert 'node "a"' in wait_for(lambda: streams.problems, "the failure to be noticed")[0]
            assert rows_of_file(file, "SELECT count(*) FROM t") in ([(0,)], [(LARGE,)])

            streams.wait_until_streaming()
            assert rows_of_file(file, SUMS) == source15.query(SUMS)


def test_only_the_table_whose_copy_broke_is_copied_again(source15: Database, target18: Database) -> None:
    make_table(source15)
    fill_wide(source15)
    source15.execute("CREATE TABLE small (id int PRIMARY KEY)")
    source15.execute("INSERT INTO small VALUES (1), (2)")
    source15.execute("ANALYZE")
    with Proxy(source15.server) as proxy:
        config = make_config({"a": proxy.url("source"), "b": target18.url}, copy_jobs=2)
        with running(config, wait=False) as streams:
            wait_for(lambda: "public.small" in {c.table for c in streams.edges["a->b"].copy if c.done}, "the small copy")
            wait_until_copying(streams)
            proxy.freeze()
            proxy.cut()
            proxy.thaw()
            wait_for(lambda: streams.problems, "the failure to be noticed")
            source15.execute("UPDATE t SET n = 1 WHERE id = 5")
            source15.execute("DELETE FROM small WHERE id = 1")
            source15.execute("INSERT INTO small VALUES (3)")
            streams.wait_until_streaming()
            wait_for_equal(lambda: target18.query(SUMS), source15.query(SUMS), "the large table")
            wait_for_equal(lambda: target18.query("SELECT id FROM small ORDER BY id"), [(2,), (3,)], "the small table")
        copied = target18.query("SELECT table_name, position FROM streamer.copy ORDER BY table_name")
    assert [name for name, _ in copied] == ["small", "t"]
    assert copied[0][1] != copied[1][1]


def test_a_role_that_may_not_write_a_table_learns_which_and_how_when_it_is_copied(source15: Database, target18: Database) -> None:
    for node in (source15, target18):
        node.execute("CREATE TABLE t (id int PRIMARY KEY)")
    source15.execute("INSERT INTO t VALUES (1)")
    setup(make_config({"a": source15.url, "b": target18.url}), None, lambda line: None)
    target18.execute("CREATE ROLE plain LOGIN PASSWORD 'Geheim-1'; GRANT USAGE ON SCHEMA streamer TO plain")
    target18.execute("GRANT ALL ON ALL TABLES IN SCHEMA streamer TO plain; GRANT SELECT ON t TO plain")
    url = target18.server.url(target18.name, "plain", "Geheim-1")
    with running(make_config({"a": source15.url, "b": url}), set_up=False, wait=False) as streams:
        said = streams.wait_for_problem('copy of table "public.t": edge shop: a -> b: node "b" refuses: permission denied')
        assert "Geheim" not in said


# -- a target that is away ---------------------------------------------------------------------------------------------------------


def test_a_target_that_is_away_does_not_stop_the_other_and_catches_up(
    source15: Database, target18: Database, tmp_path: Path
) -> None:
    make_table(source15)
    fill(source15, 10)
    file = tmp_path / "shop.sqlite"
    with Proxy(target18.server) as proxy:
        config = make_config({"a": source15.url, "b": proxy.url("target"), "s": f"sqlite:///{file}"})
        with running(config) as streams:
            proxy.stop()
            for _ in range(20):
                source15.execute("UPDATE t SET n = n + 1")
            wait_for_equal(lambda: rows_of_file(file, ALL), source15.query(ALL), "the file to go on")
            streams.wait_for_problem('node "b"')
            assert target18.query("SELECT DISTINCT n FROM t") != [(20,)]
            proxy.start()
            wait_for_equal(lambda: target18.query(ALL), source15.query(ALL), "the target to catch up")
            wait_for(lambda: not streams.problems, "the streams to be content")


@pytest.mark.parametrize("capture", ["pgoutput", "wal2json"])
def test_a_cut_in_the_middle_of_changes_loses_and_doubles_nothing(source15: Database, target18: Database, capture: str) -> None:
    """A table without a key shows what is applied twice."""
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")
    dice = random.Random(seed)
    source15.execute("CREATE TABLE log (id int)")
    with (
        Proxy(source15.server) as source,
        Proxy(target18.server) as target,
        source15.connect() as writer,
        running(make_config({"a": source.url("source"), "b": target.url("target")}, capture=capture)),
    ):
        for i in range(2000):
            writer.execute("INSERT INTO log VALUES (%s)", [i])
            if dice.random() < 0.005:
                dice.choice([source, target]).cut()
        query = "SELECT count(*), count(DISTINCT id), sum(id) FROM log"
        wait_for_equal(lambda: target18.query(query), source15.query(query), "the target to hold each row once")


def test_a_blocked_target_is_told_with_how_long_changes_wait(
    source15: Database, target18: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streamer.complaints.BLOCKED_SECONDS", 0.2)
    make_table(source15, target18)
    with running(make_config({"a": source15.url, "b": target18.url})) as streams, target18.connect() as locker:
        locker.execute("BEGIN; LOCK TABLE t")
        fill(source15, 1)
        streams.wait_for_problem('node "b" is at work on one group of changes for')
        edge = streams.edges["a->b"]
        assert (edge.state, edge.lag_bytes > 0, edge.lag_seconds > 0.2, edge.last_applied) == ("streaming", True, True, None)
        locker.execute("ROLLBACK")
        wait_for(lambda: not streams.problems and streams.edges["a->b"].lag_seconds == 0.0, "nothing to wait any more")


def test_a_large_transaction_with_savepoints_that_was_rolled_back_does_not_stop_the_stream(
    source18: Database, target15: Database
) -> None:
    make_table(source18, target15)
    source18.execute("ALTER DATABASE source SET logical_decoding_work_mem = '64kB'")
    config = make_config({"a": source18.url, "b": target15.url})
    with running(config):
        source18.execute("INSERT INTO t VALUES (1, 1)")
        wait_for_equal(lambda: target15.query(ALL), [(1, 1)], "the first row")
    with source18.connect() as connection:  # while nobody reads, so that the server knows the end when it decodes the beginning
        connection.execute("BEGIN; SAVEPOINT s; INSERT INTO t VALUES (2, 0); RELEASE s")
        connection.execute("INSERT INTO t SELECT i, 0 FROM generate_series(3, 3000) i; ROLLBACK")
        connection.execute("INSERT INTO t VALUES (2, 2)")
    with running(config, set_up=False):
        wait_for_equal(lambda: target15.query(ALL), [(1, 1), (2, 2)], "what came after it")


@pytest.mark.parametrize("sources", [["a"], ["a", "b"]], ids=["groups", "transactions"])
def test_progress_that_somebody_has_deleted_stops_the_edge_with_nothing_written(
    source18: Database, target15: Database, sources: list[str]
) -> None:
    """Rows were written on, without progress and without the tag by which other sources know where they were made."""
    make_table(source18, target15)
    config = make_config({"a": source18.url, "b": target15.url}, sources=sources, targets=["b"] if sources == ["a"] else [])
    with running(config) as streams:
        source18.execute("INSERT INTO t VALUES (1, 0)")
        wait_for_equal(lambda: target15.query(ALL), [(1, 0)], "the first row")
        target15.execute("TRUNCATE streamer.progress")
        source18.execute("INSERT INTO t VALUES (2, 0)")
        assert "is gone" in streams.wait_for_problem("its row in streamer.progress")
        assert streams.edges["a->b"].state is State.FAILED
        assert target15.query(ALL) == [(1, 0)]
