"""How the changes of one relation are written into one SQLite table: its key, and the statements.

Many rows go into one statement (sqlite_batch). The trap: SQLite may choose to read the whole table for it, or to build an index
over the rows; then one statement for each row, by its key, is faster, and is taken.

https://www.sqlite.org/lang_update.html#update_from
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, TypeAlias

from streamer.errors import SchemaError
from streamer.model import UNCHANGED, Change, Identity, Kind, Relation, Row
from streamer.sinks.sqlite_batch import Batch
from streamer.sinks.sqlite_columns import Columns
from streamer.sinks.sqlite_ddl import TargetTable, fold_case, quote, target_name
from streamer.sinks.unrepresentable import Replacements

_Parameter: TypeAlias = Callable[[int], str]


def insert_batch(columns: Columns) -> Batch:
    """Return the insert of whole rows; columns that the target generates are passed over."""
    written = [i for i in range(len(columns.names)) if i not in columns.generated]
    into = f"INSERT INTO {quote(target_name(columns.table))} ({', '.join(columns.quoted[i] for i in written)}) VALUES"
    return Batch(
        f"{into} ({', '.join('?' * len(written))})", lambda values: f"{into} {values}", len(written), columns.bind(written)
    )


class Plan:
    """The statements for one relation; implements group_apply.Table. Raises SchemaError if the target lacks a column."""

    def __init__(self, connection: sqlite3.Connection, relation: Relation, target: TargetTable, replacements: Replacements) -> None:
        self.relation = relation
        self.key = _find_key(relation, target)
        self._connection = connection
        self._target = target
        self.name = quote(target_name(relation.table))
        oids = [c.type_oid for c in relation.columns]
        self._all = Columns(relation.table, relation.names, oids, self.key or (), target, replacements)
        self._columns = self._all.quoted
        self._updates: dict[tuple[int, ...], Batch] = {}
        self.inserts = insert_batch(self._all)

    # -- many rows ---------------------------------------------------------------------------------------------------------------

    def insert(self, rows: Sequence[Row]) -> int:
        """Insert whole rows."""
        return self.inserts.run(self._connection, rows)

    def update(self, present: tuple[int, ...], rows: Sequence[Row]) -> int:
        """Update rows by their key; all of them carry the columns `present`."""
        return self.updates(present).run(self._connection, rows)

    def delete(self, rows: Sequence[Row]) -> int:
        """Delete rows by their key."""
        return self.deletes.run(self._connection, rows)

    def empty(self) -> None:
        """Delete all rows."""
        self._connection.execute(f"DELETE FROM {self.name}")

    def updates(self, present: tuple[int, ...]) -> Batch:
        """Return the update of rows that carry the columns `present`, the key among them."""
        if (batch := self._updates.get(present)) is None:
            batch = self._updates[present] = self._update(present)
        return batch

    def _update(self, present: tuple[int, ...]) -> Batch:
        key = self.key or ()
        changed = [i for i in present if i not in key and i not in self._all.generated]
        fields = sorted({*changed, *key})
        places = {i: n for n, i in enumerate(fields, 1)}

        def sql(value: _Parameter, source: str) -> str:
            sets = ", ".join(f"{self._columns[i]} = {value(i)}" for i in changed)
            return (
                f"UPDATE {self.name} AS x SET {sets or f'{self._columns[key[0]]} = x.{self._columns[key[0]]}'}{source}"
                f" WHERE {' AND '.join(f'x.{self._columns[i]} = {value(i)}' for i in key)}"
            )

        each = sql(lambda i: f"?{places[i]}", "")
        return self._batch(each, lambda values: sql(lambda i: f"v.column{places[i]}", f" FROM (VALUES {values}) AS v"), fields)

    @cached_property
    def deletes(self) -> Batch:
        """The delete of rows by their key."""
        key = self.key or ()
        where = f"DELETE FROM {self.name} AS x WHERE ({', '.join(self._columns[i] for i in key)})"
        return self._batch(f"{where} = ({', '.join('?' * len(key))})", lambda values: f"{where} IN (VALUES {values})", key)

    def _batch(self, each: str, many: Callable[[str], str], fields: Sequence[int]) -> Batch:
        return Batch(each, many, len(fields), self._all.bind(fields), self._finds_by_key)

    def _finds_by_key(self, statement: str, parameters: int) -> bool:
        """Whether SQLite finds each row by the key: else it would read the table for each (no index on the key, statistics of an
        emptier table), or the rows for each row of the table. A version without UPDATE FROM cannot even read the statement."""
        try:
            steps = self._connection.execute(f"EXPLAIN QUERY PLAN {statement}", [None] * parameters).fetchall()
        except sqlite3.OperationalError:
            return False
        return any(step[3].startswith("SEARCH x ") and step[3].count("=?") == len(self.key or ()) for step in steps)

    # -- one row -----------------------------------------------------------------------------------------------------------------

    def write(self, change: Change) -> int:
        """Write one change. Raises SchemaError if nothing tells which row."""
        return self._connection.execute(*self._one(change)).rowcount

    def _one(self, change: Change) -> tuple[str, Sequence[Any]]:
        """Return the statement for a single change, and its parameters. Raises SchemaError if nothing tells which row."""
        kind, _, old, new = change
        if kind is Kind.INSERT:
            assert new is not None
            return self.inserts.each, new if self.inserts.bind is None else self.inserts.bind(new)
        row = new if old is None else old
        assert row is not None
        where, address = self._where(kind, row)
        if kind is Kind.DELETE or new is None:
            return f"DELETE FROM {self.name} WHERE {where}", self._all.sought(row, address)
        present = [i for i, v in enumerate(new) if v is not UNCHANGED and i not in self._all.generated]
        sets = ", ".join(f"{self._columns[i]} = ?" for i in present)
        return (
            f"UPDATE {self.name} SET {sets} WHERE {where}",
            [*self._bound(new, present), *self._all.sought(row, address)],
        )

    def _where(self, kind: Kind, row: Row) -> tuple[str, Sequence[int]]:
        """What finds the row: its key, or else one row, the first of several, that is equal in all columns."""
        if self.key is not None:
            return " AND ".join(f"{self._columns[i]} = ?" for i in self.key), self.key
        if self.relation.identity is not Identity.FULL:
            table = self.relation.table
            raise SchemaError(
                f"table {self.relation} has no replica identity on the source, so nothing tells which row to {kind}",
                f"on the source: ALTER TABLE {quote(table.schema)}.{quote(table.name)} REPLICA IDENTITY FULL",
            )
        compared = [i for i, v in enumerate(row) if v is not UNCHANGED and i not in self._all.generated]
        equal = _conjunction([f"{self._columns[i]} IS ?" for i in compared])
        rowid = self._target.rowid
        return f"{rowid} = (SELECT {rowid} FROM {self.name} WHERE {equal} LIMIT 1)", compared

    def _bound(self, row: Row, fields: Sequence[int]) -> Sequence[Any]:
        bind = self._all.bind(fields)
        return row if bind is None else bind(row)

    def describe(self, change: Change) -> str:
        """Return the row's key, or its first columns, for people."""
        _, _, old, new = change
        row = new if old is None else old
        return self._all.describe(row) if row else ""


def _conjunction(terms: Sequence[str]) -> str:
    """The terms joined by AND, in halves of halves: SQLite takes each AND of a row for a level, and 1,000 levels at most."""
    if len(terms) < 100:
        return " AND ".join(terms)
    middle = len(terms) // 2
    return f"({_conjunction(terms[:middle])}) AND ({_conjunction(terms[middle:])})"


def _find_key(relation: Relation, target: TargetTable) -> tuple[int, ...] | None:
    """The columns that address a row: the relation's key, else with identity FULL whatever is unique on the target."""
    if relation.key or relation.identity is not Identity.FULL:
        return relation.key or None
    places = {fold_case(name): i for i, name in enumerate(relation.names)}
    key = next((k for k in target.keys if k <= places.keys()), None)
    return None if key is None else tuple(sorted(places[name] for name in key))
