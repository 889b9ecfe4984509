"""Columns that are merged: the three ways to do it, and when the Resolver does."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from streamer.errors import SchemaError
from streamer.model import Change, Identity
from streamer.sinks.conflict import ConflictKind, Effect, Resolution, Rules, Stored, Version
from streamer.sinks.merge import merge_of
from tests.unit.conflict_cases import (
    AFTER,
    BEFORE,
    DELETE,
    UPDATE,
    at,
    changes,
    delete,
    insert,
    only,
    relation,
    resolve,
    stored,
    tombstone,
    update,
)

NUMERIC, DATE, TIMESTAMP, TIMESTAMPTZ, FLOAT, TEXT = 1700, 1082, 1114, 1184, 701, 25
SUMS = relation("kvnm")
MERGED = Rules("latest", delta=frozenset("n"), max=frozenset("m"))


def merged(*changes: Change, there: Stored | None = None, when: int = 10, seen: Mapping[str, int] | None = None) -> Resolution:
    return resolve(*changes, rows={"1": there} if there else {}, rules=MERGED, when=when, seen=seen)


def test_an_update_of_merge_columns_only_is_merged_and_is_no_conflict() -> None:
    resolution = merged(update(("1", "w", "10", "3"), ("1", "w", "15", "4"), SUMS), there=stored("1", "x", "7", "9", when=AFTER))
    assert resolution == Resolution([Effect(update(("1", "x", "7", "9"), ("1", "x", "12", "9"), SUMS), merge=True)])


@pytest.mark.parametrize(("when", "value", "merge"), [(BEFORE, "y", False), (AFTER, "x", True)])
def test_merge_columns_are_merged_whoever_wins(when: int, value: str, merge: bool) -> None:
    there = stored("1", "x", "7", "9", when=when)
    resolution = merged(update(("1", "w", "10", "3"), ("1", "y", "15", "11"), SUMS), there=there)
    assert resolution.effects == [Effect(update(("1", "x", "7", "9"), ("1", value, "12", "11"), SUMS), merge)]
    assert only(resolution).kind is ConflictKind.UPDATE_ORIGIN_DIFFERS


@pytest.mark.parametrize(("when", "value"), [(BEFORE, "y"), (AFTER, "x")])
def test_rows_that_were_inserted_on_both_nodes_are_added_up(when: int, value: str) -> None:
    resolution = merged(insert("1", "y", "5", "2", into=SUMS), there=stored("1", "x", "7", "9", when=when))
    assert changes(resolution) == [(UPDATE, ("1", "x", "7", "9"), ("1", value, "12", "9"))]


@pytest.mark.parametrize(("value", "mere"), [("w", True), ("y", False)])
def test_a_row_that_has_not_come_yet_begins_with_the_difference(value: str, mere: bool) -> None:
    resolution = merged(update(("1", "w", "100", "3"), ("1", value, "105", "3"), SUMS))
    assert resolution.effects == [Effect(insert("1", value, "5", "3", into=SUMS), mere)]


@pytest.mark.parametrize("when", [BEFORE, AFTER])
def test_a_delete_wins_in_a_table_with_merge_columns(when: int) -> None:
    row = ("1", "w", "7", "9")
    assert changes(merged(delete(*row, of=SUMS), there=stored("1", "x", "7", "9", when=when))) == [(DELETE, row, None)]
    assert merged(update(row, ("1", "y", "8", "9"), SUMS), there=tombstone(when=when)).effects == []
    again = stored("1", "x", "0", "0", when=when)
    again.deleted = Version(at(3), "a")
    assert merged(update(row, ("1", "y", "8", "9"), SUMS), there=again).effects == []
    assert changes(merged(update(row, ("1", "w", "8", "9"), SUMS), there=again, seen={"a": 4})) != []


def test_merging_needs_the_old_row() -> None:
    with pytest.raises(SchemaError, match="REPLICA IDENTITY FULL"):
        merged(update(None, ("1", "w", "1", "1"), relation("kvnm", Identity.DEFAULT)), there=stored("1", "x", "7", "9"))


def test_text_cannot_be_merged() -> None:
    with pytest.raises(SchemaError, match=r'column "v" of "public.t" has a type that cannot be merged by delta'):
        resolve(insert("1", "x"), rules=Rules("latest", delta=frozenset("v")))


@pytest.mark.parametrize(
    ("here", "old", "new", "expected"),
    [
        ("1", "1", "3", "3"),
        ("10", "1", "3", "12"),
        ("0.10", "0.1", "0.3", "0.30"),
        (
            "12345678901234567890.123456789012345678901234567890",
            "0",
            "1e-30",
            "12345678901234567890.123456789012345678901234567891",
        ),
        ("9" * 50, "0", "1", "1" + "0" * 50),
        ("-5", "3", "3", "-5"),
        (None, "3", "5", "2"),
        ("7", None, "5", "12"),
        ("7", "5", None, "2"),
        ("5", "5", None, None),
        ("7", "5", "NaN", "NaN"),
        ("NaN", "5", "6", "NaN"),
        ("7", "5", "Infinity", "Infinity"),
        ("Infinity", "5", "-Infinity", "NaN"),
    ],
)
def test_delta(here: str | None, old: str | None, new: str | None, expected: str | None) -> None:
    delta = merge_of("delta", NUMERIC)
    assert delta is not None
    assert delta(here, old, new) == expected


@pytest.mark.parametrize(
    ("oid", "lesser", "greater"),
    [
        (NUMERIC, "9", "10"),
        (NUMERIC, "-Infinity", "-10.5"),
        (NUMERIC, "Infinity", "NaN"),
        (NUMERIC, "1.0", "1.00"),
        (FLOAT, "1e-07", "2.5e+20"),
        (DATE, "2026-01-31", "2026-02-01"),
        (DATE, "9999-12-31", "10000-01-01"),
        (DATE, "0044-03-15 BC", "0001-01-01"),
        (DATE, "0044-03-15 BC", "0043-03-14 BC"),
        (DATE, "0044-03-15 BC", "0044-03-16 BC"),
        (DATE, "-infinity", "4713-01-01 BC"),
        (TIMESTAMP, "2026-01-01 00:00:59.5", "2026-01-01 00:01:00"),
        (TIMESTAMP, "2026-01-01 00:00:00.25", "2026-01-01 00:00:00.3"),
        (TIMESTAMPTZ, "2026-01-01 00:00:00+00", "infinity"),
        (TIMESTAMPTZ, "0001-12-31 23:59:59+00 BC", "2026-01-01 00:00:00+00"),
    ],
)
def test_max_and_min(oid: int, lesser: str, greater: str) -> None:
    for how, expected in (("max", greater), ("min", lesser)):
        merge = merge_of(how, oid)
        assert merge is not None
        assert merge(lesser, None, greater) == merge(greater, None, lesser) == expected
        assert merge(None, "0", lesser) == merge(lesser, "0", None) == lesser


@pytest.mark.parametrize(("how", "oid"), [("delta", FLOAT), ("delta", DATE), ("max", TEXT), ("min", 1083)])
def test_other_types_are_not_merged(how: str, oid: int) -> None:
    assert merge_of(how, oid) is None


def test_what_is_no_moment_is_told() -> None:
    latest = merge_of("max", TIMESTAMP)
    assert latest is not None
    with pytest.raises(ValueError, match="is not a date or a timestamp in ISO form"):
        latest("01/02/2026", None, "2026-01-01 00:00:00")
