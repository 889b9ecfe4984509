"""`verify = "continuous"`: the daemon compares the rows all the time, tells what it has found, and is in nobody's way."""

from __future__ import annotations

import threading

import pytest

from streamer.report import ProofReport
from streamer.verify import continuous
from tests.configs import make_config
from tests.integration.streams import Running, running
from tests.integration.test_verify import written
from tests.integration.verifying import small_tables
from tests.servers import Database
from tests.waiting import wait_for, wait_for_equal


@pytest.fixture(autouse=True)
def quick_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounds begin one after the other, over ranges of a hundred rows."""
    monkeypatch.setattr(continuous, "ROUND_SECONDS", 0.1)
    monkeypatch.setattr(continuous, "RANGE_ROWS", (100, 100))


def proof(streams: Running) -> ProofReport:
    found = streams.edges["a->b"].proof
    assert found is not None
    return found


def rounds(streams: Running, more: int = 2) -> ProofReport:
    """The proof after so many rounds from now."""
    goal = proof(streams).rounds + more
    return wait_for(lambda: proof(streams) if proof(streams).rounds >= goal else None, "more rounds") or proof(streams)


def test_the_proof_follows_what_happens_to_the_rows_while_they_are_written(source15: Database, target18: Database) -> None:
    small_tables(source15)
    source15.execute("CREATE TABLE keyless (a int, b text)")
    source15.execute("ALTER TABLE keyless REPLICA IDENTITY FULL")
    config = make_config({"a": source15.url, "b": target18.url}, verify="continuous", verify_rate=100_000)
    with running(config) as streams:
        equal = rounds(streams)
        assert (equal.tables, equal.rows, equal.different, equal.failures, equal.problem) == (2, 1000, 0, 0, None)
        assert equal.since is not None
        with written(source15):
            assert rounds(streams).different == 0
        target18.execute("DELETE FROM t WHERE id IN (SELECT id FROM t ORDER BY id LIMIT 2)")
        target18.execute("INSERT INTO t VALUES (9001, 0, '')")
        ((rows,),) = source15.query("SELECT (SELECT count(*) FROM t) + (SELECT count(*) FROM keyless)")
        wait_for_equal(lambda: (proof(streams).different, proof(streams).rows), (3, rows - 3), "three differences")
        target18.execute("DELETE FROM t WHERE id = 9001")
        wait_for(lambda: proof(streams).different == 2, "one difference less")


def test_an_edge_that_is_paused_is_passed_over_and_its_proof_grows_old(source15: Database, target18: Database) -> None:
    small_tables(source15)
    config = make_config({"a": source15.url, "b": target18.url}, verify="continuous", verify_rate=100_000)
    with running(config) as streams:
        before = rounds(streams)
        streams.pause("shop")
        wait_for(lambda: proof(streams).obstacle == "the edge is paused", "the edge to be passed over")
        source15.execute("UPDATE t SET n = 0")
        after = proof(streams)
        assert (after.different, after.failures) == (0, 0)
        assert after.since is not None
        assert before.since is not None
        streams.resume("shop")
        later = rounds(streams).since
        assert later is not None
        assert later > after.since
        assert proof(streams).obstacle == ""


def test_what_fails_is_told_and_tried_again_and_the_stream_goes_on(source15: Database, target18: Database) -> None:
    small_tables(source15)
    source15.execute("CREATE TABLE u (id int PRIMARY KEY)")
    config = make_config({"a": source15.url, "b": target18.url}, verify="continuous", verify_rate=100_000)
    with running(config) as streams:
        rounds(streams)
        target18.execute("ALTER TABLE t RENAME TO away")
        failing = wait_for(lambda: proof(streams) if proof(streams).failures > 1 else None, "two failures")
        assert failing is not None
        assert failing.problem is not None
        assert failing.problem.message == 'table "public.t": node "b" has no table "public.t"'
        assert (failing.tables, failing.rows) == (2, 1000), "what was proven before"
        source15.execute("INSERT INTO u VALUES (1)")
        wait_for(lambda: target18.query("SELECT 1 FROM u"), "the stream to go on")
        target18.execute("ALTER TABLE away RENAME TO t")
        wait_for(lambda: proof(streams).problem is None, "a round without failures")


def test_a_comparison_that_waits_for_a_lock_ends_with_the_daemon(source15: Database, target18: Database) -> None:
    small_tables(source15)
    config = make_config({"a": source15.url, "b": target18.url}, verify="continuous", verify_rate=100_000)
    with target18.connect() as connection:
        with running(config) as streams:
            rounds(streams)
            connection.autocommit = False
            connection.execute("LOCK TABLE t")
            waiting = "SELECT 1 FROM pg_stat_activity WHERE application_name = 'streamer verify' AND wait_event_type = 'Lock'"
            wait_for(lambda: target18.query(waiting), "the comparison to wait")
        wait_for(lambda: not [t for t in threading.enumerate() if t.name.startswith("verify ")], "its threads to end")
        connection.rollback()
