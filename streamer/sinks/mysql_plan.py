"""How the changes of one relation are written into one table of MySQL or MariaDB: its key, and the statements.

Many rows go into a temporary table, which is then joined by key; STRAIGHT_JOIN keeps the server from reading the whole target
instead. The traps: two values may be equal in the collation of a column that are not the same, so where all columns are compared, a
collation of bytes does it; a FLOAT is equal to no decimal literal, and JSON to no text.

https://dev.mysql.com/doc/refman/8.4/en/update.html
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from streamer.errors import SchemaError
from streamer.model import UNCHANGED, Change, Identity, Kind, Relation, Row, Value
from streamer.sinks.mysql_ddl import Names, fold_case, quote, safe_name
from streamer.sinks.mysql_fields import Field, Fields, Stored, described
from streamer.sinks.mysql_table import TargetTable, require_columns, require_key
from streamer.sinks.mysql_types import Engine
from streamer.sinks.mysql_values import TargetColumn
from streamer.sinks.postgres_table import quoted
from streamer.sinks.unrepresentable import Replacements, Unrepresentable

BATCH: Final = "`streamer_batch`"
"""The temporary table."""
_INTEGERS: Final = ("tinyint", "smallint", "mediumint", "int", "bigint")


class Plan:
    """The statements for one relation. Raises SchemaError if the target lacks a column, or an index on the key."""

    def __init__(self, relation: Relation, target: TargetTable, names: Names, engine: Engine, replacements: Replacements) -> None:
        require_columns(target, names, relation.table, relation.names)
        self.relation = relation
        self.target = target
        self.table = names.sql(relation.table)
        self._engine = engine
        self._replacements = replacements
        self._columns = [quote(safe_name(name)) for name in relation.names]
        self._generated = {i for i, name in enumerate(relation.names) if target.is_generated(name)}
        self._fields: dict[tuple[int, ...], Fields] = {}
        self._batches: dict[tuple[int, ...], Fields] = {}
        self.key = self._find_key(names)
        self._whole = self._written(range(len(relation.columns)))

    def _find_key(self, names: Names) -> tuple[int, ...] | None:
        """The columns that address a row: the relation's key, else with identity FULL whatever is unique on the target."""
        relation = self.relation
        if key := relation.key:
            require_key(self.target, names, relation.table, [relation.names[i] for i in key])
            return key
        if relation.identity is not Identity.FULL:
            return None
        places = {fold_case(safe_name(name)): i for i, name in enumerate(relation.names)}
        found = next((k for k in self.target.keys if k <= places.keys()), None)
        return None if found is None else tuple(sorted(places[name] for name in found))

    # -- how rows are spelled ----------------------------------------------------------------------------------------------------

    def _written(self, present: Iterable[int]) -> tuple[int, ...]:
        return tuple(i for i in present if i not in self._generated)

    @property
    def rows(self) -> Fields:
        """Whole rows, without what the target generates."""
        return self.fields(self._whole)

    def fields(self, positions: tuple[int, ...]) -> Fields:
        """These columns of the rows, under their names on the target."""
        if (found := self._fields.get(positions)) is None:
            found = self._fields[positions] = self._make_fields(positions, batch=False)
        return found

    def batch(self, positions: tuple[int, ...]) -> Fields:
        """These columns of the rows, under their names in the temporary table."""
        if (found := self._batches.get(positions)) is None:
            found = self._batches[positions] = self._make_fields(positions, batch=True)
        return found

    def _make_fields(self, positions: Sequence[int], *, batch: bool) -> Fields:
        made = [Field.of(i, self.relation.columns[i].type_oid, self._target(i), f"c{i}" if batch else None) for i in positions]
        return Fields(len(self.relation.columns), made, self._replace)

    def _target(self, position: int) -> TargetColumn:
        return self.target.columns[fold_case(safe_name(self.relation.names[position]))]

    def _replace(self, position: int, row: Sequence[Value], problem: Unrepresentable) -> Stored:
        return self._replacements.replace(
            self.relation.table,
            self.relation.names[position],
            lambda: self.describe_row(row),
            problem,
            nullable=self._target(position).nullable,
            in_key=self.key is not None and position in self.key,
        )

    # -- many rows ---------------------------------------------------------------------------------------------------------------

    def update_columns(self, present: tuple[int, ...]) -> tuple[int, ...]:
        """Return the columns that an update of rows that carry `present` needs: the key, and what changes."""
        key = self.key or ()
        return tuple(sorted({*key, *self._written(present)}))

    def create_batch(self, positions: Iterable[int]) -> str:
        """Return the statement that makes the temporary table, with columns as the target has them."""
        columns = ", ".join(f"{self._columns[i]} AS c{i}" for i in positions)
        key = ", ".join(f"c{i}" for i in self.key or ())
        return f"CREATE TEMPORARY TABLE {BATCH} (PRIMARY KEY ({key})) ENGINE = InnoDB SELECT {columns} FROM {self.table} LIMIT 0"

    def update_batch(self, positions: Iterable[int], within: str = "") -> str:
        """Return the update of the rows that the temporary table holds; where nothing but keys is there, a query for them.

        Both engines update while they read only what they read first; else they note all rows, and update them afterwards. So where
        it is known that nearly all rows `within` a range are wanted, the target is read first, and this range of it.
        """
        sets = ", ".join(f"x.{self._columns[i]} = b.c{i}" for i in positions if i not in (self.key or ()))
        if not sets:
            return f"SELECT 1 FROM {self._joined}"
        if within:
            return f"UPDATE {self.table} AS x STRAIGHT_JOIN {BATCH} AS b ON {self._by_key} SET {sets} WHERE {within}"
        return f"UPDATE {self._joined} SET {sets}"

    def key_range(self) -> str:
        """Return the query for the least and the greatest key in the temporary table; empty if the key is not one integer."""
        if self.key is None or len(self.key) != 1 or self._target(self.key[0]).data_type not in _INTEGERS:
            return ""
        return f"SELECT min(c{self.key[0]}), max(c{self.key[0]}) FROM {BATCH}"

    def within(self, low: int, high: int) -> str:
        """Return the condition for the target's rows of a range of keys."""
        return f"x.{self._columns[(self.key or (0,))[0]]} BETWEEN {low} AND {high}"

    def count_within(self, within: str, limit: int) -> str:
        """Return the query for how many rows of the target that are, `limit` at most."""
        return f"SELECT count(*) FROM (SELECT 1 FROM {self.table} AS x WHERE {within} LIMIT {limit}) AS found"

    @property
    def delete_batch(self) -> str:
        """The delete of the rows that the temporary table holds."""
        return f"DELETE x FROM {self._joined}"

    @property
    def _joined(self) -> str:
        return f"{BATCH} AS b STRAIGHT_JOIN {self.table} AS x ON {self._by_key}"

    @property
    def _by_key(self) -> str:
        return " AND ".join(f"x.{self._columns[i]} = b.c{i}" for i in self.key or ())

    # -- few rows ----------------------------------------------------------------------------------------------------------------

    def delete_few(self, rows: Iterable[Row]) -> str:
        """Return the delete of a few rows by their key."""
        key = self.key or ()
        fields = self.fields(key)
        found = (self._equal(key, fields.one(row)) for row in rows)
        return f"DELETE FROM {self.table} WHERE {' OR '.join(f'({f})' for f in found)}"

    def update_one(self, row: Row) -> str:
        """Return the update of the row that has the same key; where nothing but the key is there, a query for it."""
        key = self.key or ()
        return self._update([i for i in self._present(row) if i not in key], row, self._equal(key, self.fields(key).one(row)))

    def _present(self, row: Row) -> Iterable[int]:
        return self._written(i for i, value in enumerate(row) if value is not UNCHANGED)

    def _update(self, changed: Sequence[int], row: Row, where: str, limit: str = "") -> str:
        if not changed:
            return f"SELECT 1 FROM {self.table} WHERE {where}{limit}"
        values = self.fields(tuple(changed)).one(row)
        sets = ", ".join(f"{self._columns[i]} = {value}" for i, value in zip(changed, values, strict=True))
        return f"UPDATE {self.table} SET {sets} WHERE {where}{limit}"

    def _equal(self, positions: Iterable[int], literals: Iterable[str]) -> str:
        return " AND ".join(f"{self._columns[i]} = {value}" for i, value in zip(positions, literals, strict=True))

    def one(self, change: Change) -> str:
        """Return the statement for a single change. Raises SchemaError if nothing tells which row, ApplyError."""
        kind, _, old, new = change
        if kind is Kind.INSERT:
            assert new is not None
            (values,) = self.rows.literals([new])
            return f"INSERT INTO {self.table} ({self.rows.columns}) VALUES {values}"
        row = new if old is None else old
        assert row is not None
        where, limit = self._where(kind, row)
        if kind is Kind.DELETE or new is None:
            return f"DELETE FROM {self.table} WHERE {where}{limit}"
        return self._update(list(self._present(new)), new, where, limit)

    def _where(self, kind: Kind, row: Row) -> tuple[str, str]:
        """What finds the row: its key, or else one row, the first of several, that is the same in all columns."""
        if self.key is not None:
            return self._equal(self.key, self.fields(self.key).one(row)), ""
        if self.relation.identity is not Identity.FULL:
            raise SchemaError(
                f"table {self.relation} has no replica identity on the source, so nothing tells which row to {kind}",
                f"on the source: ALTER TABLE {quoted(self.relation.table)} REPLICA IDENTITY FULL",
            )
        compared = tuple(self._present(row))
        values = self.fields(compared).one(row)
        return " AND ".join(self._same(i, value) for i, value in zip(compared, values, strict=True)), " LIMIT 1"

    def _same(self, position: int, value: str) -> str:
        column = self._target(position)
        if column.charset is not None:
            value = f"{value} COLLATE {self._engine.collation}" if value != "NULL" else value
        elif value != "NULL" and column.data_type in ("json", "float"):
            value = f"CAST({value} AS {column.data_type.upper()})"
        return f"{self._columns[position]} <=> {value}"

    # -- for people --------------------------------------------------------------------------------------------------------------

    def describe(self, change: Change) -> str:
        """Return the row's key, or its first columns."""
        _, _, old, new = change
        row = new if old is None else old
        return self.describe_row(row) if row else ""

    def describe_row(self, row: Sequence[Value]) -> str:
        """Return the row's key, or its first columns."""
        names = self.relation.names
        return described(row, names, self.key if self.key is not None else range(min(4, len(names))))
