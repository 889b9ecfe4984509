"""Ranges of a table's key in SQL: for the initial copy, and for comparing a table with its copy.

A range is cut where an index finds it: by the first column of a key. The trap: what a key is ordered by must be the same for
everybody who is to tell in which range a row is. Text is ordered by its language, on each server in another way; so there are
ranges of it for the source's own use only (verify), and the copy cuts tables by integers and UUIDs.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from streamer.capture.catalog import SourceTable
from streamer.capture.definition_types import literal, quote
from streamer.model import KeyRange, TableName
from streamer.ports import CopyTable
from streamer.session import Connection, version

_INTEGERS: Final = (20, 21, 23)
_AS_TEXT: Final = (2950,)  # a UUID is ordered as its text is
COARSE: Final = 2
"""Times as many rows as wanted that a range may have, if that saves looking for its end."""
INHERITED: Final = 90000  # statistics with and without tables that inherit: version 9.0
SCATTERED: Final = 0.5
"""Below this correlation of a column with the place of its rows, reading a range is reading much of the table."""

_PARTITIONED: Final = (
    "SELECT c.relkind = 'p' FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace "
    "WHERE n.nspname = %s AND c.relname = %s"
)
_STATISTICS: Final = (
    "SELECT s.correlation, CASE WHEN s.most_common_vals IS NULL THEN s.histogram_bounds::text::text[] END, c.reltuples "
    "FROM pg_catalog.pg_stats s JOIN pg_catalog.pg_namespace n ON n.nspname = s.schemaname "
    "JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = s.tablename "
    "WHERE s.schemaname = %s AND s.tablename = %s AND s.attname = %s"
)


def copied_table(table: SourceTable, *, carried: bool, whole: bool, key: tuple[str, ...]) -> CopyTable:
    """Return the table as an initial copy reads it; see there what the stream says of it."""
    return CopyTable(
        table.table,
        tuple(c.name for c in table.travelling),
        tuple(c.type_oid for c in table.travelling),
        table.rows,
        carried=carried or whole,
        key=key,
        whole=whole,
        ranged=None if whole else _ranged(table, key or table.definition.primary_key),
        size=table.size,
    )


def _ranged(table: SourceTable, key: tuple[str, ...]) -> KeyRange | None:
    """What the copy cuts the table by: an index must lead with it, and every change tell it."""
    if not key or table.partitioned or key not in (table.definition.primary_key, *table.definition.unique_keys):
        return None
    (column,) = (c for c in table.definition.columns if c.name == key[0])
    kind = column.base_oid or column.type_oid
    if not column.not_null or column.generated or kind not in (*_INTEGERS, *_AS_TEXT):
        return None
    return KeyRange(column.name, numeric=kind in _INTEGERS)


@dataclass(frozen=True, slots=True)
class Statistics:
    """What the server knows of the column that ranges are cut by, since the table was last analyzed."""

    #: how closely rows that follow one another by it lie together, from -1 to 1; None if unknown
    correlation: float | None
    #: values between which there are equally many rows; none if unknown, or many rows share one
    bounds: Sequence[str]
    #: how many rows there are from one to the next
    apart: float

    @property
    def is_scattered(self) -> bool:
        """Whether rows that follow one another lie far apart."""
        return self.correlation is not None and abs(self.correlation) < SCATTERED

    def end_of_first(self, within: KeyRange, rows: int) -> str | None:
        """Return where about the first so many rows of a range end; None if the statistics are too coarse, or this is the rest."""
        if not self.bounds or not 0 < self.apart <= COARSE * rows:  # a table that was truncated has bounds, but no rows
            return None
        ordered = [within.order(bound) for bound in self.bounds]
        at = 0 if within.low is None else bisect_right(ordered, within.order(within.low)) - 1
        end = max(at, 0) + max(1, round(rows / self.apart))
        if end >= len(self.bounds) - 1 or (within.high is not None and ordered[end] >= within.order(within.high)):  # type: ignore[operator]
            return None
        return self.bounds[end]


def statistics(connection: Connection, table: TableName, column: str) -> Statistics:
    """Return what the server knows of a column."""
    inherited = " AND NOT inherited" if version(connection) >= INHERITED else ""
    row = connection.execute(f"{_STATISTICS}{inherited}".encode(), [table.schema, table.name, column]).fetchone()
    if row is None:
        return Statistics(None, (), 0.0)
    correlation, bounds, rows = row
    return Statistics(correlation, bounds or (), rows / (len(bounds) - 1) if bounds and len(bounds) > 1 else 0.0)


def condition(within: KeyRange) -> list[str]:
    """Return the conditions for the rows of a range, if there are any."""
    return list(conditions(quote(within.column), "bigint" if within.numeric else "uuid", within.low, within.high))


def end_of_first(table: TableName, within: KeyRange, rows: int) -> bytes:
    """Return the query for the end of the first so many rows of a range, as text."""
    where = " AND ".join(condition(within)) or "true"
    place = f"ONLY {quote(table.schema)}.{quote(table.name)} WHERE {where}"
    return f"SELECT k::text FROM ({end_of(quote(within.column), place, rows)}) AS r (k)".encode()


def place(connection: Connection, table: TableName) -> str:
    """Return the table for a FROM: with its partitions, but without tables that inherit from it, which are tables of their own."""
    row = connection.execute(_PARTITIONED, [table.schema, table.name]).fetchone()
    return f"{'ONLY ' if row != (True,) else ''}{quote(table.schema)}.{quote(table.name)}"


def conditions(column: str, type_name: str, low: str | None, high: str | None) -> Iterator[str]:
    """Give the conditions for rows whose `column`, in SQL, is greater than `low` and not greater than `high`."""
    for operator, bound in ((">", low), ("<=", high)):
        if bound is not None:
            yield f"{column} {operator} {literal(bound)}::{type_name}"


def end_of(column: str, place: str, rows: int) -> str:
    """Return the query for the greatest value of the first so many rows; it has no row if there are fewer. `place` is a FROM with
    its conditions."""
    return f"SELECT {column} FROM {place} ORDER BY 1 OFFSET {rows - 1} LIMIT 1"
