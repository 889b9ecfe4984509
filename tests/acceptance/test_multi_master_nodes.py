"""Nodes of several sources that are wrong, away, new or removed, and conflict handlers that fail."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.acceptance.mesh import MARKS, Mesh
from tests.acceptance.pgbench import pgbench
from tests.conftest import Databases
from tests.servers import Database, PostgresServer
from tests.waiting import wait_for, wait_for_equal

TABLE = "CREATE TABLE t (id integer PRIMARY KEY, v integer)"
ALL = "SELECT * FROM t ORDER BY id"
REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def mesh(tmp_path: Path, a: Database, b: Database) -> Iterator[Mesh]:
    """Two sources with the table t."""
    with Mesh(tmp_path, {"a": a, "b": b}, {"shop": {"sources": ["a", "b"]}}) as mesh:
        mesh.on_all(f"{MARKS}; {TABLE}")
        yield mesh


# -- handlers ----------------------------------------------------------------------------------------------------------------------

HANDLERS = """
import threading

def raises(dispute):
    raise ValueError("no idea")

def hangs(dispute):
    threading.Event().wait(60)

def babbles(dispute):
    return 42
"""
FAILURES = {"raises": "ValueError: no idea", "hangs": "within 0.5 seconds", "babbles": "it answered 42"}


@pytest.fixture
def disputed(mesh: Mesh, tmp_path: Path, a: Database, b: Database) -> Callable[..., None]:
    """Makes both nodes write the same row, under a handler."""
    (tmp_path / "rules.py").write_text(HANDLERS)
    mesh.environment["PYTHONPATH"] = f"{tmp_path}:{REPOSITORY}"

    def dispute(handler: str, fallback: str) -> None:
        mesh.write_config(conflict=f"python:rules:{handler}", conflict_timeout=0.5, conflict_fallback=fallback)
        a.execute("INSERT INTO t VALUES (1, 0)")
        mesh.setup().start_streaming()
        mesh.wait_until_equal(ALL)
        mesh.stop()
        a.execute("UPDATE t SET v = 1")
        b.execute("UPDATE t SET v = 2")
        mesh.start()

    return dispute


@pytest.mark.parametrize("handler", FAILURES)
def test_a_handler_that_fails_stops_the_stream_and_the_conflict_is_kept(
    handler: str, mesh: Mesh, disputed: Callable[..., None], a: Database
) -> None:
    disputed(handler, "stop")
    said = mesh.wait_for_problem(FAILURES[handler])
    assert "update_origin_differs" in said
    assert "\n" not in said
    query = "SELECT winner, error FROM streamer.conflict"
    (winner, error), *more = wait_for(lambda: a.query(query), "the conflict")
    assert (winner, more) == (None, [])
    assert FAILURES[handler] in error


def test_a_handler_that_fails_may_leave_it_to_a_policy(mesh: Mesh, disputed: Callable[..., None], a: Database) -> None:
    disputed("raises", "latest")
    mesh.wait_until_quiet([ALL])
    assert a.query(ALL) == [(1, 2)]
    ((winner, rule, error),) = a.query("SELECT winner, rule, error FROM streamer.conflict")
    assert (winner, rule) == ("incoming", "python:rules:raises, then latest")
    assert "no idea" in error


def test_a_handler_that_does_not_exist_is_told_at_once(mesh: Mesh, tmp_path: Path) -> None:
    mesh.environment["PYTHONPATH"] = f"{tmp_path}:{REPOSITORY}"
    mesh.write_config(conflict="python:nowhere:to_be_found")
    done = mesh.command("run", "--once", succeeds=False)
    assert done.returncode == 1
    assert 'there is no module "nowhere"' in done.stderr
    assert "Traceback" not in done.stderr


# -- clocks ------------------------------------------------------------------------------------------------------------------------


def test_a_clock_that_is_too_far_ahead_stops_the_stream_with_both_clocks(
    tmp_path: Path, a: Database, databases: Databases, ahead: PostgresServer
) -> None:
    early = databases.create(ahead, "early")
    with Mesh(tmp_path, {"a": a, "b": early}, {"shop": {"sources": ["a", "b"], "copy": "never", "max_clock_skew": 1.0}}) as mesh:
        mesh.on_all(f"{MARKS}; {TABLE}")
        mesh.setup().start_streaming()  # else the clock may have caught up when the change is read
        early.execute("INSERT INTO t VALUES (1, 1)")
        said = mesh.wait_for_problem("in the future")
        ((commit,),) = early.query("SELECT to_char(pg_xact_commit_timestamp(xmin) AT TIME ZONE 'UTC', 'HH24:MI:SS') FROM t")
        assert commit in said
        assert '"b"' in said
        assert '"a"' in said
        assert "max_clock_skew allows 1 s" in said
        (hint,) = [edge["problem"]["hint"] for edge in mesh.edges().values() if edge["problem"]]
        assert 'once "a" has passed that time' in hint  # a clock that is right again does not help at once


def test_within_the_limit_a_clock_that_is_ahead_is_waited_for(
    tmp_path: Path, a: Database, databases: Databases, ahead: PostgresServer
) -> None:
    early = databases.create(ahead, "early")
    with Mesh(tmp_path, {"a": a, "b": early}, {"shop": {"sources": ["a", "b"], "copy": "never"}}) as mesh:
        mesh.on_all(f"{MARKS}; {TABLE}")
        mesh.setup().start_streaming()
        early.execute("INSERT INTO t VALUES (1, 1)")
        mesh.wait_until_equal(ALL)
        a.execute("UPDATE t SET v = 2")  # made after seeing the other, so it is the later one
        wait_for_equal(lambda: early.query(ALL), [(1, 2)], "the later write")
        assert mesh.conflicts() == []


@pytest.mark.parametrize("verb", ["check", "run"])
def test_latest_is_refused_where_commit_times_are_not_kept(mesh: Mesh, b: Database, verb: str) -> None:
    mesh.setup()
    b.server.execute("ALTER SYSTEM SET track_commit_timestamp = off")
    b.server.restart()
    try:
        told = mesh.command(*(("check",) if verb == "check" else ("run", "--once")), succeeds=False)
        assert told.returncode == 1
        assert "track_commit_timestamp" in told.stdout + told.stderr
        assert "ALTER SYSTEM SET track_commit_timestamp = on" in told.stdout + told.stderr
        mesh.write_config(conflict=["a", "b"])
        mesh.start_streaming()
        mesh.wait_until_quiet([ALL])
    finally:
        b.server.execute("ALTER SYSTEM RESET track_commit_timestamp")
        b.server.restart()


# -- nodes that come and go --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("triggers", ["", "ab"], ids=["WAL", "triggers"])
def test_a_node_that_was_away_for_long_catches_up(mesh: Mesh, a: Database, b: Database, triggers: str) -> None:
    mesh.captures |= dict.fromkeys(triggers, "trigger")
    mesh.write_config()
    a.execute("INSERT INTO t SELECT i, 0 FROM generate_series(1, 1000) i")
    mesh.setup().start_streaming()
    mesh.wait_until_quiet([ALL])
    b.server.stop()
    for i in range(20):
        a.execute(f"UPDATE t SET v = v + 1 WHERE id % 20 = {i}; DELETE FROM t WHERE id = {i}")
    wait_for(lambda: any('node "b"' in problem for problem in mesh.problems()), "the node to be missed")
    b.server.start()
    mesh.wait_until_quiet([ALL])
    wait_for(lambda: not mesh.problems(), "the daemon to be content")
    assert a.query("SELECT count(*), min(v), max(v) FROM t") == [(981, 1, 1)]


LEFT = {
    "slots": "SELECT slot_name FROM pg_replication_slots WHERE slot_name LIKE 'streamer%' AND database = current_database()",
    "publications": "SELECT pubname FROM pg_publication",
    "schemas": "SELECT nspname FROM pg_namespace WHERE nspname = 'streamer'",
    "triggers": "SELECT tgname FROM pg_trigger WHERE NOT tgisinternal",
}


@pytest.mark.parametrize("triggers", ["", "bc"], ids=["WAL", "WAL and triggers"])
def test_a_node_that_is_removed_leaves_nothing_behind(tmp_path: Path, a: Database, b: Database, c: Database, triggers: str) -> None:
    captures = dict.fromkeys(triggers, "trigger")
    with Mesh(tmp_path, {"a": a, "b": b, "c": c}, {"shop": {"sources": ["a", "b", "c"]}}, captures=captures) as mesh:
        mesh.on_all(f"{MARKS}; {TABLE}")
        mesh.setup().start_streaming()
        for i, node in enumerate((a, b, c)):
            node.execute(f"INSERT INTO t VALUES ({i}, 0)")
        mesh.wait_until_quiet([ALL])
        mesh.stop()
        for source in ("a", "b"):  # what c made is handed on by nobody
            mesh.command("run", "--once", "--source", source)
        mesh.command("teardown", "--node", "c", "--yes")
        for what, query in LEFT.items():
            assert c.query(query) == [], what
        for node in (a, b):
            assert node.query("SELECT FROM streamer.progress WHERE 'c' IN (source, target)") == []
            assert node.query("SELECT FROM streamer.copy WHERE 'c' IN (source, target)") == []
        for server in (a.server, b.server):
            named = "SELECT roname FROM pg_replication_origin WHERE roname ~ '^streamer:shop:(c:|.*:c$|.*:c:)'"
            assert server.query(named) == []
        mesh.write_config(sources=["a", "b"])
        del mesh.nodes["c"]
        mesh.setup().start_streaming()
        a.execute("UPDATE t SET v = 5")
        mesh.wait_until_quiet([ALL])
        assert mesh.stop() == 0
        mesh.command("teardown", "--yes")
        for node in (a, b):
            for what, query in LEFT.items():
                assert node.query(query) == [], what


def test_a_node_that_lost_its_slot_joins_anew_as_the_remedy_says(tmp_path: Path, a: Database, b: Database, c: Database) -> None:
    """The remedy had its tables emptied after setup, typed in the order in which it was printed: and the others' with them."""
    with Mesh(tmp_path, {"a": a, "b": b, "c": c}, {"shop": {"sources": ["a", "b", "c"]}}) as mesh:
        mesh.on_all(f"{MARKS}; {TABLE}")
        mesh.setup().start_streaming()
        a.execute("INSERT INTO t SELECT i, 0 FROM generate_series(1, 100) i")
        mesh.wait_until_quiet([ALL])
        mesh.stop()
        c.execute("SELECT pg_drop_replication_slot('streamer_shop_c')")  # as in a restored database
        c.execute("INSERT INTO t VALUES (1000, 0)")
        b.execute("UPDATE t SET v = 1 WHERE id <= 50")
        said = mesh.command("run", "--once", succeeds=False).stderr
        assert 'slot "streamer_shop_c" does not exist' in said, said
        *_, leaving, emptying, joining = said.strip().split(", ")
        assert "streamer teardown --node c" in said, said
        assert "empty its tables" in emptying, (leaving, emptying)
        assert "streamer setup" in joining, joining
        a.execute("UPDATE t SET v = 2 WHERE id > 50")
        mesh.command("teardown", "--node", "c", "--yes")
        c.execute("TRUNCATE t, mark")
        mesh.setup().start_streaming()
        mesh.wait_until_quiet([ALL])
        assert c.query("SELECT v, count(*) FROM t GROUP BY v ORDER BY v") == [(1, 50), (2, 50)]


