"""Ranges of a table's key: what is left to copy, and which changes a table takes whose ranges were copied at different times. Pure.

A copy that was broken off goes on with the ranges that are missing, from a new snapshot. Then the changes of each row begin where
the snapshot of its range was taken: so the table is exact all the time, and nothing need be applied twice. The trap is a row that
moves from one range to another: it may be in both copies, or in neither, and is then deleted or inserted. An insert takes all of
its values; where some did not travel, because the update has left them unchanged, the table must be copied anew.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TypeAlias

from streamer.model import LSN, UNCHANGED, Change, CopiedRange, KeyRange, Kind, Relation, Row, TableName, newest

Applies: TypeAlias = Callable[[LSN], bool]
"""Whether a change is later than the rows that were copied at a position."""


class CopyAnew(Exception):
    """A table whose ranges were copied at different times cannot be brought to one: it must be copied from one snapshot."""

    def __init__(self, table: TableName, reason: str) -> None:
        super().__init__(f"{table}: {reason}")
        self.table = table
        self.reason = reason


def consecutive(within: KeyRange, first: Callable[[KeyRange], KeyRange]) -> Iterator[KeyRange]:
    """Cut a range: `first` says where the first part of what is left ends. Together they hold all that is `within`."""
    rest = within
    while True:
        part = first(rest)
        yield part
        if part.high == rest.high:
            return
        rest = replace(rest, low=part.high)


def gaps(whole: KeyRange, copied: Sequence[CopiedRange]) -> list[KeyRange]:
    """Return what is missing between ranges that do not overlap."""
    missing, low = [], whole.low
    for one in _in_order(copied):
        if one.range.low != low:
            missing.append(replace(whole, low=low, high=one.range.low))
        if one.range.high is None:
            return missing
        low = one.range.high
    return [*missing, replace(whole, low=low)]


def _in_order(copied: Sequence[CopiedRange]) -> list[CopiedRange]:
    begin = [one for one in copied if one.range.low is None]
    return begin + sorted(
        (one for one in copied if one.range.low is not None), key=lambda one: one.range.order(one.range.low or "")
    )


class RangeStarts:
    """Where changes of a table begin, by range; together the ranges hold all rows."""

    def __init__(self, table: TableName, copied: Sequence[CopiedRange]) -> None:
        ordered = _in_order(copied)
        self._table = table
        self._column = ordered[0].range
        self._ends = [self._column.order(one.range.high) for one in ordered if one.range.high is not None]
        self._starts = [one.position for one in ordered]
        #: all positions at which a range begins
        self.positions = frozenset(self._starts)

    def changes(self, change: Change, applies: Applies) -> Iterator[Change]:
        """Give what the ranges take of a change. Raises CopyAnew where that cannot be known."""
        kind, relation, old, new = change
        if kind is Kind.TRUNCATE:
            yield from self._truncate(change, applies)
            return
        before = None if old is None else applies(self._start(relation, old))
        after = None if new is None else applies(self._start(relation, new))
        if before is None or after is None or before == after:
            if before or after:
                yield change
        elif before:
            yield (Kind.DELETE, relation, old, None)
        elif new is not None and old is not None:
            yield (Kind.INSERT, relation, None, self._whole(newest(old, new)))

    def _truncate(self, change: Change, applies: Applies) -> Iterator[Change]:
        applied = {applies(position) for position in self.positions}
        if len(applied) > 1:
            raise CopyAnew(self._table, "it was truncated between the copies of its ranges")
        if applied == {True}:
            yield change

    def _start(self, relation: Relation, row: Row) -> LSN:
        try:
            value = row[relation.names.index(self._column.column)]
        except ValueError:
            value = None
        if value is None or value is UNCHANGED:
            raise CopyAnew(self._table, f'a change does not tell the value of its key column "{self._column.column}"')
        return self._starts[bisect_left(self._ends, self._column.order(value))]

    def _whole(self, row: Row) -> Row:
        if UNCHANGED in row:
            raise CopyAnew(self._table, "an update has moved a row to another range, and does not tell all of its values")
        return row
