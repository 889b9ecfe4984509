"""What becomes of tables, rows and changes in another shape; replayed changes give what shaping the final rows gives."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamer.errors import ApplyError, SchemaError
from streamer.model import LSN, UNCHANGED, Change, EdgeName, Identity, Kind, Relation, Row, SlotIdentity, TableName
from streamer.ports import CopyTable
from streamer.shape_config import Shape
from streamer.shaping import (
    Function,
    RowCut,
    ShapedRelation,
    Values,
    copied_columns,
    full_identity,
    loaded_table,
    shape_definition,
    travelling,
    used_columns,
)
from tests.changes import delete, group, insert, relation, table, truncate, update, write
from tests.memory import MemoryDatabase, MemorySink, MemoryTable

ITEMS = table("items", id="integer", n="integer", name="text", big="text")
T = TableName("public", "items")


SAME = Shape(T, T, None, {}, "", "")
"""A table that stays as it is."""


def columns(*names: str) -> frozenset[str]:
    return frozenset(names)


FULL = relation(ITEMS, Identity.FULL)
BY_KEY = relation(ITEMS)
EVEN = replace(SAME, where="n % 2 = 0")


def even(values: Values) -> bool:
    return values[0] is not None and int(values[0]) % 2 == 0


def shaped(
    shape: Shape, change: Change, passes: Callable[[Values], bool] = even, function: Function | None = None
) -> Change | None:
    return ShapedRelation(change[1], shape, function).shaped(change, passes)


def kinds(changed: Change | None) -> tuple[Any, ...] | None:
    """The change without its relation."""
    return None if changed is None else (changed[0], *changed[2:])


def full_update(old: Row, new: Row) -> Change:
    return update(FULL, *new, old=old)  # type: ignore[arg-type]


# -- rows that enter and leave the filter ------------------------------------------------------------------------------------------

IN, OUT = ("1", "2", "a", "b"), ("1", "3", "a", "b")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (insert(FULL, *IN), (Kind.INSERT, None, IN)),
        (insert(FULL, *OUT), None),
        (insert(FULL, "1", None, "a", "b"), None),
        (full_update(IN, ("1", "4", "a", "b")), (Kind.UPDATE, IN, ("1", "4", "a", "b"))),
        (full_update(IN, OUT), (Kind.DELETE, IN, None)),
        (full_update(OUT, IN), (Kind.INSERT, None, IN)),
        (full_update(OUT, ("1", "5", "a", "b")), None),
        (full_update(OUT, ("1", "2", "a", UNCHANGED)), (Kind.INSERT, None, IN)),
        (full_update(IN, ("1", "4", "a", UNCHANGED)), (Kind.UPDATE, IN, ("1", "4", "a", UNCHANGED))),
        (full_update(IN, ("9", UNCHANGED, "a", "b")), (Kind.UPDATE, IN, ("9", UNCHANGED, "a", "b"))),
        ((Kind.DELETE, FULL, IN, None), (Kind.DELETE, IN, None)),
        ((Kind.DELETE, FULL, OUT, None), None),
        (truncate(FULL), (Kind.TRUNCATE, None, None)),
    ],
)
def test_a_change_is_judged_by_both_of_its_rows(change: Change, expected: tuple[Any, ...] | None) -> None:
    assert kinds(shaped(EVEN, change)) == expected


BY_ID = replace(SAME, where="id % 2 = 0")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (update(BY_KEY, "2", "5", "a", None), (Kind.UPDATE, None, ("2", "5", "a", None))),
        (update(BY_KEY, "3", "5", "a", None), None),
        (
            (Kind.UPDATE, BY_KEY, ("2", UNCHANGED, UNCHANGED, UNCHANGED), ("3", "1", "a", UNCHANGED)),
            (Kind.DELETE, ("2", UNCHANGED, UNCHANGED, UNCHANGED), None),
        ),
        (
            (Kind.UPDATE, BY_KEY, ("3", UNCHANGED, UNCHANGED, UNCHANGED), ("2", "1", "a", "b")),
            (Kind.INSERT, None, ("2", "1", "a", "b")),
        ),
        (delete(BY_KEY, "2", None, None, None), (Kind.DELETE, ("2", UNCHANGED, UNCHANGED, UNCHANGED), None)),
        (delete(BY_KEY, "3", None, None, None), None),
    ],
)
def test_a_condition_over_the_key_needs_no_more_than_the_key(change: Change, expected: tuple[Any, ...] | None) -> None:
    assert kinds(shaped(BY_ID, change)) == expected


@pytest.mark.parametrize(
    ("shape", "change", "words"),
    [
        (EVEN, delete(BY_KEY, "2", None, None, None), 'a delete does not carry the column "n", which its where needs'),
        (EVEN, update(BY_KEY, "2", "3", "a", "b"), 'an update does not carry the column "n"'),
        (
            BY_ID,
            (Kind.UPDATE, BY_KEY, ("3", UNCHANGED, UNCHANGED, UNCHANGED), ("2", "1", "a", UNCHANGED)),
            'an update does not carry the column "big"',
        ),
        (replace(SAME, transform="python:m:f"), delete(BY_KEY, "2", None, None, None), "which its transform needs"),
        (replace(SAME, transform="python:m:f"), update(BY_KEY, "2", "3", "a", "b"), "which its transform needs"),
    ],
)
def test_what_an_old_row_lacks_is_an_error_with_the_statement_that_cures_it(shape: Shape, change: Change, words: str) -> None:
    with pytest.raises(SchemaError) as caught:
        shaped(shape, change, function=dict if shape.transform else None)
    assert words in caught.value.message
    assert 'ALTER TABLE "public"."items" REPLICA IDENTITY FULL' in caught.value.hint


# -- columns and names -------------------------------------------------------------------------------------------------------------

CUT = replace(SAME, target=TableName("s", "things"), columns=columns("id", "name"), renamed={"name": "called"})


def test_a_relation_gets_the_target_s_name_and_columns() -> None:
    made = ShapedRelation(BY_KEY, CUT, None).target
    assert (made.table, made.names, [c.identity for c in made.columns]) == (CUT.target, ("id", "called"), [True, False])
    assert made.identity is Identity.DEFAULT


def test_rows_are_cut_to_the_columns_that_travel() -> None:
    assert kinds(shaped(CUT, insert(BY_KEY, "1", "2", "a", "b"))) == (Kind.INSERT, None, ("1", "a"))
    assert kinds(shaped(CUT, update(BY_KEY, "1", "2", "a", "b"))) == (Kind.UPDATE, None, ("1", "a"))


def test_an_update_of_nothing_that_travels_is_none() -> None:
    assert shaped(CUT, full_update(("1", "2", "a", "b"), ("1", "3", "a", "c"))) is None
    assert shaped(CUT, full_update(("1", "2", "a", "b"), ("1", "3", UNCHANGED, "c"))) is None
    assert shaped(SAME, full_update(IN, IN)) is not None, "without a shape an update stays what it was"


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        (replace(SAME, columns=columns("id", "nmae")), 'has no column "nmae"'),
        (replace(SAME, renamed={"nmae": "x"}), 'has no column "nmae"'),
        (replace(SAME, columns=columns("name")), 'column "id" belongs to its key'),
        (replace(SAME, renamed={"name": "n"}), 'columns "n" and "name" would both be called "n"'),
    ],
)
def test_a_shape_that_the_columns_do_not_allow_is_refused(shape: Shape, words: str) -> None:
    with pytest.raises(SchemaError, match=words):
        travelling(shape, BY_KEY.names, ["id"])
    with pytest.raises(SchemaError, match=words):
        ShapedRelation(BY_KEY, shape, None)


def test_the_key_must_travel_where_the_identity_is_full_as_well() -> None:
    shape = replace(SAME, columns=columns("name"))
    assert ShapedRelation(FULL, shape, None).target.names == ("name",)
    with pytest.raises(SchemaError, match='column "id" belongs to its key'):
        ShapedRelation(FULL, shape, None, ["id"])


def test_a_definition_keeps_what_still_fits() -> None:
    definition = replace(ITEMS, unique_keys=(("name",), ("n", "name")))
    made = shape_definition(definition, CUT)
    assert (made.table, [c.name for c in made.columns]) == (CUT.target, ["id", "called"])
    assert (made.primary_key, made.unique_keys) == (("id",), (("called",),))
    assert shape_definition(definition, None) is definition
    assert shape_definition(definition, replace(SAME, transform="python:m:f")).unique_keys == ()


def test_a_condition_may_use_the_columns_that_it_names() -> None:
    assert used_columns(replace(SAME, where="items.n > 1 AND NAME = 'big'"), BY_KEY.names) == ("n", "name")
    with pytest.raises(SchemaError, match="takes the row as a whole"):
        used_columns(replace(SAME, where="items IS NOT NULL"), BY_KEY.names)


def test_the_statement_that_makes_the_identity_full_quotes_names() -> None:
    assert full_identity(TableName("a", 'b"c')) == 'ALTER TABLE "a"."b""c" REPLICA IDENTITY FULL'


# -- copies ------------------------------------------------------------------------------------------------------------------------

COPY = CopyTable(T, ("id", "n", "name"), (23, 23, 25), rows=5, key=("id",))


def test_a_copy_reads_the_columns_that_travel_and_the_rows_that_pass() -> None:
    read = copied_columns(COPY, replace(CUT, where="n > 1"))
    assert (read.table, read.columns, read.type_oids, read.where) == (T, ("id", "name"), (23, 25), "n > 1")
    loaded = loaded_table(read, CUT)
    assert (loaded.table, loaded.columns, loaded.type_oids, loaded.key, loaded.where) == (
        CUT.target,
        ("id", "called"),
        (23, 25),
        ("id",),
        "",
    )


def test_a_copy_for_a_function_reads_all_columns() -> None:
    assert copied_columns(COPY, replace(CUT, transform="python:m:f")).columns == COPY.columns


# -- functions ---------------------------------------------------------------------------------------------------------------------


def cut(function: Function, only: frozenset[str] | None = None) -> RowCut:
    shape = replace(SAME, transform="python:own:rows", columns=only)
    names = ("id", "n", "name")
    return RowCut(shape, names, [n for n in names if shape.takes(n)], ["id"], function)


def test_a_function_sees_all_columns_and_may_leave_a_row_out() -> None:
    made = cut(lambda row: {"id": row["id"], "name": f"{row['n']}{row['name']}"} if row["n"] else None, columns("id", "name"))
    assert made.row(("1", "2", "a")) == ("1", "2a")
    assert made.row(("1", None, "a")) is None


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (7, "returned int, which is neither a dict nor None"),
        ({"id": "1", "n": "1", "name": "a", "x": "1"}, "returned a column that the table does not have, 'x'"),
        ({"id": "1", "n": "1"}, 'returned a row without the column "name"'),
        ({"id": 1, "n": "1", "name": "a"}, 'returned int in column "id"; a value is text as PostgreSQL writes it, or None'),
        ({"id": "1", "n": "1", "name": "a\0"}, 'returned text that no database takes in column "name"'),
        ({"id": "1", "n": "1", "name": "\ud800"}, 'returned text that no database takes in column "name"'),
    ],
)
def test_what_a_function_may_not_return_is_told_with_table_and_key(answer: object, words: str) -> None:
    with pytest.raises(ApplyError) as caught:
        cut(lambda row: answer).row(("5", "2", "a"))
    assert caught.value.message.startswith(f'table "public.items": transform "python:own:rows" {words}')
    assert caught.value.message.endswith(", for the row with id = 5")


def test_what_a_function_raises_is_told_with_table_and_key() -> None:
    def fails(row: dict[str, str | None]) -> None:
        raise ValueError("no\nway")

    with pytest.raises(
        ApplyError, match=r'transform "python:own:rows" raised ValueError: no way, for the row with id = 5; correct'
    ):
        cut(fails).row(("5", "2", "a"))


def test_an_update_is_made_of_what_the_function_makes_of_both_rows() -> None:
    def upper(row: dict[str, str | None]) -> dict[str, str | None] | None:
        return None if row["name"] == "secret" else {**row, "name": (row["name"] or "").upper()}

    shape = replace(SAME, transform="python:own:upper")
    a, b, secret = ("1", "2", "a", "x"), ("1", "2", "b", "x"), ("1", "2", "secret", "x")
    assert kinds(shaped(shape, full_update(a, b), function=upper)) == (Kind.UPDATE, ("1", "2", "A", "x"), ("1", "2", "B", "x"))
    assert kinds(shaped(shape, full_update(a, secret), function=upper)) == (Kind.DELETE, ("1", "2", "A", "x"), None)
    assert kinds(shaped(shape, full_update(secret, ("1", "2", "b", UNCHANGED)), function=upper)) == (
        Kind.INSERT,
        None,
        ("1", "2", "B", "x"),
    )
    assert shaped(shape, full_update(a, ("1", "2", "A", "x")), function=upper) is None
    assert shaped(shape, full_update(secret, secret), function=upper) is None


# -- replaying what was shaped is shaping what was replayed ------------------------------------------------------------------------


def shift(row: dict[str, str | None]) -> dict[str, str | None] | None:
    """Another key, another value; rows with n = 7 are left out."""
    return None if row["n"] == "7" else {**row, "id": str(1000 + int(row["id"] or 0)), "big": f"<{row['big']}>"}


SHAPES = {
    "nothing": (SAME, None),
    "where": (EVEN, None),
    "columns": (CUT, None),
    "all": (replace(CUT, where="n % 2 = 0"), None),
    "transform": (replace(SAME, transform="python:own:shift"), shift),
    "where and transform": (replace(CUT, where="n % 2 = 0", transform="python:own:shift"), shift),
}


class History:
    """Random changes of a table, as the WAL has them, and the rows that they leave."""

    def __init__(self, dice: random.Random, relation: Relation) -> None:
        self._dice = dice
        self._relation = relation
        self._full = relation.identity is Identity.FULL
        self.rows: dict[str, tuple[str | None, ...]] = {}

    def change(self) -> Change:
        keys = sorted(self.rows)
        what = self._dice.choice(["insert", "update", "update", "move", "delete", "truncate"]) if keys else "insert"
        if what == "insert":
            return self._put(None, self._row(self._free()))
        if what == "truncate" and self._dice.random() < 0.2:
            self.rows.clear()
            return truncate(self._relation)
        old = self.rows.pop(self._dice.choice(keys))
        if what == "delete":
            return delete(self._relation, *old)
        new = self._row(self._free() if what == "move" else str(old[0]))
        return self._put(old, (*new[:3], old[3]) if self._dice.random() < 0.5 else new)

    def _put(self, old: tuple[str | None, ...] | None, new: tuple[str | None, ...]) -> Change:
        self.rows[str(new[0])] = new
        if old is None:
            return insert(self._relation, *new)
        if self._full:
            return (Kind.UPDATE, self._relation, old, (*new[:3], UNCHANGED if new[3] == old[3] else new[3]))
        moved = old[0] != new[0]
        return (
            Kind.UPDATE,
            self._relation,
            (old[0], UNCHANGED, UNCHANGED, UNCHANGED) if moved else None,
            # a row whose key moves may enter the filter, and then it must be whole
            (*new[:3], UNCHANGED if new[3] == old[3] and not moved else new[3]),
        )

    def _free(self) -> str:
        return str(next(i for i in iter(lambda: self._dice.randrange(1, 40), None) if str(i) not in self.rows))

    def _row(self, key: str) -> tuple[str | None, ...]:
        dice = self._dice
        return (key, dice.choice([None, "1", "2", "4", "7"]), dice.choice("abc"), dice.choice([None, "x" * 9, "y" * 9]))


def replayed(shaped: ShapedRelation, made: Sequence[Change]) -> list[tuple[str | None, ...]]:
    """The rows of a target that got these changes, a few at a time."""
    database, edge = MemoryDatabase(), EdgeName("shop", "a", "b")
    database.tables[shaped.target.table] = MemoryTable(shaped.target.names, ("id",))
    sink = MemorySink(edge, database)
    sink.open()
    sink.begin(SlotIdentity("7", "shop", "s"), LSN(1))
    for at in range(0, len(made), 3):
        write(sink, group(*made[at : at + 3], to=200 + at))
    rows = [tuple(row.values()) for row in database.tables[shaped.target.table].rows]
    return sorted(rows, key=repr)


@pytest.mark.parametrize("case", SHAPES)
@given(dice=st.randoms(use_true_random=False), length=st.integers(1, 40))
def test_replayed_changes_give_what_shaping_the_final_rows_gives(case: str, dice: random.Random, length: int) -> None:
    shape, function = SHAPES[case]
    history = History(dice, FULL)
    shaped_relation = ShapedRelation(FULL, shape, function, ["id"])
    made = [shaped_relation.shaped(history.change(), even) for _ in range(length)]
    rows = RowCut(shape, FULL.names, travelling(shape, FULL.names, ["id"]), ["id"], function)
    chosen = [row for row in history.rows.values() if not shape.where or even((row[1],))]
    expected = sorted([cut for row in chosen if (cut := rows.row(row)) is not None], key=repr)
    assert replayed(shaped_relation, [change for change in made if change is not None]) == expected


@given(dice=st.randoms(use_true_random=False), length=st.integers(1, 40))
def test_the_same_with_the_key_alone_in_old_rows(dice: random.Random, length: int) -> None:
    history = History(dice, BY_KEY)
    shaped_relation = ShapedRelation(BY_KEY, BY_ID, None)
    made = [shaped_relation.shaped(history.change(), even) for _ in range(length)]
    expected = sorted([row for row in history.rows.values() if even((row[0],))], key=repr)
    assert replayed(shaped_relation, [change for change in made if change is not None]) == expected