def test_a_third_source_joins_while_the_others_write(tmp_path: Path, a: Database, b: Database, c: Database) -> None:
    from tests.acceptance.test_multi_master import BALANCES, DELTAS, SUMS, fill

    fill(a.server, a)
    with Mesh(tmp_path, {"a": a, "b": b}, {"shop": {"sources": ["a", "b"], "table": DELTAS}}) as mesh:
        a.execute(MARKS)
        mesh.command("setup", "--fix")
        mesh.start_streaming()
        mesh.wait_until_quiet(BALANCES[:3])
        with pgbench(a, "-R", "100"), pgbench(b, "-R", "100"):
            wait_for(lambda: b.query("SELECT count(*) > 100 FROM pgbench_history") == [(True,)], "the load")
            mesh.stop()
            mesh.add_node("c", c)
            mesh.write_config(sources=["a", "b", "c"])
            mesh.command("setup", "--fix")
            mesh.start_streaming()
            rows = c.query("SELECT count(*) FROM pgbench_history")[0][0]
            wait_for(lambda: c.query("SELECT count(*) FROM pgbench_history")[0][0] > rows + 100, "the new node to follow")
            with pgbench(c, "-R", "100"):
                wait_for(lambda: c.query("SELECT count(*) FROM pgbench_history")[0][0] > rows + 500, "the new node to write")
        mesh.wait_until_quiet(BALANCES)
        sums = {total for query in SUMS for total in mesh.wait_until_equal(query)}
        assert len(sums) == 1, sums
        assert mesh.stop() == 0
