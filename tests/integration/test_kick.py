"""Kicks of streams over real servers: of several sources, of a source that is quiet, and what is let go of at rest."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from streamer.admin.setup import setup
from streamer.config import Config
from streamer.daemon import Daemon
from streamer.errors import UnknownSyncError
from streamer.report import Result, State, StreamReport
from tests.configs import make_config
from tests.conftest import Databases, Pair
from tests.integration.streams import daemon_running
from tests.servers import Database, PostgresServer
from tests.waiting import wait_for, wait_for_equal

TABLE = "CREATE TABLE t (id int PRIMARY KEY, v text)"
ROWS = "SELECT id, v FROM t ORDER BY id"
SESSIONS = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'streamer shop%'"


@contextmanager
def running(config: Config) -> Iterator[Daemon]:
    """Set up the config's syncs and run the daemon while the context lasts."""
    setup(config, None, lambda line: None)
    with daemon_running(config) as daemon:
        yield daemon


def kick(daemon: Daemon, sync: str = "shop") -> None:
    """Kick, and wait until every stream is done."""
    numbers = daemon.kick(sync)
    wait_for(lambda: all(stream.kicks.done >= numbers[stream.source] for stream in daemon.report()), "the kick to be done")


def stream(daemon: Daemon) -> StreamReport:
    (report,) = daemon.report()
    return report


def test_a_kick_runs_the_streams_of_all_sources(databases: Databases, pg15: PostgresServer, pg18: PostgresServer) -> None:
    a, b = databases.create(pg15, "left"), databases.create(pg18, "right")
    for number, database in enumerate((a, b)):
        database.execute(TABLE)
        database.execute("INSERT INTO t VALUES (%s, 'first')", [number])
    config = make_config({"a": a.url, "b": b.url}, sources=["a", "b"], targets=[], conflict="apply", run="manual", copy="never")
    with running(config) as daemon:
        assert {s.state for s in daemon.report()} == {State.RESTING}
        a.execute("INSERT INTO t VALUES (10, 'a')")
        b.execute("INSERT INTO t VALUES (20, 'b')")
        kick(daemon)
        assert [10, 20] == [i for i, _ in a.query(ROWS) if i >= 10] == [i for i, _ in b.query(ROWS) if i >= 10]
        assert {s.state for s in daemon.report()} == {State.RESTING}
        a.execute("UPDATE t SET v = 'changed' WHERE id = 20")
        kick(daemon)
        kick(daemon)  # nothing comes back
        assert b.query("SELECT v FROM t WHERE id = 20") == a.query("SELECT v FROM t WHERE id = 20") == [("changed",)]
        assert sum(edge.counters.transactions for s in daemon.report() for edge in s.edges) == 3


def test_at_rest_no_session_of_the_sync_is_open_and_the_slot_has_moved(pair: Pair) -> None:
    source, target = pair
    source.execute(TABLE + "; INSERT INTO t VALUES (1, 'x')")
    with running(make_config({"a": source.url, "b": target.url}, run="manual")) as daemon:
        kick(daemon)
        source.execute("INSERT INTO t VALUES (2, 'y')")
        goal = source.query("SELECT pg_current_wal_flush_lsn()")[0][0]
        kick(daemon)
        assert target.query(ROWS) == [(1, "x"), (2, "y")]
        for database in pair:
            wait_for_equal(lambda database=database: database.query(SESSIONS), [(0,)], "no session to be open")  # type: ignore[misc]
        query = "SELECT confirmed_flush_lsn >= %s::pg_lsn FROM pg_replication_slots WHERE slot_name = 'streamer_shop_a'"
        assert source.query(query, [goal]) == [(True,)]


def test_a_source_that_goes_away_amid_runs_is_retried_within_the_run(pair: Pair) -> None:
    source, target = pair
    source.execute(TABLE + "; INSERT INTO t VALUES (1, 'x')")
    with running(make_config({"a": source.url, "b": target.url}, run="manual")) as daemon:
        kick(daemon)
        source.execute("INSERT INTO t VALUES (2, 'y')")
        source.server.stop()
        daemon.kick("shop")
        wait_for(lambda: [e for e in stream(daemon).edges if e.problem], "the run to notice")
        run = stream(daemon).kicks.run
        assert run is not None
        assert (run.number, run.ended) == (2, None)
        source.server.start()
        wait_for(lambda: stream(daemon).kicks.done == 2, "the run to be done")
        run = stream(daemon).kicks.run
        assert run is not None
        assert (run.result, run.rows) == (Result.DONE, 1)
        assert target.query(ROWS) == [(1, "x"), (2, "y")]


@pytest.mark.parametrize("capture", ["pgoutput", "wal2json"])
def test_a_kick_of_a_continuous_sync_is_done_though_the_source_is_quiet(source15: Database, tmp_path: Path, capture: str) -> None:
    source15.execute(TABLE)
    config = make_config({"a": source15.url, "s": f"sqlite:///{tmp_path}/s.sqlite"}, capture=capture)
    with running(config) as daemon:
        wait_for(lambda: stream(daemon).state is State.STREAMING, "the stream to be read")
        source15.execute("INSERT INTO t VALUES (1, 'x')")
        kick(daemon)
        kick(daemon)
        source15.execute("CREATE TABLE other (id int); INSERT INTO other SELECT generate_series(1, 100); DROP TABLE other")
        kick(daemon)
        assert stream(daemon).kicks.done == 3
        position = stream(daemon).edges[0].position
        wait_for(lambda: stream(daemon).confirmed >= position, "it to be confirmed")


def test_a_daemon_with_a_share_of_the_streams_knows_no_other_sync(pair: Pair) -> None:
    source, target = pair
    source.execute(TABLE)
    with running(make_config({"a": source.url, "b": target.url}, run="manual")) as daemon:
        for ask in (daemon.kick, daemon.pause, daemon.resume):
            with pytest.raises(UnknownSyncError, match='the running daemon has no sync "other"; it has shop'):
                ask("other")
