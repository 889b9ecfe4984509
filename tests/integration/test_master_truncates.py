"""TRUNCATE among several sources: a row has the same end, whether it was there before the TRUNCATE came, or comes later."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from streamer.sinks.conflict import Rules
from tests.changes import delete, insert, truncate, update
from tests.integration.masters import Node, T, at
from tests.servers import Database

SUMS = Rules("latest", delta=frozenset({"n"}))


def test_a_truncate_spares_what_was_written_later_elsewhere(target15: Database) -> None:
    node = Node(target15)
    t = node.create(T)
    node.apply(node.transaction(insert(t, "1", "x", "0"), insert(t, "2", "x", "0"), time=at(1)))
    node.database.execute("INSERT INTO t VALUES (3, 'local', 0)")
    node.apply(node.transaction(truncate(t), insert(t, "4", "after", "0"), time=at(2)))
    assert node.rows() == [(3, "local", 0), (4, "after", 0)]
    node.apply(node.transaction(update(t, "1", "older", "0"), time=at(1.5), node="c"))
    assert [row[0] for row in node.rows()] == [3, 4]


def test_a_truncate_that_comes_late_does_not_let_in_what_a_newer_one_has_removed(target15: Database) -> None:
    node = Node(target15)
    t = node.create(T)
    newer, older = node.transaction(truncate(t), time=at(5), node="c"), node.transaction(truncate(t), time=at(3))
    between = node.transaction(insert(t, "1", "x", "0"), time=at(4), node="d")
    node.apply(newer, older, between)
    assert node.rows() == []


def test_a_truncate_takes_along_merged_rows_that_others_have_changed_later(target15: Database) -> None:
    """Where it came first, it keeps their changes out, as a delete does."""
    node = Node(target15, SUMS)
    t = node.create(T)
    made = node.transaction(insert(t, "1", "x", "10"), insert(t, "2", "x", "10"), time=at(1))
    added = node.transaction(update(t, "1", "x", "15", old=("1", "x", "10")), time=at(5), node="c")
    again = node.transaction(delete(t, "2", "x", "10"), insert(t, "2", "again", "1"), time=at(5), node="c", a=at(1))
    node.apply(made, added, again, node.transaction(insert(t, "3", "x", "1"), time=at(6), node="c"))
    node.apply(node.transaction(truncate(t), time=at(3)))
    assert node.rows() == [(2, "again", 1)]


@pytest.mark.parametrize("rights", ["origins", "plain"])
@pytest.mark.parametrize("parts", [1, 2])
def test_a_merged_row_inserted_behind_a_truncate_stays_although_another_node_had_deleted_its_key(
    target15: Database, rights: str, parts: int
) -> None:
    """Formerly only where that delete came later: the TRUNCATE of the open transaction counted as older than all others."""
    node = Node(target15, SUMS)
    t = node.create(T)
    if rights == "plain":
        node.become_plain()
    node.apply(node.transaction(insert(t, "1", "x", "1"), time=at(1)))
    node.apply(node.transaction(delete(t, "1", "x", "1"), time=at(2), node="c"))
    changes = [truncate(t), insert(t, "1", "y", "5")]
    if parts == 1:
        node.apply(node.transaction(*changes, time=at(3)))
    else:
        first = node.transaction(changes[0], time=at(3), complete=False)
        node.apply(first, replace(first, changes=changes[1:], complete=True))
    assert node.rows() == [(1, "y", 5)]
    node.apply(node.transaction(delete(t, "1", "x", "1"), time=at(4), node="c", a=at(1)))  # it deletes what it has not seen
    assert node.rows() == []


@pytest.mark.parametrize("first", ["a", "b"])
@pytest.mark.parametrize("knew", [False, True])
def test_with_a_priority_list_a_truncate_spares_the_rows_of_those_before_its_node(
    target15: Database, first: str, knew: bool
) -> None:
    node = Node(target15, Rules(("a", "b") if first == "a" else ("b", "a")))
    t = node.create(T)
    node.apply(node.transaction(insert(t, "1", "x", "0"), time=at(1)))
    node.database.execute("INSERT INTO t VALUES (2, 'local', 0)")
    now = datetime.now(UTC)
    emptied = node.transaction(truncate(t), time=now, b=now) if knew else node.transaction(truncate(t), time=at(3))
    node.apply(emptied)
    assert node.rows() == ([(2, "local", 0)] if first == "b" and not knew else [])


@pytest.mark.parametrize("first", ["a", "b"])
def test_with_a_priority_list_the_truncate_of_the_first_node_keeps_out_what_the_other_has_inserted(
    target15: Database, first: str
) -> None:
    node = Node(target15, Rules(("a", "b") if first == "a" else ("b", "a")))
    t = node.create(T)
    node.database.execute("TRUNCATE t")
    node.apply(node.transaction(truncate(t), time=at(1)), node.transaction(insert(t, "1", "x", "0"), time=at(2)))
    assert node.rows() == ([(1, "x", 0)] if first == "a" else [])


def test_with_a_priority_list_a_truncate_of_the_last_node_does_not_hide_what_the_first_had_deleted(target15: Database) -> None:
    """The one that truncated uses the key again, and knows of its own TRUNCATE, but not of that delete, which wins."""
    node = Node(target15, Rules(("b", "a")))
    t = node.create(T)
    node.apply(node.transaction(insert(t, "1", "x", "0"), time=at(1)))
    node.database.execute("DELETE FROM t")
    emptied, now = node.transaction(truncate(t), time=datetime.now(UTC)), datetime.now(UTC)
    node.apply(emptied, node.transaction(insert(t, "1", "y", "0"), time=now, a=now))
    assert node.rows() == []


def test_with_a_priority_list_a_key_deleted_before_a_known_truncate_is_used_in_passing(target15: Database) -> None:
    """Formerly the transaction was judged anew for ever: its own delete hid the one that the truncate had been compared with."""
    node = Node(target15, Rules(("a", "b")))
    t = node.create(T)
    node.apply(node.transaction(insert(t, "1", "x", "0"), delete(t, "1", "x", "0"), time=at(1)))
    node.database.execute("TRUNCATE t")
    now = datetime.now(UTC)
    node.apply(node.transaction(insert(t, "1", "y", "0"), delete(t, "1", "y", "0"), insert(t, "2", "z", "0"), time=now, b=now))
    assert node.rows() == [(2, "z", 0)]
