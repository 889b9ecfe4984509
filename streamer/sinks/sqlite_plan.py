"""How the changes of one relation are written into one SQLite table: keys, statements and the conversion of values.

Many rows go either as parameters, one execution each, or all at once as one JSON array that SQLite takes apart itself. The
second costs a little more, but leaves the GIL alone for the whole batch: with parameters it is let go and asked for again at
every row, and a busy reader thread makes each of these wait for a switch interval (measured: 2,000 rows/s instead of 300,000).

The trap: JSON holds no bytes, and not all floats. Statements with such columns always take parameters. A value that its column
cannot hold is found while it is bound, in the middle of a batch: an error of that ends the batch.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any, Final, TypeAlias

import orjson

from streamer.errors import SchemaError
from streamer.model import UNCHANGED, Change, Identity, Kind, Relation, Row, Value
from streamer.sinks.sqlite_columns import Bind, Columns
from streamer.sinks.sqlite_ddl import TargetTable, fold_case, quote, target_name
from streamer.sinks.unrepresentable import Replacements

_Parameter: TypeAlias = Callable[[int], str]

_CHUNK: Final = 5_000  # rows in one JSON array
_FEW: Final = 8  # rows for which taking JSON apart does not pay
_LARGEST: Final = 100_000_000  # bytes of JSON; SQLite refuses texts of a gigabyte, and one should not hold many times that


@dataclass(frozen=True, slots=True)
class Batch:
    """A statement for many rows: with parameters for `each`, or `at_once` for a JSON array of them (where that is possible).

    `bind` makes a row's parameters; None if the row is them already.
    """

    each: str
    at_once: str | None
    bind: Bind | None

    def run(self, connection: sqlite3.Connection, rows: Iterable[Sequence[Value]]) -> int:
        """Execute it for the rows; return how many rows of the table it wrote. Raises sqlite3.Error."""
        bound: Iterable[Any] = rows if self.bind is None else map(self.bind, rows)
        if self.at_once is None:
            return connection.executemany(self.each, bound).rowcount
        written, source = 0, iter(bound)
        while chunk := list(islice(source, _CHUNK)):
            written += self._run_chunk(connection, self.at_once, chunk)
        return written

    def _run_chunk(self, connection: sqlite3.Connection, at_once: str, chunk: list[Any]) -> int:
        if len(chunk) >= _FEW and len(document := orjson.dumps(chunk)) < _LARGEST:
            return connection.execute(at_once, (document.decode(),)).rowcount
        return connection.executemany(self.each, chunk).rowcount


def insert_batch(columns: Columns) -> Batch:
    """Return the insert of whole rows; columns that the target generates are passed over."""
    written = [i for i in range(len(columns.names)) if i not in columns.generated]
    into = f"INSERT INTO {quote(target_name(columns.table))} ({', '.join(columns.quoted[i] for i in written)})"

    def sql(value: _Parameter, source: str | None) -> str:
        values = ", ".join(map(value, written))
        return f"{into} SELECT {values} FROM {source}" if source else f"{into} VALUES ({values})"

    return _batch(columns, written, sql)


class Plan:
    """The statements for one relation. Raises SchemaError if the target lacks a column."""

    def __init__(self, connection: sqlite3.Connection, relation: Relation, target: TargetTable, replacements: Replacements) -> None:
        self.relation = relation
        self.key = _find_key(relation, target)
        self._connection = connection
        self._target = target
        self._table = quote(target_name(relation.table))
        oids = [c.type_oid for c in relation.columns]
        self._all = Columns(relation.table, relation.names, oids, self.key or (), target, replacements)
        self._columns = self._all.quoted
        self._updates: dict[tuple[int, ...], Batch] = {}
        self.insert = insert_batch(self._all)

    def update(self, present: tuple[int, ...]) -> Batch:
        """Return the update of rows that carry the columns `present`, the key among them."""
        if (batch := self._updates.get(present)) is None:
            batch = self._updates[present] = self._update(present)
        return batch

    def _update(self, present: tuple[int, ...]) -> Batch:
        key = self.key or ()
        changed = [i for i in present if i not in key and i not in self._all.generated]

        def sql(value: _Parameter, source: str | None) -> str:
            sets = ", ".join(f"{self._columns[i]} = {value(i)}" for i in changed)
            return (
                f"UPDATE {self._table} AS x SET {sets or f'{self._columns[key[0]]} = x.{self._columns[key[0]]}'}"
                f"{f' FROM {source}' if source else ''}"
                f" WHERE {' AND '.join(f'x.{self._columns[i]} = {value(i)}' for i in key)}"
            )

        return self._if_by_key(_batch(self._all, sorted({*changed, *key}), sql))

    @cached_property
    def delete(self) -> Batch:
        """The delete of rows by their key."""
        key = self.key or ()

        def sql(value: _Parameter, source: str | None) -> str:
            columns, values = ", ".join(self._columns[i] for i in key), ", ".join(map(value, key))
            found = f"({columns}) IN (SELECT {values} FROM {source})" if source else f"({columns}) = ({values})"
            return f"DELETE FROM {self._table} WHERE {found}"

        return self._if_by_key(_batch(self._all, key, sql))

    def _if_by_key(self, batch: Batch) -> Batch:
        """Take a batch at once only if SQLite finds each row by the key: else it would read the table for each, or JSON for
        each row of the table (no index on the key, statistics of an emptier table, a version without UPDATE FROM)."""
        if batch.at_once is None:
            return batch
        try:
            steps = [row[3] for row in self._connection.execute(f"EXPLAIN QUERY PLAN {batch.at_once}", ("[]",))]
        except sqlite3.OperationalError:
            steps = []
        by_key = any(s.startswith("SEARCH") and s.count("=?") == len(self.key or ()) for s in steps)
        return batch if by_key else Batch(batch.each, None, batch.bind)

    def one(self, change: Change) -> tuple[str, Sequence[Any]]:
        """Return the statement for a single change, and its parameters. Raises SchemaError if nothing tells which row."""
        kind, _, old, new = change
        if kind is Kind.INSERT:
            assert new is not None
            return self.insert.each, new if self.insert.bind is None else self.insert.bind(new)
        row = new if old is None else old
        assert row is not None
        where, address = self._where(kind, row)
        if kind is Kind.DELETE or new is None:
            return f"DELETE FROM {self._table} WHERE {where}", self._all.sought(row, address)
        present = [i for i, v in enumerate(new) if v is not UNCHANGED and i not in self._all.generated]
        sets = ", ".join(f"{self._columns[i]} = ?" for i in present)
        return (
            f"UPDATE {self._table} SET {sets} WHERE {where}",
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
        equal = " AND ".join(f"{self._columns[i]} IS ?" for i in compared)
        rowid = self._target.rowid
        return f"{rowid} = (SELECT {rowid} FROM {self._table} WHERE {equal} LIMIT 1)", compared

    def _bound(self, row: Row, fields: Sequence[int]) -> Sequence[Any]:
        bind = self._all.bind(fields)
        return row if bind is None else bind(row)

    def describe(self, change: Change) -> str:
        """Return the row's key, or its first columns, for people."""
        _, _, old, new = change
        row = new if old is None else old
        return self._all.describe(row) if row else ""


def _find_key(relation: Relation, target: TargetTable) -> tuple[int, ...] | None:
    """The columns that address a row; with identity FULL whatever is unique on the target."""
    if relation.identity is not Identity.FULL:
        return tuple(i for i, c in enumerate(relation.columns) if c.identity) or None
    places = {fold_case(name): i for i, name in enumerate(relation.names)}
    key = next((k for k in target.keys if k <= places.keys()), None)
    return None if key is None else tuple(sorted(places[name] for name in key))


def _batch(columns: Columns, fields: Sequence[int], sql: Callable[[_Parameter, str | None], str]) -> Batch:
    """Make both forms of a statement whose parameters are the `fields` of a row; `sql` takes how to write one, and from where."""
    places = {i: n for n, i in enumerate(fields)}
    each = sql(lambda i: f"?{places[i] + 1}", None)
    at_once = None
    if columns.in_json(fields):
        at_once = sql(lambda i: f"json_extract(r.value, '$[{places[i]}]')", "json_each(?1) AS r")
    return Batch(each, at_once, columns.bind(fields))
