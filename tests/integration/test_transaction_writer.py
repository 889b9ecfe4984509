"""The writer for a PostgreSQL database that several nodes write: every source transaction by itself, conflicts resolved.

The edge is a -> b; `b`'s own application writes through an ordinary session, transactions from `a` (and, forwarded, from `c`) are
handed to the sink as groups. Times are relative to now, because the target's clock decides when something may be applied.
"""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from streamer.errors import ApplyError, TargetError
from streamer.model import LSN, Origin
from streamer.session import connect
from streamer.sinks.conflict import Rules
from tests.changes import delete, insert, update
from tests.integration.masters import Node, T, at
from tests.servers import Database
from tests.waiting import wait_for


@pytest.fixture
def node(target15: Database) -> Node:
    return Node(target15)


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


def test_what_the_origin_had_seen_is_no_conflict(node: Node) -> None:
    t = node.create(T)
    node.apply(node.transaction(insert(t, "1", "x", "0"), time=at(1)))
    node.database.execute("UPDATE t SET name = 'local'")
    now = datetime.now(UTC)
    node.apply(node.transaction(update(t, "1", "answer", "0"), time=now, b=now))
    assert (node.rows(), node.conflicts()) == ([(1, "answer", 0)], [])


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


@pytest.mark.parametrize("count", [1, 500])
@pytest.mark.parametrize("back", ["inserted", "moved", "left"])
def test_a_key_that_comes_goes_and_comes_in_one_transaction_does_not_hide_its_newer_deletion(
    node: Node, count: int, back: str
) -> None:
    t = node.create(T)
    node.database.execute("INSERT INTO t VALUES (1, 'local', 0)")
    node.database.execute("DELETE FROM t")
    deleted = _graves(node)
    first = [insert(t, "1", "x", "0"), delete(t, "1", None, None)]
    if back == "moved":
        first = [insert(t, "1", "x", "0"), update(t, "-1", "x", "0", old=("1", "x", "0")), delete(t, "-1", None, None)]
    again = [] if back == "left" else [insert(t, "1", "again", "0")]
    others = [insert(t, str(i), "x", "0") for i in range(2, count + 1)]
    node.apply(node.transaction(*first, *again, *others, time=at(3)))
    assert [row[0] for row in node.rows()] == list(range(2, count + 1))
    assert deleted.items() <= _graves(node).items()


@pytest.mark.parametrize("count", [1, 500])
def test_a_row_that_came_and_went_in_one_transaction_stays_away_from_older_writes(node: Node, count: int) -> None:
    t = node.create(T)
    others = [insert(t, str(i), "x", "0") for i in range(2, count + 1)]
    briefly = node.transaction(insert(t, "1", "x", "0"), delete(t, "1", None, None), *others, time=at(5))
    late = node.transaction(insert(t, "1", "late", "0"), time=at(3), node="c")
    node.apply(briefly, late)
    assert [row[0] for row in node.rows()] == list(range(2, count + 1))


@pytest.mark.parametrize("count", [1, 500])
def test_a_row_that_came_and_went_in_one_transaction_takes_an_older_one_along(node: Node, count: int) -> None:
    t = node.create(T)
    others = [insert(t, str(i), "x", "0") for i in range(2, count + 1)]
    early = node.transaction(insert(t, "1", "early", "0"), time=at(3), node="c")
    node.apply(early, node.transaction(insert(t, "1", "x", "0"), delete(t, "1", None, None), *others, time=at(5)))
    assert [row[0] for row in node.rows()] == list(range(2, count + 1))


def test_a_key_that_was_deleted_after_a_truncate_may_come_and_go_in_one_transaction(node: Node) -> None:
    t = node.create(T)
    node.database.execute("TRUNCATE t")
    node.database.execute("INSERT INTO t VALUES (1, 'local', 0)")
    node.database.execute("DELETE FROM t")
    briefly = insert(t, "1", "x", "0"), delete(t, "1", None, None), insert(t, "2", "x", "0")
    node.apply(node.transaction(*briefly, time=datetime.now(UTC)))
    assert node.rows() == [(2, "x", 0)]


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


@pytest.mark.parametrize("count", [3, 500])
@pytest.mark.parametrize("conflict", [False, True])
def test_unique_values_that_rows_exchange_in_one_transaction_cost_no_row(node: Node, count: int, conflict: bool) -> None:
    t = node.create(T, "UNIQUE (name)")
    node.apply(node.transaction(*(insert(t, str(i), f"x{i}", "0") for i in range(count)), time=at(1)))
    if conflict:
        node.database.execute("UPDATE t SET n = 1 WHERE id = 2")
    exchange = update(t, "0", "between", "0"), update(t, "1", "x0", "0"), update(t, "0", "x1", "0")
    others = [update(t, str(i), f"x{i}", "2") for i in range(2, count)]
    node.apply(node.transaction(*exchange, *others, time=at(2)))
    assert node.rows() == [(0, "x1", 0), (1, "x0", 0), (2, "x2", 1 if conflict else 2), *((i, f"x{i}", 2) for i in range(3, count))]
    assert _graves(node) == {}


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


