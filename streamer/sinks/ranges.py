"""Tables that MySQL, MariaDB and SQLite take in ranges: the records, the same for all; what engines differ in is behind `Engine`.

A table that is being copied has a record at 0/0 and a row in streamer_copied_part for each range that is here, written in the
range's own transaction. Ranges are of integers, of which these engines have the order that PostgreSQL has.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Final, Generic, Protocol, TypeVar

from streamer.copied_ranges import by_table, copied_range, text_of
from streamer.model import LSN, CopiedRange, EdgeName, KeyRange, TableName
from streamer.ports import CopyTable, Start
from streamer.sinks.quarantine import OnError

C = TypeVar("C")
"""A connection."""

_EDGE: Final = "sync = ? AND source = ? AND target = ?"
_OF_TABLE: Final = f"{_EDGE} AND schema_name = ? AND table_name = ?"
_RECORD: Final = (
    "INSERT INTO streamer_copied_part (sync, source, target, schema_name, table_name, bounds, position, row_count) "
    "VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
)
_FORGET: Final = f"DELETE FROM streamer_copied_part WHERE {_OF_TABLE}"


class Engine(Protocol[C]):
    """A target. All methods raise StreamerError, or what the driver raises."""

    def transaction(self) -> AbstractContextManager[C]:
        """Open a connection with a transaction that is committed in the end, unless an error ends it."""

    def execute(self, connection: C, statement: str, parameters: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """Execute a statement whose parameters are marked by ?; return the rows of a query."""

    def place(self, table: TableName) -> str:
        """The table's name in SQL."""

    def column(self, connection: C, table: TableName, column: str) -> str | None:
        """The column's name in SQL, if it belongs to what keeps rows apart; None if it does not."""

    def uniques(self, connection: C, table: TableName) -> int:
        """How many unique indexes the table has, its primary key included."""

    def record(self, connection: C, table: TableName, position: LSN, rows: int | None) -> None:
        """Write the table's own record."""


class Ranges(Generic[C]):
    """Implements ports.RangeLoader over an engine."""

    def __init__(self, edge: EdgeName, engine: Engine[C], on_error: OnError) -> None:
        self._quarantines = on_error
        self._where = (edge.sync, edge.source, edge.target)
        self._engine = engine

    def takes(self, table: CopyTable) -> bool:
        """Return whether the table can be cut here."""
        if table.ranged is None or not table.ranged.numeric:
            return False
        with self._engine.transaction() as connection:
            return self._engine.column(connection, table.table, table.ranged.column) is not None

    def resumes(self, table: CopyTable) -> bool:
        """Return whether there is one unique index, or no quarantine. These engines use the room of what was never committed by
        themselves."""
        if not self._quarantines(table.table):
            return True
        with self._engine.transaction() as connection:
            return self._engine.uniques(connection, table.table) == 1

    def begin(self, table: CopyTable, start: Start) -> bool:
        """Record that a copy begins, of a table that is empty by then."""
        with self._engine.transaction() as connection:
            place = self._engine.place(table.table)
            if not start.replace and self._engine.execute(connection, f"SELECT 1 FROM {place} LIMIT 1"):
                return False
            self._engine.execute(connection, f"DELETE FROM {place}")
            self._engine.record(connection, table.table, LSN(0), None)
            self._engine.execute(connection, _FORGET, self._key(table.table))
        return True

    def finish(self, table: CopyTable, position: LSN, rows: int) -> None:
        """Record that the table is whole."""
        with self._engine.transaction() as connection:
            self._engine.record(connection, table.table, position, rows)
            others = f"SELECT 1 FROM streamer_copied_part WHERE {_OF_TABLE} AND position <> ? LIMIT 1"
            if not self._engine.execute(connection, others, (*self._key(table.table), str(position))):
                self._engine.execute(connection, _FORGET, self._key(table.table))

    def forget(self, table: TableName) -> None:
        """Forget the ranges."""
        with self._engine.transaction() as connection:
            self._engine.execute(connection, _FORGET, self._key(table))

    def rest(self) -> None:
        """Do nothing: here each load has a connection of its own."""

    def load(self, connection: C, table: CopyTable, within: KeyRange, position: LSN, copy: Callable[[], int]) -> int:
        """Have `copy` write the rows of a range in the transaction that is open, in place of what is there."""
        place, column = self._engine.place(table.table), self._engine.column(connection, table.table, within.column)
        bounds = [(">", within.low), ("<=", within.high)]
        terms = [f"{column} {operator} {int(bound)}" for operator, bound in bounds if bound is not None]
        place = f"{place} WHERE {' AND '.join(terms)}" if terms else place
        if self._engine.execute(connection, f"SELECT 1 FROM {place} LIMIT 1"):  # a delete would lock the gap for other ranges
            self._engine.execute(connection, f"DELETE FROM {place}")
        rows = copy()
        self._engine.execute(connection, _RECORD, (*self._key(table.table), text_of(within), str(position), rows))
        return rows

    def read(self, connection: C) -> dict[TableName, tuple[CopiedRange, ...]]:
        """Return what the target has of the edge's tables."""
        query = f"SELECT schema_name, table_name, bounds, position, row_count FROM streamer_copied_part WHERE {_EDGE}"
        found = self._engine.execute(connection, query, self._where)
        return by_table((TableName(schema, name), copied_range(*of)) for schema, name, *of in found)

    def _key(self, table: TableName) -> tuple[str, ...]:
        return (*self._where, table.schema, table.name)
