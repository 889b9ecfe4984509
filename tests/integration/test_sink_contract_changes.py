"""What every sink must do with changes, whatever the replica identity of their table."""

from __future__ import annotations

import random
from collections.abc import Callable

from streamer.model import (
    UNCHANGED,
    Change,
    Identity,
    Kind,
    Relation,
    Row,
)
from streamer.ports import Written
from tests.changes import ITEMS, PLAIN, delete, group, insert, relation, table, truncate, update, write
from tests.integration.targets import Target, keeps_rows, opened, written

# -- changes ----------------------------------------------------------------------------------------------------------


def test_inserts_updates_and_deletes_are_applied_and_counted(target: Target) -> None:
    target.create(ITEMS)
    items = relation(ITEMS)
    rows, done = written(
        target,
        ITEMS,
        group(*(insert(items, str(i), "a", "1.10") for i in range(4))),
        group(update(items, "1", None, "2.00"), delete(items, "2", None, None), insert(items, "9", "", None), to=300),
    )
    assert rows == [("0", "a", "1.10"), ("1", None, "2.00"), ("3", "a", "1.10"), ("9", "", None)]
    assert done == Written(inserted=1, updated=1, deleted=1)


def test_a_changed_key_moves_the_row(target: Target) -> None:
    target.create(ITEMS)
    items = relation(ITEMS)
    rows, done = written(
        target,
        ITEMS,
        group(insert(items, "1", "a", None), insert(items, "2", "b", None)),
        group(
            delete(items, "2", None, None),
            update(items, "2", "c", "1", old=("1", UNCHANGED, UNCHANGED)),
            insert(items, "1", "new", None),
            to=300,
        ),
    )
    assert rows == [("1", "new", None), ("2", "c", "1")]
    assert done == Written(inserted=1, updated=1, deleted=1)


def test_an_unchanged_column_keeps_its_value(target: Target) -> None:
    target.create(ITEMS)
    items = relation(ITEMS)
    kept: Change = (Kind.UPDATE, items, None, ("1", UNCHANGED, "5"))
    moved: Change = (Kind.UPDATE, items, ("2", UNCHANGED, UNCHANGED), ("3", UNCHANGED, "6"))
    rows, _ = written(
        target,
        ITEMS,
        group(insert(items, "1", "long", "1"), insert(items, "2", "longer", "1")),
        group(kept, moved, to=300),
        group(update(items, "3", "x", None), (Kind.UPDATE, items, None, ("3", UNCHANGED, "7")), to=400),
    )
    assert rows == [("1", "long", "5"), ("3", "x", "7")]


def test_updates_that_carry_different_columns_share_a_group(target: Target) -> None:
    target.create(ITEMS)
    items = relation(ITEMS)
    changes: list[Change] = [(Kind.UPDATE, items, None, (str(i), UNCHANGED if i % 2 else "n", "2")) for i in range(40)]
    rows, done = written(target, ITEMS, group(*(insert(items, str(i), "a", "1") for i in range(40))), group(*changes, to=300))
    assert set(rows) == {(str(i), "a" if i % 2 else "n", "2") for i in range(40)}
    assert done == Written(updated=40)


def test_several_changes_of_one_row_are_folded(target: Target) -> None:
    target.create(ITEMS)
    items = relation(ITEMS)
    rows, _ = written(
        target,
        ITEMS,
        group(insert(items, "1", "a", "1"), insert(items, "2", "a", "1")),
        group(
            update(items, "1", "b", "2"),
            update(items, "1", "c", "3"),
            delete(items, "2", None, None),
            insert(items, "2", "again", None),
            insert(items, "3", "a", None),
            delete(items, "3", None, None),
            to=300,
        ),
    )
    assert rows == [("1", "c", "3"), ("2", "again", None)]


@keeps_rows
def test_updates_and_deletes_of_missing_rows_are_counted_and_pass(target: Target) -> None:
    target.create(ITEMS)
    items = relation(ITEMS)
    many = range(100, 140)
    rows, done = written(
        target,
        ITEMS,
        group(insert(items, "1", "a", None)),
        group(update(items, "7", "x", None), delete(items, "8", None, None), update(items, "1", "b", None), to=300),
    )
    assert (rows, done) == ([("1", "b", None)], Written(updated=1, missing=2))
    rows, done = written(
        target,
        ITEMS,
        group(*(update(items, str(i), "x", None) for i in many), to=400),
        group(*(delete(items, str(i), None, None) for i in many), to=500),
    )
    assert (rows, done) == ([("1", "b", None)], Written(missing=len(many)))


def test_truncate_empties_the_table_at_its_place(target: Target) -> None:
    other = table("other", id="integer", name="text", price="numeric")
    target.create(ITEMS)
    target.create(other)
    first, second = relation(ITEMS), relation(other)
    rows, done = written(
        target,
        ITEMS,
        group(insert(first, "1", "a", None), insert(second, "1", "a", None)),
        group(insert(first, "2", "b", None), truncate(first), truncate(second), insert(first, "3", "c", None), to=300),
    )
    assert (rows, target.rows(other)) == ([("3", "c", None)], [])
    assert done == Written(inserted=2, truncated=2)