@pytest.mark.parametrize("age", ["newer", "older"])
def test_hundreds_of_collisions_that_only_the_server_sees_do_not_stop_the_edge(node: Node, age: str) -> None:
    t = node.create(T)
    node.database.execute("CREATE UNIQUE INDEX ON t (lower(name))")
    node.database.execute("INSERT INTO t SELECT i, 'N' || i, 0 FROM generate_series(1, 300) AS i")
    time = datetime.now(UTC) if age == "newer" else at(1)
    node.apply(node.transaction(*(insert(t, str(1000 + i), f"n{i}", "0") for i in range(1, 302)), time=time))
    winners = [(1000 + i, f"n{i}", 0) if age == "newer" else (i, f"N{i}", 0) for i in range(1, 301)]
    assert node.rows() == [*winners, (1301, "n301", 0)]
    assert len(node.conflicts()) == 300


def test_a_collision_that_only_the_server_sees_costs_none_of_the_rows_that_exchange_values(node: Node) -> None:
    t = node.create(T)
    node.database.execute("CREATE UNIQUE INDEX ON t (lower(name))")
    node.apply(node.transaction(insert(t, "1", "x1", "0"), insert(t, "2", "x2", "0"), time=at(1)))
    node.database.execute("INSERT INTO t VALUES (9, 'same', 0)")
    exchange = update(t, "1", "between", "0"), update(t, "2", "x1", "0"), update(t, "1", "x2", "0")
    node.apply(node.transaction(*exchange, insert(t, "3", "same", "0"), time=at(2)))
    assert node.rows() == [(1, "x2", 0), (2, "x1", 0), (9, "same", 0)]


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


@pytest.mark.parametrize("touched", ["made", "changed"])
def test_a_row_that_loses_a_unique_value_in_the_next_piece_of_its_transaction_is_gone(node: Node, touched: str) -> None:
    """The removal is a transaction of its own, which does not see a row that the open one has made, and waits for one that it has
    changed."""
    t = node.create(T, "UNIQUE (name)")
    if touched == "changed":
        node.apply(node.transaction(insert(t, "2", "first", "0"), time=at(1)))
    node.database.execute("INSERT INTO t VALUES (1, 'same', 0)")
    first = insert(t, "2", "x", "0") if touched == "made" else update(t, "2", "x", "0")
    pieces = [
        node.transaction(first, insert(t, "3", "x3", "0"), time=at(2), complete=False),
        node.transaction(update(t, "2", "same", "0"), time=at(2)),
    ]
    with pytest.raises(ApplyError, match=r'"public.t" \(2\)'):
        node.apply(*pieces)
    node.apply(*pieces)
    assert node.rows() == [(1, "same", 0), (3, "x3", 0)]
    assert '["2"]' in _graves(node)


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
    node.become_plain()
    node.apply(node.transaction(insert(t, "1", "x", "0"), time=at(1)), node.transaction(update(t, "1", "y", "0"), time=at(2)))
    assert (node.rows(), node.conflicts()) == ([(1, "y", 0)], [])
    node.apply(node.transaction(update(t, "1", "older", "0"), time=at(1.5), node="c"))
    assert (node.rows(), node.conflicts()) == ([(1, "y", 0)], [("update_origin_differs", '{"id":"1"}', "current")])


@pytest.mark.parametrize("parts", [1, 2], ids=["set by set", "in parts"])
def test_a_role_without_replication_origins_knows_what_it_applied_behind_a_savepoint(node: Node, parts: int) -> None:
    """A large transaction's rows have the savepoint's xid, and would look as if they had been written here just now."""
    t = node.create(T)
    node.become_plain()
    rows = [insert(t, str(i), "x", "0") for i in range(300)]
    groups = [node.transaction(*rows[part::parts], time=at(1), complete=part == parts - 1) for part in range(parts)]
    with node.edge() as sink:
        for group in groups:
            sink.write([group], lambda: False)
    node.apply(node.transaction(*(update(t, str(i), "later", "0") for i in (0, 1)), time=at(2), node="c"))
    assert [row[1] for row in node.rows()[:3]] == ["later", "later", "x"]
    told = node.database.query("SELECT DISTINCT current_origin, current_commit, winner FROM streamer.conflict")
    assert told == [("a", at(1), "incoming")]


def test_a_role_without_replication_origins_knows_what_it_applied_after_a_large_transaction_needed_judgement(node: Node) -> None:
    t = node.create(T)
    node.become_plain()
    node.database.execute("INSERT INTO t VALUES (0, 'local', 0)")
    node.apply(node.transaction(*(insert(t, str(i), "x", "0") for i in range(300)), time=at(1)))
    node.apply(node.transaction(update(t, "1", "later", "0"), time=at(2), node="c"))
    assert [row[1] for row in node.rows()[:3]] == ["local", "later", "x"]


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


def _graves(node: Node) -> dict[str, datetime]:
    """When each deleted key was."""
    return dict(node.database.query("SELECT key, pg_xact_commit_timestamp(xmin) FROM streamer.tombstone"))
