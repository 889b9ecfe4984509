"""The net effect of a group, against the group applied change by change.

The target is a dictionary. It has a column that the source knows nothing of, which tells an updated row from one that was
deleted and inserted again.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter
from typing import TypeAlias
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamer.model import UNCHANGED, Change, Column, Identity, Kind, Relation, Row, TableName, Value, newest
from streamer.sinks import net
from streamer.sinks.net import RowWise, SetWise, Step, Truncate, Unfoldable, fold

Stored: TypeAlias = dict[str, Value]

ONLY_HERE = "only_here"


def relation(name: str, columns: str, key: str, identity: Identity = Identity.DEFAULT) -> Relation:
    """A relation with columns of one letter each."""
    whole = identity is Identity.FULL
    described = tuple(Column(c, 25, identity=whole or c in key) for c in columns)
    return Relation(TableName("public", name), described, identity)


ONE = relation("one", "kab", "k")
ONE_WIDER = relation("one", "akbc", "k")
TWO = relation("two", "kal", "kl")
WHOLE = relation("whole", "kab", "k", Identity.FULL)
BARE = relation("bare", "ab", "", Identity.FULL)
KEYS = {ONE: (0,), ONE_WIDER: (1,), TWO: (0, 2), WHOLE: (0,), BARE: None}


def key_of(relation: Relation) -> Sequence[int] | None:
    return KEYS[relation]


def key_in(relation: Relation, row: Row) -> Row:
    return tuple(row[i] for i in KEYS[relation] or range(len(row)))


class DuplicateKeyError(Exception):
    """An insert, or an update of the key, met a row with that key."""


@dataclass
class Target:
    """The rows of each table, in no order that matters."""

    tables: dict[TableName, list[Stored]] = field(default_factory=lambda: {r.table: [] for r in KEYS})

    def find(self, relation: Relation, key: Row) -> Stored | None:
        """The row with this key; without a key, one row that is equal in all columns."""
        for stored in self.tables[relation.table]:
            if key_in(relation, tuple(stored.get(name) for name in relation.names)) == key:
                return stored
        return None

    def insert(self, relation: Relation, row: Row) -> None:
        if KEYS[relation] is not None and self.find(relation, key_in(relation, row)):
            raise DuplicateKeyError
        self.tables[relation.table].append(dict(zip(relation.names, row, strict=True)))

    def update(self, relation: Relation, key: Row, row: Row) -> None:
        stored = self.find(relation, key)
        if stored is None:
            return
        values = {n: v for n, v in zip(relation.names, row, strict=True) if v is not UNCHANGED}
        if KEYS[relation] is not None:
            other = self.find(relation, key_in(relation, tuple((stored | values).get(n) for n in relation.names)))
            if other is not None and other is not stored:
                raise DuplicateKeyError
        stored.update(values)

    def delete(self, relation: Relation, key: Row) -> None:
        stored = self.find(relation, key)
        rows = self.tables[relation.table]
        self.tables[relation.table] = [row for row in rows if row is not stored]

    def truncate(self, relation: Relation) -> None:
        self.tables[relation.table].clear()

    def apply(self, changes: Iterable[Change]) -> None:
        for kind, relation, old, new in changes:
            if kind is Kind.TRUNCATE:
                self.truncate(relation)
            elif kind is Kind.INSERT and new is not None:
                self.insert(relation, new)
            elif kind is Kind.UPDATE and new is not None:
                self.update(relation, key_in(relation, old or new), new)
            elif old is not None:
                self.delete(relation, key_in(relation, old))

    def carry_out(self, steps: Iterable[Step]) -> None:
        for step in steps:
            if isinstance(step, RowWise):
                self.apply(step.changes)
            elif isinstance(step, Truncate):
                for relation in step.relations:
                    self.truncate(relation)
            else:
                self.write(step)

    def write(self, step: SetWise) -> None:
        relation = step.relation
        for old in step.deletes.values():
            self.delete(relation, key_in(relation, old))
        for present, rows in step.updates_by_columns().items():
            for row in rows:
                assert {i for i, value in enumerate(row) if value is not UNCHANGED} == set(present)
                self.update(relation, key_in(relation, row), row)
        for row in step.inserts.values():
            self.insert(relation, row)

    def content(self) -> dict[str, list[str]]:
        """What can be compared."""
        return {
            str(table): sorted(str(sorted((n, v) for n, v in row.items() if v is not None)) for row in rows)
            for table, rows in self.tables.items()
        }


def stocked() -> Target:
    """A target with a few rows, which have a value in the column that only the target knows."""
    target = Target()
    for relation, rows in {ONE: ["1xy", "2xy"], TWO: ["1x1", "1x2"], WHOLE: ["1xy"], BARE: ["xy", "xy"]}.items():
        for row in rows:
            target.insert(relation, tuple(row))
            target.tables[relation.table][-1][ONLY_HERE] = "kept"
    return target


VALUES = st.sampled_from(["1", "2", "3", None])
KEY_VALUES = st.sampled_from(["1", "2", "3"])


@st.composite
def histories(draw: st.DrawFn, *, with_missing_rows: bool) -> list[Change]:
    """Changes that a source with the rows of `stocked` could send, possibly with updates and deletes of rows that are not there."""
    source = stocked()
    changes: list[Change] = []
    relations = draw(st.lists(st.sampled_from(list(KEYS)), min_size=1, max_size=3))
    for _ in range(draw(st.integers(1, 20))):
        change = _drawn_change(draw, source, draw(st.sampled_from(relations)), with_missing_rows)
        try:
            source.apply([change])
        except DuplicateKeyError:
            continue
        changes.append(change)
    return changes


def _drawn_change(draw: st.DrawFn, source: Target, relation: Relation, with_missing_rows: bool) -> Change:
    kind = draw(st.sampled_from([Kind.INSERT, Kind.UPDATE, Kind.DELETE] * 5 + [Kind.TRUNCATE]))
    if kind is Kind.TRUNCATE:
        return kind, relation, None, None
    row = _drawn_row(draw, relation)
    there = [tuple(stored.get(name) for name in relation.names) for stored in source.tables[relation.table]]
    before: Row | None = draw(st.sampled_from(there)) if there else None
    if with_missing_rows and KEYS[relation] is not None and draw(st.booleans()):
        before = _drawn_row(draw, relation)
    if kind is Kind.INSERT or before is None:
        return Kind.INSERT, relation, None, row
    if kind is Kind.DELETE:
        return kind, relation, _identity_of(relation, before), None
    return kind, relation, *_drawn_update(draw, relation, before, row)


def _drawn_row(draw: st.DrawFn, relation: Relation) -> Row:
    return tuple(draw(KEY_VALUES if i in (KEYS[relation] or ()) else VALUES) for i in range(len(relation.columns)))


def _drawn_update(draw: st.DrawFn, relation: Relation, before: Row, row: Row) -> tuple[Row | None, Row]:
    """The old and new row of an update, which may change the key and may leave columns out."""
    key = KEYS[relation] or ()
    if draw(st.integers(0, 4)):
        row = tuple(before[i] if i in key else value for i, value in enumerate(row))
    same_key = key_in(relation, before) == key_in(relation, row)
    old = _identity_of(relation, before)
    if relation.identity is not Identity.FULL and same_key and draw(st.booleans()):
        # the source sends no old row, so that the new one has the key
        return None, _with_gaps(draw, row, [i for i in range(len(row)) if i not in key], before)
    return old, _with_gaps(draw, row, range(len(row)), before)


def _with_gaps(draw: st.DrawFn, row: Row, columns: Iterable[int], before: Row) -> Row:
    """The row without some of the columns that it does not change."""
    gaps = {i for i in columns if row[i] == before[i] and draw(st.booleans())}
    return tuple(UNCHANGED if i in gaps else value for i, value in enumerate(row))


def _identity_of(relation: Relation, row: Row) -> Row:
    return tuple(v if c.identity else UNCHANGED for c, v in zip(relation.columns, row, strict=True))


@settings(deadline=None)
@given(histories(with_missing_rows=False))
def test_the_steps_have_the_effect_of_the_changes(changes: list[Change]) -> None:
    one_by_one, folded = stocked(), stocked()
    one_by_one.apply(changes)
    folded.carry_out(fold(changes, key_of))
    assert folded.content() == one_by_one.content()


@settings(deadline=None)
@given(histories(with_missing_rows=True))
def test_updates_and_deletes_of_missing_rows_have_no_effect_either_way(changes: list[Change]) -> None:
    one_by_one, folded = stocked(), stocked()
    one_by_one.apply(changes)
    try:
        steps = fold(changes, key_of)
    except Unfoldable:
        return  # an update of a missing row, then its insert: replayed one by one
    folded.carry_out(steps)
    assert folded.content() == one_by_one.content()


@settings(deadline=None)
@given(histories(with_missing_rows=True))
def test_changes_of_one_kind_are_folded_at_once_as_one_by_one(changes: list[Change]) -> None:
    for kind, alike in groupby(changes, key=itemgetter(0)):
        run = list(alike)
        with patch.object(net, "MANY", 1):
            at_once = _steps(run)
        assert at_once == _steps(run), kind


def _steps(changes: list[Change]) -> list[Step] | None:
    try:
        return fold(changes, key_of)
    except Unfoldable:
        return None


def insert(relation: Relation, row: str) -> Change:
    return Kind.INSERT, relation, None, tuple(row)


def update(relation: Relation, row: str, old: str | None = None) -> Change:
    """A dot in `row` is a column that the change leaves as it is."""
    new = tuple(UNCHANGED if value == "." else value for value in row)
    return Kind.UPDATE, relation, tuple(old) if old else None, new


def delete(relation: Relation, row: str) -> Change:
    return Kind.DELETE, relation, _identity_of(relation, tuple(row)), None


def truncate(relation: Relation) -> Change:
    return Kind.TRUNCATE, relation, None, None


def only_set(changes: Sequence[Change]) -> SetWise:
    """The one step that the changes fold into."""
    (step,) = fold(changes, key_of)
    assert isinstance(step, SetWise)
    return step


@pytest.mark.parametrize("between", [[], [update(ONE, "7ab")], [insert(TWO, "1ab"), delete(ONE, "8ab")]])
def test_a_key_that_is_inserted_twice_cannot_be_folded(between: list[Change]) -> None:
    with pytest.raises(Unfoldable):
        fold([insert(ONE, "7xy"), *between, insert(ONE, "7xy")], key_of)


def test_a_key_that_is_updated_and_then_inserted_cannot_be_folded() -> None:
    with pytest.raises(Unfoldable):
        fold([update(ONE, "7xy"), insert(ONE, "7xy")], key_of)


def test_a_key_that_is_inserted_again_after_its_delete_can_be_folded() -> None:
    step = only_set([insert(ONE, "7xy"), delete(ONE, "7xy"), insert(ONE, "7ab")])
    assert (step.deletes, step.updates, list(step.inserts.values())) == ({}, {}, [tuple("7ab")])


def test_a_row_that_is_updated_deleted_and_inserted_again_is_written_anew() -> None:
    step = only_set([update(ONE, "1ab"), delete(ONE, "1ab"), insert(ONE, "1cd")])
    assert (list(step.deletes), step.updates, list(step.inserts.values())) == (["1"], {}, [tuple("1cd")])


def test_many_updates_of_a_row_are_one() -> None:
    step = only_set([update(ONE, f"1{number}.") for number in range(9)] + [update(ONE, "1.z")])
    assert (step.deletes, list(step.updates.values()), step.inserts) == ({}, [tuple("18z")], {})


def test_an_update_of_an_inserted_row_is_an_insert() -> None:
    step = only_set([insert(ONE, "7xy"), update(ONE, "7.z")])
    assert (step.deletes, step.updates, list(step.inserts.values())) == ({}, {}, [tuple("7xz")])


def test_a_row_that_comes_and_goes_leaves_nothing_to_do() -> None:
    assert fold([insert(ONE, "7xy"), update(ONE, "7ab"), delete(ONE, "7ab")], key_of) == []


def test_no_changes_are_no_steps() -> None:
    assert fold([], key_of) == []


def test_rows_of_several_tables_are_one_step_each() -> None:
    steps = fold([insert(ONE, "7xy"), insert(TWO, "7xy"), insert(ONE, "8xy"), insert(BARE, "xy"), insert(TWO, "8xy")], key_of)
    assert [type(step) for step in steps] == [SetWise, SetWise, SetWise]


def test_a_table_without_a_key_keeps_every_change_in_order() -> None:
    changes = [insert(BARE, "xy"), insert(BARE, "xy"), delete(BARE, "xy"), update(BARE, "ab", "xy")]
    first, second = fold(changes, key_of)
    assert isinstance(first, SetWise)
    assert list(first.inserts.values()) == [("x", "y"), ("x", "y")]
    assert second == RowWise(changes[2:])


def test_a_changed_key_is_applied_in_its_place() -> None:
    move = update(ONE, "8..", "1xy")
    before, at, after = fold([update(ONE, "1ab"), move, update(ONE, "8cd")], key_of)
    assert isinstance(before, SetWise)
    assert at == RowWise([move])
    assert isinstance(after, SetWise)


def test_truncates_that_follow_each_other_are_one_step() -> None:
    steps = fold([truncate(ONE), truncate(TWO), insert(ONE, "1xy"), truncate(BARE)], key_of)
    assert [step.relations for step in steps if isinstance(step, Truncate)] == [[ONE, TWO], [BARE]]
    assert isinstance(steps[1], SetWise)


def test_tables_are_folded_again_after_a_truncate() -> None:
    changes = [update(ONE, "1ab"), insert(TWO, "7ab"), truncate(BARE)]
    changes += [update(ONE, "1ab"), insert(TWO, "8ab"), update(ONE, "1cd")]
    assert [type(step) for step in fold(changes, key_of)] == [SetWise, SetWise, Truncate, SetWise, SetWise]


def test_another_version_of_a_relation_is_written_after_the_one_before() -> None:
    steps = fold([update(ONE, "1ab"), update(ONE_WIDER, "x1yz"), update(ONE, "1cd")], key_of)
    assert [step.relation for step in steps if isinstance(step, SetWise)] == [ONE, ONE_WIDER, ONE]


def test_updates_are_grouped_by_the_columns_that_they_carry() -> None:
    step = only_set([update(ONE, "1a."), update(ONE, "2ab"), update(ONE, "3c."), update(ONE, "4.d")])
    assert step.updates_by_columns() == {
        (0, 1): [("1", "a", UNCHANGED), ("3", "c", UNCHANGED)],
        (0, 1, 2): [("2", "a", "b")],
        (0, 2): [("4", UNCHANGED, "d")],
    }


def test_merging_takes_unchanged_columns_from_the_older_row() -> None:
    assert newest(("1", "x", UNCHANGED), ("1", UNCHANGED, None)) == ("1", "x", None)
    assert newest(("1", "x"), ("1", UNCHANGED)) == ("1", "x")
    assert newest(("1", UNCHANGED), ("1", UNCHANGED)) == ("1", UNCHANGED)
