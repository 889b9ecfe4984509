"""Rows that change while the writer waits for their lock: what is judged is what is there then."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from streamer.sinks.postgres_judge import Judge
from tests.changes import insert, update
from tests.integration.masters import Node, T, at
from tests.servers import Database
from tests.waiting import wait_for

WAITING = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"


def test_a_row_that_changes_while_its_lock_is_waited_for_is_judged_by_its_new_version(target15: Database) -> None:
    node = Node(target15)
    t = node.create(T)
    node.apply(node.transaction(insert(t, "1", "x", "0"), time=at(1)))
    with target15.connect() as local, ThreadPoolExecutor(1) as pool:
        local.execute("BEGIN")
        local.execute("UPDATE t SET name = 'local' WHERE id = 1")
        applying = pool.submit(node.apply, node.transaction(update(t, "1", "older", "0"), time=at(5), node="c"))
        wait_for(lambda: target15.query(WAITING), "the writer to wait for the row")
        local.execute("COMMIT")
        applying.result(30)
    assert node.rows() == [(1, "local", 0)]
    assert node.conflicts() == [("update_origin_differs", '{"id":"1"}', "current")]


@pytest.mark.parametrize("committed", [True, False], ids=["meanwhile", "under way"])
def test_a_key_that_loses_a_unique_value_goes_even_if_another_edge_brings_a_row_there(
    target15: Database, monkeypatch: pytest.MonkeyPatch, committed: bool
) -> None:
    """The other nodes delete it when they hear of that."""
    node = Node(target15)
    t = node.create(T, "UNIQUE (n)")
    target15.execute("INSERT INTO t VALUES (1, 'winner', 5)")
    remove = Judge._remove
    with target15.connect() as other, ThreadPoolExecutor(1) as pool:

        def remove_late(judge: Judge, *arguments: object) -> None:
            other.execute("BEGIN; INSERT INTO t VALUES (3, 'another edge', 6)")
            if committed:
                other.execute("COMMIT")
            remove(judge, *arguments)  # type: ignore[arg-type]

        monkeypatch.setattr(Judge, "_remove", remove_late)
        applying = pool.submit(node.apply, node.transaction(insert(t, "3", "loser", "5"), time=at(5)))
        if not committed:
            wait_for(lambda: target15.query(WAITING), "the writer to wait for the table")
            other.execute("COMMIT")
        applying.result(30)
    assert node.rows() == [(1, "winner", 5)]
    assert node.conflicts() == [("insert_exists", '{"id":"3"}', "current")]
