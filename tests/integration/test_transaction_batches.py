"""Small transactions that are written by the batch where several nodes write: values, tables, and what each of them had seen."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from streamer.errors import ApplyError
from streamer.grouping import idle_group
from streamer.model import LSN, Idle
from streamer.ports import Written
from tests.changes import delete, insert, table, update
from tests.integration.masters import Node, T, at
from tests.servers import Database


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
