"""Sources that capture by triggers and keep no commit times: the version of a row is what the triggers have noted."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress

import psycopg
import pytest

from streamer.admin.check import check
from streamer.admin.findings import Severity
from streamer.admin.setup import setup
from streamer.capture import batches, trigger_reader
from streamer.config import Config
from streamer.model import EdgeName, Version
from streamer.session import Connection, connect
from streamer.sinks.conflict_log import ConflictLog
from streamer.versions import DeltaVersions, choose_versions
from tests.conftest import Databases
from tests.integration.streams import running
from tests.integration.test_trigger_masters import ROWS, TABLE, configured
from tests.integration.test_trigger_transactions import START, read, source_of
from tests.servers import Database, PostgresServer
from tests.waiting import wait_for, wait_for_equal


@pytest.fixture
def nodes(databases: Databases, untimed_server: PostgresServer, pg15: PostgresServer) -> Mapping[str, Database]:
    """Of a and b, both captured by triggers, a keeps no commit times."""
    made = {"a": databases.create(untimed_server, "a"), "b": databases.create(pg15, "b")}
    for database in made.values():
        database.execute(f"{TABLE}; CREATE TABLE u (id integer PRIMARY KEY, n integer)")
    return made


def config_of(nodes: Mapping[str, Database]) -> Config:
    return configured(nodes, {"s": {"sources": ["a", "b"], "copy": "never"}}, "ab")


@contextmanager
def session(node: Database) -> Iterator[Connection]:
    with connect("a", node.url, application="test") as connection:
        yield connection


def versions(node: Database) -> dict[object, Version]:
    """Those of the rows of t by their keys, and of tombstones by their keys as JSON."""
    with session(node) as connection:
        asked = choose_versions(connection, "a", has_origins=False)
        assert isinstance(asked, DeltaVersions)
        rows = connection.execute("SELECT id, xmin::text FROM t").fetchall()
        graves = connection.execute("SELECT key, xmin::text FROM streamer.tombstone").fetchall()
        found = asked.of({xid for _, xid in (*rows, *graves)})
    return {key: found[xid] for key, xid in (*rows, *graves)}


def purge_all(node: Database) -> None:
    """As if every target had all of it."""
    with session(node) as connection:
        batches.drop_reader(connection, "streamer_s_a")
        while batches.purge(connection):
            pass
    assert node.query("SELECT * FROM streamer.delta") == node.query("SELECT * FROM streamer.delta_nested") == []


WRITES = {
    "1": "INSERT INTO t VALUES (1, 'plain')",
    "2": "BEGIN; SAVEPOINT one; INSERT INTO t VALUES (2, 'behind a savepoint'); RELEASE one; INSERT INTO u VALUES (2, 2); COMMIT",
    "3": "BEGIN; INSERT INTO t VALUES (3, 'x'); SAVEPOINT one; UPDATE t SET x = 'y' WHERE id = 3; SAVEPOINT two; "
    "UPDATE t SET x = 'z' WHERE id = 3; INSERT INTO u VALUES (3, 3); COMMIT",
    '["4"]': "BEGIN; SAVEPOINT one; DELETE FROM t WHERE id = 4; RELEASE one; INSERT INTO u VALUES (4, 4); COMMIT",
}


def test_a_row_has_the_time_that_readers_tell_also_behind_a_savepoint_and_when_its_deltas_are_purged(
    nodes: Mapping[str, Database],
) -> None:
    setup(config_of(nodes), None, lambda line: None)
    nodes["a"].execute("INSERT INTO t VALUES (4, 'to be deleted')")
    for statements in WRITES.values():
        nodes["a"].execute(statements)
    told: dict[object, Version] = {}
    for of in read(source_of(nodes["a"]), START):
        for kind, relation, old, new in of.changes:
            (key, *_) = new or old or ()
            if relation.table.name == "t":
                told[f'["{key}"]' if kind == "delete" else int(str(key))] = Version(of.time, "a")
    assert told.keys() == {1, 2, 3, '["4"]'}
    assert versions(nodes["a"]) == told
    purge_all(nodes["a"])
    assert versions(nodes["a"]) == told


def test_who_writes_a_row_later_has_the_later_time_though_he_began_earlier(nodes: Mapping[str, Database]) -> None:
    setup(config_of(nodes), None, lambda line: None)
    nodes["a"].execute("INSERT INTO t VALUES (1, 'x')")
    with nodes["a"].connect() as early, early.transaction():
        early.execute("INSERT INTO t VALUES (2, 'began early')")
        nodes["a"].execute("UPDATE t SET x = 'began late' WHERE id = 1")
        before = versions(nodes["a"])[1].time
        early.execute("UPDATE t SET x = 'began early, wrote late' WHERE id = 1")
    after = versions(nodes["a"])[1].time
    assert before is not None
    assert after is not None
    assert before < after


def test_a_row_of_the_open_transaction_has_a_version(nodes: Mapping[str, Database]) -> None:
    """A large transaction that comes in parts meets the rows of those before."""
    setup(config_of(nodes), None, lambda line: None)
    with session(nodes["a"]) as connection, connection.transaction():
        connection.execute("INSERT INTO t VALUES (1, 'x')")
        ((xid, time),) = connection.execute("SELECT t.xmin::text, max(d.time) FROM t, streamer.delta AS d GROUP BY 1").fetchall()
        assert choose_versions(connection, "a", has_origins=False).of([xid]) == {xid: Version(time, "a")}


def test_an_applied_row_has_the_version_of_its_origin_and_a_copied_one_none(nodes: Mapping[str, Database]) -> None:
    nodes["b"].execute("INSERT INTO t VALUES (1, 'copied')")
    config = configured(nodes, {"s": {"sources": ["a", "b"]}}, "ab")
    with running(config):
        wait_for_equal(lambda: len(nodes["a"].query(ROWS)), 1, "the copied row")
        nodes["b"].execute("INSERT INTO t VALUES (2, 'b')")
        nodes["b"].execute("INSERT INTO t SELECT i, 'many' FROM generate_series(1000, 1999) AS i")
        wait_for_equal(lambda: len(nodes["a"].query(ROWS)), 1002, "the rows of b")
    ((small, large),) = nodes["b"].query(
        "SELECT max(CASE id WHEN 2 THEN time END), max(CASE id WHEN 1000 THEN time END) FROM"
        " (SELECT id, pg_xact_commit_timestamp(xmin) AS time FROM t) AS x"
    )
    for purged in (False, True):
        if purged:
            purge_all(nodes["a"])
        found = versions(nodes["a"])
        assert found[1].time is None
        assert found[2] == Version(small, "b")
        assert {found[i] for i in range(1000, 2000)} == {Version(large, "b")}


def apart(nodes: Mapping[str, Database], first: str) -> None:
    """Write the same rows on both nodes, first on one: by an update, behind a savepoint, by a delete, by a large transaction."""
    second = "b" if first == "a" else "a"
    for name in (first, second):
        nodes[name].execute(f"UPDATE t SET x = '{name}' WHERE id = 1")
        nodes[name].execute(
            f"BEGIN; SAVEPOINT s; UPDATE t SET x = '{name}' WHERE id = 2; RELEASE s; UPDATE t SET x = '{name}' WHERE id = 3; COMMIT"
        )
        nodes[name].execute(f"INSERT INTO t VALUES (100, '{name}')")
        nodes[name].execute(f"UPDATE t SET x = '{name}' WHERE id BETWEEN 1000 AND 1999")
    nodes[first].execute("UPDATE t SET x = 'too early' WHERE id = 4")
    nodes[second].execute("BEGIN; SAVEPOINT s; DELETE FROM t WHERE id = 4; RELEASE s; COMMIT")


@pytest.mark.parametrize("purged", [False, True], ids=["deltas there", "deltas purged"])
@pytest.mark.parametrize("first", ["a", "b"])
def test_the_later_write_wins_on_a_node_that_keeps_no_commit_times(
    nodes: Mapping[str, Database], first: str, purged: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trigger_reader, "CONFIRM_SECONDS", 0.02)
    config = config_of(nodes)
    with running(config):
        nodes["a"].execute(
            "INSERT INTO t SELECT i, 'start' FROM generate_series(1, 10) AS i; "
            "INSERT INTO t SELECT i, 'start' FROM generate_series(1000, 1999) AS i"
        )
        wait_for_equal(lambda: nodes["b"].query(ROWS), nodes["a"].query(ROWS), "the rows of a on b")
    apart(nodes, first)
    second = "b" if first == "a" else "a"
    if purged:
        with running(config, source="a", wait=False, set_up=False):
            wait_for_equal(lambda: nodes["a"].query("SELECT count(*) FROM streamer.delta"), [(0,)], "the deltas of a to be purged")
    with running(config) as streams:
        expected = [(i, second if i < 4 else "start") for i in (1, 2, 3, 5, 6, 7, 8, 9, 10)]
        expected += [(100, second), *((i, second) for i in range(1000, 2000))]
        for database in nodes.values():
            wait_for_equal(lambda d=database: d.query(ROWS), expected, "the later writes to have won")  # type: ignore[misc]
        assert not streams.problems


def test_what_the_triggers_of_a_sync_with_one_source_tell_is_not_kept(databases: Databases, untimed_server: PostgresServer) -> None:
    """Nobody asks for it."""
    nodes = {name: databases.create(untimed_server, name) for name in "ac"}
    for database in nodes.values():
        database.execute(f"{TABLE}; CREATE TABLE u (id integer PRIMARY KEY)")
    syncs: dict[str, dict[str, object]] = {
        "s": {"sources": ["a"], "targets": ["c"], "tables": ["public.t"]},
        "back": {"sources": ["c"], "targets": ["a"], "tables": ["public.u"]},
    }
    setup(configured(nodes, syncs, "ac"), None, lambda line: None)
    nodes["a"].execute("INSERT INTO t VALUES (1, 'x')")
    purge_all(nodes["a"])
    assert nodes["a"].query("SELECT * FROM streamer.transaction") == []


def test_what_all_sources_know_of_is_forgotten_after_a_day(nodes: Mapping[str, Database], monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of(nodes)
    monkeypatch.setattr(trigger_reader, "CONFIRM_SECONDS", 0.02)
    noted = "SELECT count(*) FROM streamer.transaction WHERE origin = ''"
    with running(config):
        nodes["a"].execute("INSERT INTO t VALUES (1, 'known')")
        wait_for_equal(lambda: nodes["b"].query(ROWS), [(1, "known")], "the row on b")
        nodes["b"].execute("INSERT INTO t VALUES (2, 'known of it')")
        wait_for_equal(lambda: len(nodes["a"].query(ROWS)), 2, "the row of b")
    nodes["a"].execute("INSERT INTO t VALUES (3, 'not known')")
    with running(config, source="a", wait=False, set_up=False):
        wait_for_equal(lambda: nodes["a"].query("SELECT count(*) FROM streamer.delta"), [(0,)], "the deltas of a to be purged")
    assert nodes["a"].query(noted) == [(2,)]
    for age, left in (("23 hours", 2), ("2 hours", 1)):
        nodes["a"].execute(f"UPDATE streamer.transaction SET applied = applied - interval '{age}'")
        with session(nodes["a"]) as connection:
            log = ConflictLog(EdgeName("s", "b", "a"), {"conflict_days": 30, "tombstone_days": 7}, lambda relation: ())
            log.purge(connection)
        assert nodes["a"].query(noted) == [(left,)]


def test_a_check_demands_no_commit_times_where_triggers_capture(nodes: Mapping[str, Database]) -> None:
    config = config_of(nodes)
    setup(config, None, lambda line: None)
    assert [str(finding) for finding in check(config) if finding.severity is Severity.ERROR] == []


def test_a_node_joins_while_all_write_the_same_rows(
    nodes: Mapping[str, Database], databases: Databases, untimed_server: PostgresServer
) -> None:
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")
    dice = random.Random(seed)
    joining = databases.create(untimed_server, "c")
    joining.execute(f"{TABLE}; CREATE TABLE u (id integer PRIMARY KEY, n integer)")
    everybody = {**nodes, "c": joining}

    def write(names: str, rounds: int) -> None:
        for number in range(rounds):
            name, key = dice.choice(names), dice.randrange(1, 40)
            with suppress(psycopg.IntegrityError):  # another node's row came in between
                everybody[name].execute(f"DELETE FROM t WHERE id = {key}; INSERT INTO t VALUES ({key}, '{name} {number}')")
            everybody[name].execute(
                f"BEGIN; SAVEPOINT s; UPDATE t SET x = '{name}{number}' WHERE id IN ({key + 1}, {key + 2}); RELEASE s; COMMIT"
            )
            everybody[name].execute(f"DELETE FROM t WHERE id = {dice.randrange(1, 40)}")

    with running(configured(nodes, {"s": {"sources": ["a", "b"]}}, "ab")):
        write("ab", 20)
    config = configured(everybody, {"s": {"sources": ["a", "b", "c"]}}, "abc")
    setup(config, None, lambda line: None)
    write("ab", 20)
    with running(config, wait=False, set_up=False) as streams:
        wait_for(lambda: joining.query(ROWS), "c to have been filled")
        write("abc", 40)
        wait_for(lambda: len({str(d.query(ROWS)) for d in everybody.values()}) == 1, "all nodes to be equal")
        for i, database in enumerate(everybody.values()):
            database.execute(f"INSERT INTO u VALUES ({i}, {i})")
        for database in everybody.values():
            wait_for_equal(lambda d=database: len(d.query("SELECT * FROM u")), 3, "the last rows")  # type: ignore[misc]
        assert len({str(d.query(ROWS)) for d in everybody.values()}) == 1
        assert not streams.problems
