"""What check says of patterns that choose no table."""

from __future__ import annotations

from collections.abc import Iterable

from streamer.admin.check_selection import judge_selection
from streamer.admin.findings import Finding
from streamer.capture.catalog import SourceTable
from streamer.config import Sync
from streamer.model import Identity, TableDefinition, TableName


def told(findings: Iterable[Finding]) -> list[str]:
    """The findings that are not good, each as one line."""
    return [f"{f.severity}: {f.object}: {f.reason}; {f.remedy}" for f in findings if f.severity != "ok"]


def table() -> SourceTable:
    return SourceTable(TableDefinition(TableName("public", "t"), (), ("id",)), Identity.DEFAULT, ("id",), (), 5, False)


def test_a_pattern_that_chooses_nothing_is_named() -> None:
    sync = Sync(sources=("a",), targets=("b",), tables=("t", "T", "other.*"))
    lines = told(judge_selection("shop", sync, "a", [table()], []))
    assert [line.split(";")[0] for line in lines] == [
        'warning: sync "shop": the pattern "public.T" chooses no table on "a"',
        'warning: sync "shop": the pattern "other.*" chooses no table on "a"',
    ]
    (line,) = told(judge_selection("shop", sync, "a", [], []))
    assert line.startswith("error: sync \"shop\": selects no table on \"a\" (tables = ['public.t', 'public.T', 'other.*']")


def test_a_pattern_that_names_a_view_a_partition_or_no_table_quite_is_told_what_is_there() -> None:
    there = {"public.v": "v", "public.f": "f", "public.part_1": "r", "public.customer": "r", "public.t": "r"}
    sync = Sync(sources=("a",), targets=("b",), tables=("t", "v", "f", "part_1", "cutomer", "T", "nothing", "other.*"))
    lines = told(judge_selection("shop", sync, "a", [table()], [], there))
    assert [line.split(";")[0].partition(" chooses no table on ")[2] for line in lines] == [
        '"a": it is a view, whose rows are those of other tables',
        '"a": it is a foreign table, whose rows are written elsewhere',
        '"a": it is excluded, a partition (which its table brings along), unlogged or temporary',
        '"a": there is "public.customer"',
        '"a": there is "public.t"',
        '"a"',
        '"a"',
    ]
    (line,) = told(judge_selection("shop", Sync(sources=("a",), targets=("b",), tables=("v",)), "a", [], [], there))
    assert '; "public.v": it is a view, whose rows are those of other tables; correct syncs.shop.tables' in line


def test_a_pattern_that_chooses_a_sequence_chooses_something() -> None:
    sync = Sync(sources=("a",), targets=("b",), tables=("t", "numbers"), sequences=True)
    lines = told(judge_selection("shop", sync, "a", [table()], [TableName("public", "numbers")]))
    assert lines == []


def test_settings_of_a_misspelt_table_are_told() -> None:
    sync = Sync.model_validate(
        {
            "sources": ["a", "b"],
            "targets": ["c"],
            "tables": ["*.*"],
            "table": {"public.t": {"delta": ["n"]}, "acounts": {"delta": ["n"]}, "sales.other": {"delta": ["n"]}},
        }
    )
    lines = told(judge_selection("shop", sync, "a", [table()], [], {"public.t": "r", "public.accounts": "r"}))
    assert lines == [
        'warning: sync "shop": syncs.shop.table."public.acounts" holds for no table on "a": there is "public.accounts"; '
        'correct syncs.shop.table."public.acounts"',
        'warning: sync "shop": syncs.shop.table."sales.other" holds for no table on "a"; correct syncs.shop.table."sales.other"',
    ]
