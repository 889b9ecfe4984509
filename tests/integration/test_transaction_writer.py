"""The writer for a PostgreSQL database that several nodes write: every source transaction by itself, conflicts resolved.

The edge is a -> b; `b`'s own application writes through an ordinary session, transactions from `a` (and, forwarded, from `c`) are
handed to the sink as groups. Times are relative to now, because the target's clock decides when something may be applied.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from streamer import statements
from streamer.errors import ApplyError, TargetError
from streamer.grouping import idle_group
from streamer.model import LSN, Change, Group, Identity, Idle, Origin, Relation, Seen, TableDefinition
from streamer.ports import Sink, Written
from streamer.session import connect
from streamer.sinks import postgres_triggers
from streamer.sinks.conflict import Rules
from streamer.sinks.postgres import PostgresSink
from streamer.sinks.postgres_table import quote, quoted, read_target
from streamer.sinks.postgres_transactions import MultiMaster
from tests.changes import delete, insert, relation, table, truncate, update
from tests.integration.targets import BEGIN, EDGE, SLOT
from tests.servers import Database
from tests.waiting import wait_for

T = table(id="integer", name="text", n="integer")
LATEST = Rules("latest")
START = datetime.now(UTC) - timedelta(hours=1)


def at(seconds: float) -> datetime:
    """A moment of the hour that has passed."""
    return START + timedelta(seconds=seconds)


class Node:
    """The database b, and what arrives there."""

    def __init__(self, database: Database, rules: Rules = LATEST) -> None:
        self.database = database
        self.url = database.url
        self.rules = rules
        self._position = int(BEGIN)
        database.execute(statements.load("postgres/install.sql"))

    def create(self, definition: TableDefinition, *more: str) -> Relation:
        columns = [f'"{c.name}" {c.type_name}' for c in definition.columns]
        key = ", ".join(map(quote, definition.primary_key))
        self.database.execute(f"CREATE TABLE {quoted(definition.table)} ({', '.join([*columns, f'PRIMARY KEY ({key})', *more])})")
        with connect("b", self.database.url, application="test") as connection:
            merged = self.rules.delta | self.rules.max | self.rules.min
            postgres_triggers.ensure(connection, read_target(connection, "b", definition.table), merged)
        return relation(definition, Identity.FULL if merged else Identity.DEFAULT)

    @contextmanager
    def edge(self) -> Iterator[Sink]:
        settings = MultiMaster(lambda table: self.rules, lambda name: pytest.fail(name), 5.0, 30, 7, self.rules.policy == "latest")
        self._wait_for_last_session()
        sink = PostgresSink(EDGE, self.url, masters=settings)
        try:
            if sink.open() is None:
                sink.begin(SLOT, BEGIN)
            yield sink
        finally:
            sink.close()

    def _wait_for_last_session(self) -> None:
        """A session that has been closed has its lock for a moment still."""
        ours = "database = (SELECT oid FROM pg_database WHERE datname = current_database())"
        locks = f"SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND {ours}"
        wait_for(lambda: self.database.query(locks) == [(0,)], "the last session's lock to be given back")

    def progress(self) -> tuple[LSN, Seen]:
        """What a new session is told."""
        self._wait_for_last_session()
        with closing(PostgresSink(EDGE, self.url)) as sink:
            progress = sink.open()
            assert progress is not None
            return progress.position, progress.seen

    def transaction(self, *changes: Change, time: datetime, node: str = "a", complete: bool = True, **seen: datetime) -> Group:
        self._position += 10
        origin = Origin(node, LSN(self._position - 1), time, seen)
        return Group(origin, changes, LSN(self._position), complete, transactions=1)

    def apply(self, *groups: Group) -> list[Written]:
        with self.edge() as sink:
            return list(sink.write(groups, lambda: False))

    def rows(self) -> list[tuple[Any, ...]]:
        return self.database.query("SELECT * FROM public.t ORDER BY id")

    def conflicts(self) -> list[tuple[str, str, str | None]]:
        return self.database.query("SELECT kind, key, winner FROM streamer.conflict ORDER BY id")

    def versions(self) -> dict[int, tuple[datetime | None, str | None]]:
        query = (
            "SELECT t.id, v.timestamp, o.roname FROM public.t AS t, pg_xact_commit_timestamp_origin(t.xmin) AS v "
            "LEFT JOIN pg_replication_origin AS o ON o.roident = v.roident"
        )
        return {i: (time, name) for i, time, name in self.database.query(query)}


@pytest.fixture
def node(target15: Database) -> Node:
    return Node(target15)


def test_every_transaction_keeps_its_own_commit_time_and_origin(node: Node) -> None:
    t = node.create(T)
    first, second = node.transaction(insert(t, "1", "x", "0"), time=at(1)), node.transaction(insert(t, "2", "y", "0"), time=at(2))
    from_c = node.transaction(insert(t, "3", "z", "0"), time=at(3), node="c")
    assert node.apply(first, second, from_c) == [Written(inserted=1)] * 3
    assert node.versions() == {
        1: (at(1), "streamer:shop:b:a:a"),
        2: (at(2), "streamer:shop:b:a:a"),
        3: (at(3), "streamer:shop:b:a:c"),
    }
    assert node.conflicts() == []


def test_a_batch_in_which_one_needs_judgement_is_applied_whole_and_in_order(node: Node) -> None:
    t = node.create(T)
    groups = [node.transaction(insert(t, str(i), "x", "0"), time=at(i)) for i in range(1, 300)]
    node.database.execute("INSERT INTO t VALUES (150, 'local', 1)")
    groups += [node.transaction(update(t, str(i), "y", "0"), time=at(1000)) for i in range(1, 300)]
    written = node.apply(*groups)
    assert len(written) == len(groups)
    assert node.conflicts() == [("insert_exists", '{"id":"150"}', "current"), ("update_origin_differs", '{"id":"150"}', "current")]
    assert [row for row in node.rows() if row[1] != "y"] == [(150, "local", 1)]


@pytest.mark.parametrize("count", [1, 500])
def test_the_later_write_wins_whichever_side_it_is_on(node: Node, count: int) -> None:
    t = node.create(T)
    node.apply(node.transaction(*(insert(t, str(i), "x", "0") for i in range(count)), time=at(1)))
    node.database.execute("UPDATE t SET name = 'local' WHERE id = 0")
    older = node.transaction(*(update(t, str(i), "older", "0") for i in range(count)), time=at(2))
    newer = node.transaction(*(update(t, str(i), "newer", "0") for i in range(count)), time=datetime.now(UTC))
    node.apply(older)
    assert [name for _, name, _ in node.rows()] == ["local"] + ["older"] * (count - 1)
    node.apply(newer)
    assert [name for _, name, _ in node.rows()] == ["newer"] * count
    assert node.conflicts() == [
        ("update_origin_differs", '{"id":"0"}', "current"),
        ("update_origin_differs", '{"id":"0"}', "incoming"),
    ]


def test_a_batch_may_touch_many_tables(node: Node) -> None:
    tables = [node.create(table(f"t{i}", id="integer", name="text")) for i in range(40)]
    inserts = [node.transaction(insert(t, "1", f"x{i}"), insert(t, "2", "y"), time=at(i)) for i, t in enumerate(tables)]
    updates = [node.transaction(update(t, "1", f"z{i}"), delete(t, "2", None), time=at(50 + i)) for i, t in enumerate(tables)]
    node.apply(*inserts, *updates)
    assert [node.database.query(f"SELECT * FROM t{i}") for i in range(40)] == [[(1, f"z{i}")] for i in range(40)]


def test_a_batch_keeps_every_value_as_it_is(node: Node) -> None:
    odd = node.create(
        table("100% 'ta%sble", **{"id %s": "integer", "val'ue": "text", "bits": "text", "fixed": "text"}, key=("id %s",))
    )
    node.database.execute("""ALTER TABLE "100% 'ta%sble" ALTER bits TYPE bit(3) USING NULL, ALTER fixed TYPE char(4)""")
    values = ["", "NULL", "'", '"', "\\", "{a,b}", "%s %%", "ä€😀", "line\nline\ttab", " pad ", "x" * 100_000]
    node.apply(*[node.transaction(insert(odd, str(i), v, "101", "ab"), time=at(i)) for i, v in enumerate([*values, None])])
    node.apply(*[node.transaction(update(odd, str(i), v, "011", "ab"), time=at(50 + i)) for i, v in enumerate([None, *values])])
    found = node.database.query("""SELECT "id %s", "val'ue", bits::text, fixed FROM "100% 'ta%sble" ORDER BY 1""")
    assert found == [(i, v, "011", "ab  ") for i, v in enumerate([None, *values])]


def test_a_value_that_is_too_long_for_a_domain_is_refused_not_cut(node: Node) -> None:
    node.database.execute("CREATE DOMAIN short AS varchar(3); CREATE DOMAIN shorter AS short CHECK (length(VALUE) < 9)")
    t = node.create(table(id="integer", name="text"))
    node.database.execute("ALTER TABLE t ALTER name TYPE shorter")
    with pytest.raises(ApplyError, match=r'table "public\.t" on "b" refuses the insert of id=2: value too long'):
        node.apply(node.transaction(insert(t, "1", "abc"), time=at(1)), node.transaction(insert(t, "2", "abcd"), time=at(2)))
    assert node.rows() == [(1, "abc")]


def test_a_type_with_a_cast_of_its_own_from_text_is_read_by_its_input_function(node: Node) -> None:
    node.database.execute(
        "CREATE TYPE pair AS (a int, b int); CREATE FUNCTION swapped(text) RETURNS pair LANGUAGE sql IMMUTABLE AS "
        "$$ SELECT row(split_part($1, ',', 2)::int, split_part($1, ',', 1)::int)::pair $$; "
        "CREATE CAST (text AS pair) WITH FUNCTION swapped(text) AS ASSIGNMENT"
    )
    t = node.create(table(id="integer", name="text"))
    node.database.execute("ALTER TABLE t ALTER name TYPE pair USING NULL")
    node.apply(node.transaction(insert(t, "1", "(1,2)"), time=at(1)))
    assert node.database.query("SELECT (name).a, (name).b FROM t") == [(1, 2)]


def test_a_server_without_procedures_gets_transactions_one_by_one(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamer.sinks.postgres_transactions.SINCE", 999_999)
    test_every_transaction_keeps_its_own_commit_time_and_origin(node)


def test_what_the_origin_had_seen_is_no_conflict(node: Node) -> None:
    t = node.create(T)
    node.apply(node.transaction(insert(t, "1", "x", "0"), time=at(1)))
    node.database.execute("UPDATE t SET name = 'local'")
    now = datetime.now(UTC)
    node.apply(node.transaction(update(t, "1", "answer", "0"), time=now, b=now))
    assert (node.rows(), node.conflicts()) == ([(1, "answer", 0)], [])


def test_a_change_that_is_judged_has_not_seen_what_those_after_it_in_the_batch_had(node: Node) -> None:
    t = node.create(T)
    node.apply(node.transaction(insert(t, "1", "x", "0"), insert(t, "2", "x", "0"), time=at(1)))
    node.database.execute("UPDATE t SET name = 'local' WHERE id = 1")
    now = datetime.now(UTC)
    node.apply(
        node.transaction(update(t, "1", "older", "0"), time=at(2)),
        node.transaction(update(t, "2", "answer", "0"), time=now, b=now),
    )
    assert node.rows() == [(1, "local", 0), (2, "answer", 0)]
    assert node.conflicts() == [("update_origin_differs", '{"id":"1"}', "current")]


def test_what_the_source_had_seen_is_kept_when_it_hands_on_what_another_node_made(node: Node) -> None:
    t = node.create(T)
    local = node.transaction(insert(t, "1", "x", "0"), time=at(1), b=at(0))
    forwarded = node.transaction(insert(t, "2", "x", "0"), time=at(2), node="c", b=at(5), d=at(6))
    with node.edge() as sink:
        sink.write([local, replace(forwarded, seen={"b": at(0), "c": at(2)})], lambda: False)
    assert node.progress() == (forwarded.position, {"b": at(0), "c": at(2)})
    last = forwarded.origin
    with node.edge() as sink:
        sink.write([idle_group(last, Idle(LSN(1000), urgent=False, seen={"b": at(3), "c": at(2)}))], lambda: False)
    assert node.progress() == (LSN(1000), {"b": at(3), "c": at(2)})
    tag = "SELECT origin, origin_position, origin_time FROM streamer.progress"
    assert node.database.query(tag) == [("c", str(last.position), last.commit_time)]


@pytest.mark.parametrize("policy", ["latest", ("b", "a"), "keep", "error"])
def test_what_was_there_before_the_node_joined_is_taken_for_equal_everywhere(
    target15: Database, policy: str | tuple[str, ...]
) -> None:
    node = Node(target15, Rules(policy))
    t = node.create(T)
    node.database.execute("INSERT INTO t VALUES (1, 'dump', 0), (2, 'dump', 0)")
    node.database.execute("INSERT INTO streamer.member (sync, target) VALUES ('shop', 'b')")
    now = datetime.now(UTC)
    node.apply(node.transaction(update(t, "1", "edited", "0"), delete(t, "2", None, None), time=now))
    assert (node.rows(), node.conflicts()) == ([(1, "edited", 0)], [])


@pytest.mark.parametrize("count", [1, 500])
def test_a_deleted_key_is_not_inserted_again_by_an_older_write(node: Node, count: int) -> None:
    t = node.create(T)
    node.apply(node.transaction(insert(t, "1", "x", "0"), time=at(1)))
    node.database.execute("DELETE FROM t")
    others = [insert(t, str(i), "x", "0") for i in range(2, count + 1)]
    node.apply(node.transaction(insert(t, "1", "again", "0"), *others, time=at(3)))
    assert [row[0] for row in node.rows()] == list(range(2, count + 1))


def test_a_delete_that_comes_before_the_older_insert_of_a_third_node_holds(node: Node) -> None:
    t = node.create(T)
    gone = node.transaction(delete(t, "1", None, None), time=at(5))
    late = node.transaction(insert(t, "1", "x", "0"), time=at(3), node="c")
    node.apply(gone, late)
    assert node.rows() == []
    assert node.conflicts()[0] == ("delete_missing", '{"id":"1"}', "incoming")


def test_an_update_of_a_missing_row_inserts_it_if_it_is_newer_than_its_deletion(node: Node) -> None:
    t = node.create(T)
    node.apply(
        node.transaction(insert(t, "1", "x", "0"), time=at(1)), node.transaction(delete(t, "1", None, None), time=at(2), node="c")
    )
    node.apply(node.transaction(update(t, "1", "kept", "0"), time=at(3)))
    assert node.rows() == [(1, "kept", 0)]
    assert node.conflicts()[-1] == ("update_deleted", '{"id":"1"}', "incoming")


def test_the_loser_of_a_unique_key_is_deleted_by_a_local_transaction(node: Node) -> None:
    t = node.create(T, "UNIQUE (name)")
    node.database.execute("INSERT INTO t VALUES (1, 'same', 0)")
    node.apply(node.transaction(insert(t, "2", "same", "0"), time=datetime.now(UTC)))
    assert node.rows() == [(2, "same", 0)]
    assert node.conflicts() == [("insert_exists", '{"id":"2"}', "incoming")]
    ((origin,),) = node.database.query(
        "SELECT v.roident FROM streamer.tombstone AS t, pg_xact_commit_timestamp_origin(t.xmin) AS v WHERE key = '[\"1\"]'"
    )
    assert origin == 0


def test_an_incoming_loser_of_a_unique_key_is_announced_as_removed(node: Node) -> None:
    t = node.create(T, "UNIQUE (name)")
    node.database.execute("INSERT INTO t VALUES (1, 'same', 0)")
    node.apply(node.transaction(insert(t, "2", "same", "0"), insert(t, "3", "other", "0"), time=at(1)))
    assert node.rows() == [(1, "same", 0), (3, "other", 0)]
    assert [json.loads(key) for (key,) in node.database.query("SELECT key FROM streamer.removal")] == [{"id": "2"}]


@pytest.mark.parametrize("index", ["(lower(name))", "(name) WHERE n = 0"])
@pytest.mark.parametrize("age", ["newer", "older"])
def test_a_collision_that_only_the_server_sees_does_not_stop_the_edge(node: Node, index: str, age: str) -> None:
    t = node.create(T)
    node.database.execute(f"CREATE UNIQUE INDEX ON t {index}")
    node.database.execute("INSERT INTO t VALUES (1, 'same', 0)")
    time = datetime.now(UTC) if age == "newer" else at(1)
    node.apply(node.transaction(insert(t, "2", "same", "0"), insert(t, "3", "other", "0"), time=time))
    assert node.rows() == [(2 if age == "newer" else 1, "same", 0), (3, "other", 0)]
    assert node.conflicts() == [("insert_exists", '{"id":"2"}', "incoming" if age == "newer" else "current")]


def test_a_truncate_spares_what_was_written_later_elsewhere(node: Node) -> None:
    t = node.create(T)
    node.apply(node.transaction(insert(t, "1", "x", "0"), insert(t, "2", "x", "0"), time=at(1)))
    node.database.execute("INSERT INTO t VALUES (3, 'local', 0)")
    node.apply(node.transaction(truncate(t), insert(t, "4", "after", "0"), time=at(2)))
    assert node.rows() == [(3, "local", 0), (4, "after", 0)]
    node.apply(node.transaction(update(t, "1", "older", "0"), time=at(1.5), node="c"))
    assert [row[0] for row in node.rows()] == [3, 4]


def test_differences_are_added_and_leave_the_version_of_the_other_columns_alone(target15: Database) -> None:
    node = Node(target15, Rules("latest", delta=frozenset({"n"})))
    t = node.create(T)
    node.apply(node.transaction(insert(t, "1", "x", "10"), time=at(1)))
    node.database.execute("UPDATE t SET n = n + 5")  # a mere merge: the name is still a's of second 1
    node.apply(node.transaction(update(t, "1", "x", "12", old=("1", "x", "10")), time=at(2)))
    assert node.rows() == [(1, "x", 17)]
    node.apply(node.transaction(update(t, "1", "older", "11", old=("1", "x", "10")), time=at(0.5), node="c"))
    assert node.rows() == [(1, "x", 18)]
    node.apply(node.transaction(update(t, "1", "newer", "9", old=("1", "x", "10")), time=at(3), node="c"))
    assert node.rows() == [(1, "newer", 17)]
    assert [kind for kind, _, _ in node.conflicts()] == ["update_origin_differs"] * 2


def test_a_transaction_of_many_pieces_is_one_transaction(node: Node) -> None:
    t = node.create(T)
    node.database.execute("INSERT INTO t VALUES (5, 'local', 0)")
    time = at(1)
    pieces = [
        node.transaction(*(insert(t, str(i), "x", "0") for i in range(k * 300, k * 300 + 300)), time=time, complete=k == 2)
        for k in range(3)
    ]
    with node.edge() as sink:
        sink.write(pieces[:1], lambda: False)
        sink.write(pieces[1:2], lambda: False)
        assert node.rows() == [(5, "local", 0)]
        sink.write(pieces[2:], lambda: False)
    assert len(node.rows()) == 900
    assert node.rows()[5] == (5, "local", 0)


def test_what_a_former_source_has_brought_itself_is_not_applied_again_when_it_is_handed_on(node: Node) -> None:
    t = node.create(T)
    node.database.execute(
        "INSERT INTO streamer.progress (sync, source, target, system_identifier, database, slot, position, origin, "
        "origin_position, origin_time) VALUES ('shop', 'c', 'b', '1', 'd', 's', '1/0', 'c', '1/0', now())"
    )
    known = node.transaction(insert(t, "1", "x", "0"), time=at(1), node="c")
    new = replace(node.transaction(insert(t, "2", "x", "0"), time=at(2)), origin=Origin("c", LSN.parse("1/8"), at(2)))
    node.apply(known, new)
    assert node.rows() == [(2, "x", 0)]


def test_a_transaction_from_the_future_waits_for_the_targets_clock(node: Node) -> None:
    t = node.create(T)
    soon = datetime.now(UTC) + timedelta(seconds=0.5)
    (written,) = node.apply(node.transaction(insert(t, "1", "x", "0"), time=soon))
    assert written.skew > 0
    node.database.execute("UPDATE t SET name = 'answer'")
    assert node.versions()[1][0] > soon  # type: ignore[operator]


def test_a_clock_too_far_ahead_stops_the_edge_with_both_clocks(node: Node) -> None:
    t = node.create(T)
    with pytest.raises(TargetError, match=r'"a" committed at 20.* s in the future of "b", whose clock is at 20.*max_clock_skew'):
        node.apply(node.transaction(insert(t, "1", "x", "0"), time=datetime.now(UTC) + timedelta(minutes=5)))
    assert node.rows() == []


def test_with_policy_error_the_conflict_is_kept_once_and_nothing_is_written(target15: Database) -> None:
    node = Node(target15, Rules("error"))
    t = node.create(T)
    node.database.execute("INSERT INTO t VALUES (1, 'local', 0)")
    group = node.transaction(insert(t, "2", "y", "0"), insert(t, "1", "x", "0"), time=at(1))
    for _ in range(2):
        with pytest.raises(ApplyError, match="insert_exists at key"):
            node.apply(group)
    assert (node.rows(), node.conflicts()) == ([(1, "local", 0)], [("insert_exists", '{"id":"1"}', None)])


def test_a_role_without_replication_origins_knows_what_it_applied_from_a_table_of_its_own(node: Node) -> None:
    t = node.create(T)
    database = node.database
    database.execute("CREATE ROLE plain LOGIN PASSWORD 'plain'")
    database.execute("GRANT ALL ON SCHEMA streamer, public TO plain; GRANT ALL ON ALL TABLES IN SCHEMA streamer, public TO plain")
    database.execute("GRANT ALL ON ALL SEQUENCES IN SCHEMA streamer TO plain")
    node.url = database.server.url(database.name, user="plain", password="plain")
    node.apply(node.transaction(insert(t, "1", "x", "0"), time=at(1)), node.transaction(update(t, "1", "y", "0"), time=at(2)))
    assert (node.rows(), node.conflicts()) == ([(1, "y", 0)], [])
    node.apply(node.transaction(update(t, "1", "older", "0"), time=at(1.5), node="c"))
    assert (node.rows(), node.conflicts()) == ([(1, "y", 0)], [("update_origin_differs", '{"id":"1"}', "current")])


def test_two_writers_that_lock_rows_in_turn_both_finish(node: Node) -> None:
    t = node.create(T)
    node.apply(node.transaction(*(insert(t, str(i), "x", "0") for i in range(2)), time=at(1)))
    with connect("b", node.database.url, application="app") as app, node.edge() as sink:
        app.execute("BEGIN")
        app.execute("UPDATE t SET n = 1 WHERE id = 1")
        group = node.transaction(update(t, "0", "y", "0"), update(t, "1", "y", "0"), time=at(2))
        with ThreadPoolExecutor(1) as pool:
            done = pool.submit(sink.write, [group], lambda: False)
            app.execute("UPDATE t SET n = 1 WHERE id = 0")
            app.execute("COMMIT")
            assert len(done.result(timeout=20)) == 1
    assert [row[2] for row in node.rows()] == [1, 1]


def test_a_delete_waits_for_an_older_insert_of_its_key_that_is_under_way(node: Node) -> None:
    t = node.create(T)
    with connect("b", node.database.url, application="edge c -> b") as other, node.edge() as sink:
        other.execute("SELECT pg_replication_origin_create('streamer:shop:b:c:c')")
        other.execute("SELECT pg_replication_origin_session_setup('streamer:shop:b:c:c')")
        other.execute("BEGIN")
        other.execute("SELECT pg_replication_origin_xact_setup('0/1', %s)", [at(1)])
        other.execute("INSERT INTO t VALUES (1, 'older', 0)")
        with ThreadPoolExecutor(1) as pool:
            done = pool.submit(sink.write, [node.transaction(delete(t, "1", None, None), time=at(2))], lambda: False)
            waits = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 't'::regclass"
            wait_for(lambda: node.database.query(waits) == [(1,)], "the delete to wait for the insert")
            other.execute("COMMIT")
            done.result(timeout=20)
    assert node.rows() == []
