"""The SQL by which deltas become changes, as far as it depends on what is known of a table."""

from __future__ import annotations

import pytest

from streamer.capture.trigger_query import DeltaTable, rows
from tests.changes import relation, table

T = relation(table(id="integer"))


@pytest.mark.parametrize(
    ("counted", "deltas", "scanned"),
    [(1_000_000, 5_000, False), (10_000, 5_000, True), (10_000, 500, False), (0, 5_000, False)],
    ids=["few of many", "many of some", "few", "a table that nobody has counted"],
)
def test_a_table_is_only_scanned_where_much_of_it_has_changed(counted: int, deltas: int, scanned: bool) -> None:
    statements = rows(DeltaTable(T, (("id", "integer"),), ("t.id",), counted, (1,)), "10:20:", None, deltas)
    assert statements.startswith(f"SET LOCAL enable_hashjoin = {'on' if scanned else 'off'};")
