"""Loop-safe from the start: nodes that replicate to each other do not echo, and what is handed on keeps its origin."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import pytest

from streamer.admin.setup import setup
from streamer.config import Config
from streamer.daemon import Daemon
from streamer.report import State
from tests.configs import checked
from tests.conftest import Databases
from tests.integration.streams import daemon_running
from tests.servers import Database, PostgresServer
from tests.waiting import wait_for, wait_for_equal

TABLE = "CREATE TABLE t (id integer PRIMARY KEY, x text)"
ROWS = "SELECT id, x FROM t ORDER BY id"


def configured(nodes: dict[str, Database], captures: dict[str, str], syncs: dict[str, dict[str, list[str]]]) -> Config:
    return checked(
        {
            "nodes": {name: {"url": d.url, "capture": captures.get(name, "auto")} for name, d in nodes.items()},
            "syncs": {name: sync | {"tables": ["public.*"]} for name, sync in syncs.items()},
        }
    )


@contextmanager
def running(config: Config) -> Iterator[Daemon]:
    """Set everything up and run the daemon while the context lasts, once all edges stream."""
    setup(config, None, lambda line: None)
    with daemon_running(config) as daemon:
        wait_for(lambda: all(e.state is State.STREAMING for s in daemon.report() for e in s.edges), "all edges to stream")
        yield daemon


def applied(daemon: Daemon) -> dict[tuple[str, str], int]:
    """Transactions applied so far, by edge."""
    return {(e.source, e.target): e.counters.transactions for s in daemon.report() for e in s.edges}


def pass_by(nodes: dict[str, Database], config: Config, daemon: Daemon) -> None:
    """Wait until all that is in the WAL of every node has been read and confirmed: an echo would have been applied by then."""
    reached = {
        (name, sync): nodes[name].query("SELECT pg_current_wal_insert_lsn()")[0][0]
        for sync, settings in config.syncs.items()
        for name in settings.sources
    }
    for (name, sync), position in reached.items():
        # a heartbeat: something of interest after all that was made, so that progress has to pass it
        query = f"SELECT confirmed_flush_lsn >= '{position}' FROM pg_replication_slots WHERE slot_name = 'streamer_{sync}_{name}'"
        nodes[name].execute("INSERT INTO t VALUES (%s, 'last')", [900000 + hash((name, sync)) % 90000])
        wait_for_equal(partial(nodes[name].query, query), [(True,)], f"{name} to be read up to {position}")


@pytest.mark.parametrize("captures", [{"a": "pgoutput"}, {"a": "wal2json"}], ids=["pgoutput", "wal2json"])
def test_two_nodes_that_replicate_to_each_other_do_not_echo(
    captures: dict[str, str], databases: Databases, pg15: PostgresServer, pg18: PostgresServer
) -> None:
    nodes = {"a": databases.create(pg15, "left"), "b": databases.create(pg18, "right")}
    for i, database in enumerate(nodes.values()):
        database.execute(TABLE)
        database.execute("INSERT INTO t VALUES (%s, 'before')", [i])
    config = configured(nodes, captures, {"s": {"sources": ["a", "b"]}})
    with running(config) as daemon:
        for i in range(50):
            nodes["a"].execute("INSERT INTO t VALUES (%s, 'a')", [1000 + i])
            nodes["b"].execute("INSERT INTO t VALUES (%s, 'b')", [2000 + i])
        nodes["a"].execute("UPDATE t SET x = 'a was here' WHERE id = 2005")
        wait_for(lambda: len(nodes["a"].query(ROWS)) == 101, "the rows of b on a")
        wait_for_equal(lambda: nodes["b"].query(ROWS)[1:], nodes["a"].query(ROWS)[1:], "the rows of a on b")
        pass_by(nodes, config, daemon)
        made = {("a", "b"): 52, ("b", "a"): 51}  # with one each of pass_by
        wait_for_equal(lambda: applied(daemon), made, "every transaction to be applied once")
        assert [e.counters.missing for s in daemon.report() for e in s.edges] == [0, 0]


def test_the_initial_copy_into_a_node_that_is_read_too_does_not_come_back(
    databases: Databases, pg15: PostgresServer, pg18: PostgresServer
) -> None:
    nodes = {"a": databases.create(pg15, "left"), "b": databases.create(pg18, "right")}
    for database in nodes.values():
        database.execute(TABLE)
    nodes["a"].execute("INSERT INTO t SELECT i, 'old' FROM generate_series(1, 2000) i")
    config = configured(nodes, {}, {"s": {"sources": ["a", "b"]}})
    with running(config) as daemon:
        wait_for_equal(lambda: nodes["b"].query("SELECT count(*) FROM t"), [(2000,)], "the copy")
        pass_by(nodes, config, daemon)
        wait_for_equal(lambda: applied(daemon), {("a", "b"): 1, ("b", "a"): 1}, "nothing but the last rows to be applied")
        assert len(nodes["a"].query(ROWS)) == 2002


def test_a_node_in_two_syncs_hands_changes_on_with_their_origin(
    databases: Databases, pg15: PostgresServer, pg18: PostgresServer
) -> None:
    nodes = {"a": databases.create(pg15, "first"), "b": databases.create(pg18, "second"), "c": databases.create(pg15, "third")}
    for database in nodes.values():
        database.execute(TABLE)
    config = configured(
        nodes, {"b": "pgoutput"}, {"one": {"sources": ["a"], "targets": ["b"]}, "two": {"sources": ["b"], "targets": ["c"]}}
    )
    with running(config):
        nodes["a"].execute("INSERT INTO t VALUES (1, 'made on a')")
        wait_for_equal(lambda: nodes["c"].query(ROWS), [(1, "made on a")], "the row of a on c")
        tag = "SELECT source, origin, origin_position, origin_time FROM streamer.progress"
        (at_b,), (at_c,) = nodes["b"].query(tag), nodes["c"].query(tag)
        assert at_b[:2] == ("a", "a")
        assert at_c[:2] == ("b", "a")
        assert at_c[2:] == at_b[2:]  # position and time of the commit on a survive
        nodes["c"].execute("INSERT INTO t VALUES (2, 'made on c')")
        nodes["b"].execute("INSERT INTO t VALUES (3, 'made on b')")
        wait_for_equal(lambda: nodes["c"].query(ROWS)[2:], [(3, "made on b")], "the row of b on c")
        assert nodes["a"].query(ROWS) == [(1, "made on a")]


def test_row_versions_carry_the_time_of_the_commit_on_the_source(source15: Database, target18: Database) -> None:
    for database in (source15, target18):
        database.execute(TABLE)
    config = configured({"a": source15, "b": target18}, {}, {"s": {"sources": ["a"], "targets": ["b"]}})
    with running(config):
        source15.execute("INSERT INTO t VALUES (1, 'x')")
        wait_for_equal(lambda: len(target18.query(ROWS)), 1, "the row")
        time = "SELECT pg_xact_commit_timestamp(xmin) FROM t"
        assert target18.query(time) == source15.query(time)
        origins = target18.query("SELECT external_id FROM pg_replication_origin_status WHERE external_id LIKE 'streamer:%'")
        assert origins == [("streamer:s:b:a:a",)]
