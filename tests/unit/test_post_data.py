"""When indexes and constraints can be made, and in which order."""

from __future__ import annotations

import pytest

from streamer.model import LSN, CopiedRange, KeyRange, TableName
from streamer.post_data import Kind, PostData, begins, rounds

T, U = TableName("public", "t"), TableName("public", "u")


def one(kind: Kind, *tables: TableName, name: str = "it") -> PostData:
    return PostData(kind, tables or (T,), T, name, f"CREATE {name}", name)


def ranges(*positions: int) -> dict[TableName, tuple[CopiedRange, ...]]:
    return {T: tuple(CopiedRange(KeyRange("id", True, str(n), str(n + 1)), LSN(at), 1) for n, at in enumerate(positions))}


@pytest.mark.parametrize(
    ("kind", "copied", "parts", "expected"),
    [
        pytest.param("index", {}, (), None, id="not copied"),
        pytest.param("index", {T: LSN(0)}, (), None, id="its copy is not finished"),
        pytest.param("index", {T: LSN(5)}, (), LSN(0), id="copied"),
        pytest.param("unique", {T: LSN(5)}, (), LSN(0), id="from one snapshot"),
        pytest.param("unique", {T: LSN(5)}, (5, 5), LSN(0), id="ranges from one snapshot"),
        pytest.param("unique", {T: LSN(9)}, (5, 9), LSN(9), id="ranges of different times may contradict what is unique"),
        pytest.param("index", {T: LSN(9)}, (5, 9), LSN(0), id="and nothing else"),
    ],
)
def test_an_index_is_made_when_the_rows_are_there_and_do_not_contradict_it(
    kind: Kind, copied: dict[TableName, LSN], parts: tuple[int, ...], expected: LSN | None
) -> None:
    assert begins(one(kind), copied, ranges(*parts) if parts else {}, ()) == expected


def test_a_foreign_key_waits_for_both_tables_to_be_of_one_time() -> None:
    both = one("foreign key", T, U)
    assert begins(both, {T: LSN(5)}, {}, ()) is None
    assert begins(both, {T: LSN(5), U: LSN(5)}, {}, ()) == LSN(0)
    assert begins(both, {T: LSN(5), U: LSN(7)}, {}, ()) == LSN(7)
    assert begins(both, {T: LSN(5)}, {}, {U}) == LSN(0), "a table that is copied whole has no time of its own"


def test_indexes_are_made_side_by_side_and_what_needs_them_afterwards_one_by_one() -> None:
    objects = [
        one("foreign key", name="f"),
        one("attach", name="a"),
        one("index", name="i"),
        one("check", name="c"),
        one("unique", name="u"),
    ]
    assert [[o.name for o in together] for together in rounds(objects)] == [["i", "u"], ["a"], ["c"], ["f"]]