def test_a_group_may_mix_tables(target: Target) -> None:
    other = table("other", schema="sales", key=("a", "b"), a="integer", b="text", c="boolean")
    target.create(ITEMS)
    target.create(other)
    first, second = relation(ITEMS), relation(other)
    rows, _ = written(
        target,
        ITEMS,
        group(*(c for i in range(30) for c in (insert(first, str(i), "n", None), insert(second, str(i), "x", "f")))),
        group(*(c for i in range(30) for c in (delete(first, str(i), None, None), update(second, str(i), "x", "t"))), to=300),
        group(*(delete(second, str(i), "x", None) for i in range(20)), to=400),
    )
    assert rows == []
    assert set(target.rows(other)) == {(str(i), "x", "t") for i in range(20, 30)}


def test_a_table_of_keys_only_can_be_updated(target: Target) -> None:
    keys = table("keys", key=("a", "b"), a="integer", b="text")
    target.create(keys)
    r = relation(keys)
    many = [str(i) for i in range(20)]
    rows, done = written(
        target,
        keys,
        group(insert(r, "1", "x"), *(insert(r, i, "y") for i in many)),
        group(update(r, "1", "x"), *(update(r, i, "y") for i in many), to=300),
        group(update(r, "2", "z", old=("1", "x")), to=400),
    )
    assert len(rows) == 21
    assert ("2", "z") in rows
    assert done == Written(updated=1)


def test_random_changes_end_as_they_would_one_by_one(target: Target, record_property: Callable[[str, object], None]) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    record_property("seed", seed)
    dice = random.Random(seed)
    target.create(ITEMS)
    items = relation(ITEMS)
    state: dict[str, Row] = {}
    with opened(target) as sink:
        for number in range(12):
            changes = [_random_change(dice, items, state) for _ in range(dice.choice((1, 5, 120)))]
            write(sink, group(*changes, to=200 + number, complete=number % 3 == 2))
    assert set(target.rows(ITEMS)) == set(state.values())


def _random_change(dice: random.Random, items: Relation, state: dict[str, Row]) -> Change:
    """A change that fits `state`, which is changed likewise."""
    key, fresh = str(dice.randrange(60)), (str(dice.randrange(99)), dice.choice(("1.0", None)))
    before = state.get(key)
    if before is None:
        state[key] = (key, *fresh)
        return (Kind.INSERT, items, None, state[key])
    free = str(dice.randrange(60))
    match dice.choice(("delete", "update", "partial", "move")):
        case "delete":
            del state[key]
            return delete(items, key, None, None)
        case "partial":
            state[key] = (key, before[1], fresh[1])
            return (Kind.UPDATE, items, None, (key, UNCHANGED, fresh[1]))
        case "move" if free not in state:
            del state[key]
            state[free] = (free, before[1], fresh[1])
            return (Kind.UPDATE, items, (key, UNCHANGED, UNCHANGED), (free, UNCHANGED, fresh[1]))
        case _:
            state[key] = (key, *fresh)
            return (Kind.UPDATE, items, None, state[key])


# -- replica identity -------------------------------------------------------------------------------------------------


@keeps_rows
def test_of_two_equal_rows_without_a_key_exactly_one_is_changed(target: Target) -> None:
    target.create(PLAIN)
    plain = relation(PLAIN, Identity.FULL)
    rows, done = written(
        target,
        PLAIN,
        group(*(insert(plain, *row) for row in [("1", None), ("1", None), ("2", "x"), ("2", "x"), ("3", "y")])),
        group(delete(plain, "1", None), update(plain, "2", None, old=("2", "x")), delete(plain, "9", "z"), to=300),
    )
    assert rows == [("1", None), ("2", None), ("2", "x"), ("3", "y")]
    assert done == Written(deleted=1, updated=1, missing=1)


@keeps_rows
def test_identity_full_uses_the_targets_key(target: Target) -> None:
    target.create(ITEMS)
    items = relation(ITEMS, Identity.FULL)
    rows, done = written(
        target,
        ITEMS,
        group(*(insert(items, str(i), "a", "1") for i in range(3))),
        group(
            update(items, "1", "b", None, old=("1", "differs here", "1")),
            delete(items, "2", "a", "1"),
            update(items, "5", "a", "1", old=("0", "a", "1")),
            to=300,
        ),
    )
    assert rows == [("1", "b", None), ("5", "a", "1")]
    assert done == Written(updated=2, deleted=1)


def test_a_table_without_identity_takes_inserts(target: Target) -> None:
    target.create(PLAIN)
    plain = relation(PLAIN, Identity.NOTHING)
    rows, done = written(
        target, PLAIN, group(*(insert(plain, str(i % 3), "x") for i in range(30)), truncate(plain), insert(plain, "1", "x"))
    )
    assert rows == [("1", "x")]
    assert done == Written(inserted=31, truncated=1)


def test_a_table_without_a_key_and_with_the_default_identity_takes_inserts(target: Target) -> None:
    target.create(PLAIN)
    plain = relation(PLAIN)  # identity default, but there is no primary key
    with opened(target) as sink:
        assert write(sink, group(*(insert(plain, str(i), "x") for i in range(30)))) == Written(inserted=30)
    assert len(target.rows(PLAIN)) == 30
