"""How one relation is written into one PostgreSQL table: the SQL of every step, made once per version of the relation.

A few rows go as prepared statements, some hundred as the arrays of one (postgres_arrays), many through COPY: inserts straight into
the table, updates and deletes into a temporary table that is joined by key. The traps: a generated column may not be written;
GENERATED ALWAYS AS IDENTITY wants OVERRIDING; a join with a fresh temporary table must not become a scan of the target, so hash and
merge joins are off where an index has the key.
"""

from __future__ import annotations

import zlib
from collections.abc import Collection, Iterable, Sequence
from functools import cached_property
from operator import itemgetter

from streamer.errors import SchemaError
from streamer.model import UNCHANGED, Identity, Relation, Row, Value
from streamer.session import Connection
from streamer.sinks.postgres_table import TargetTable, TargetType, quote, quoted, read_target, read_targets


class TableWriter:
    """The statements for one version of a relation on one target. Placeholders are psycopg's; literal % are doubled."""

    def __init__(self, relation: Relation, target: TargetTable, node: str) -> None:
        missing = [c for c in relation.names if c not in target.columns]
        if missing:
            raise SchemaError(
                f'column "{missing[0]}" of table {relation} is missing on "{node}"',
                f"there: ALTER TABLE {quoted(target.table)} ADD COLUMN {quote(missing[0])} …; or RENAME COLUMN, if the source did",
            )
        self.relation = relation
        self._target = target
        self._node = node
        self.name = quoted(target.table)
        self.rows = target.rows
        #: indexes of the relation's columns that may be written
        self.written = tuple(i for i, c in enumerate(relation.names) if not target.columns[c].generated)
        self._always = tuple(i for i, c in enumerate(relation.names) if target.columns[c].always_identity)
        self.key = self._choose_key()
        self.indexed = self.key is not None and any({relation.names[i] for i in self.key} >= set(k) for k in target.keys)
        self._columns = tuple(quote(c) for c in relation.names)
        self._all = tuple(range(len(relation.names)))

    def _choose_key(self) -> tuple[int, ...] | None:
        """The relation's key; with FULL and none, a key of the target; None if rows can only be told by all their values."""
        relation = self.relation
        if relation.key:
            return relation.key
        if relation.identity is Identity.FULL:
            for names in self._target.keys:
                if all(name in relation.names for name in names):
                    return tuple(relation.names.index(name) for name in names)
        return None

    @cached_property
    def insert(self) -> str:
        """INSERT of one row, of the written columns."""
        if not self.written:
            return f"INSERT INTO {_doubled(self.name)} DEFAULT VALUES"
        return f"{self._into} VALUES ({', '.join(map(self.placeholder, self.written))})"

    def insert_from(self, rows: str) -> str:
        """INSERT of all that `rows` has, a subquery of the written columns; parameters are its own."""
        return f"{self._into} SELECT * FROM {rows} AS s"

    @property
    def _into(self) -> str:
        overriding = " OVERRIDING SYSTEM VALUE" if self._always else ""
        return _doubled(f"INSERT INTO {self.name} ({self._list(self.written)}){overriding}")

    @cached_property
    def copy(self) -> str:
        """COPY of rows into the table, of the written columns."""
        return copy_into(self.name, [self._columns[i] for i in self.written])

    def pick(self, columns: Sequence[int], rows: Sequence[Row]) -> Sequence[Row]:
        """Return the rows reduced to these columns."""
        if tuple(columns) == self._all:
            return rows
        if len(columns) == 1:
            only = columns[0]
            return [(row[only],) for row in rows]
        return list(map(itemgetter(*columns), rows)) if columns else [() for _ in rows]

    def assigned(self, present: Sequence[int], key: Sequence[int]) -> tuple[int, ...]:
        """The columns that an update of rows with these columns sets: not the key, not what is generated or always identity."""
        return tuple(i for i in present if i not in key and i in self.written and i not in self._always)

    def require_assignable(self, old: Row, new: Row) -> None:
        """Raise SchemaError if an update gives another value to a column that the target lets nobody update."""
        for i in self._always:
            if old[i] != new[i] and UNCHANGED not in (old[i], new[i]):
                name = quote(self.relation.names[i])
                raise SchemaError(
                    f'table {self.relation}: an update changes {name}, which "{self._node}" generates always as identity',
                    f"there: ALTER TABLE {self.name} ALTER COLUMN {name} SET GENERATED BY DEFAULT",
                )

    def update_where(self, assigned: Sequence[int], condition: str) -> str:
        """UPDATE of one row; parameters are the assigned values, then the condition's."""
        return self.update_setting([f"{self.column(i)} = {self.placeholder(i)}" for i in assigned], condition)

    def update_setting(self, assignments: Sequence[str], condition: str) -> str:
        """UPDATE of one row, `t`, by these assignments; parameters are theirs, then the condition's."""
        sets = ", ".join(assignments)
        return f"UPDATE {self.place} AS t SET {sets} WHERE {condition}"

    def delete_where(self, condition: str) -> str:
        """DELETE of one row; parameters are the condition's."""
        return f"DELETE FROM {self.place} AS t WHERE {condition}"

    def by_key(self, key: Sequence[int]) -> str:
        """The condition for the row with a key; parameters are the key's values."""
        return " AND ".join(f"{_doubled(self.compared(i))} {self.equals(i)} {self.placeholder(i)}" for i in key)

    def match(self, old: Row) -> tuple[str, list[Value]]:
        """The condition for exactly one row that equals `old` in all columns that it carries, and its parameters."""
        tests: list[str] = []
        parameters: list[Value] = []
        for i, value in enumerate(old):
            if value is UNCHANGED or i not in self.written:
                continue
            column = _doubled(self._columns[i])
            if value is None:
                tests.append(f"{column} IS NULL")
                continue
            equal = f"{_doubled(self.compared(i))} = {self.placeholder(i)}"
            # what cannot be compared, or is only in part (a box by its area), is compared as this server writes it
            has_equality = self._type(i).has_equality
            tests.append(equal if has_equality else f"{column}::text = {self.placeholder(i)}::text")
            parameters.append(value)
        condition = " AND ".join(tests) or "true"
        return f"(tableoid, ctid) = (SELECT tableoid, ctid FROM {self.place} WHERE {condition} LIMIT 1)", parameters

    def stage(self, columns: Sequence[int]) -> str:
        """The name of the temporary table for these columns."""
        identity = f"{self.name} {[self._columns[i] for i in columns]}"
        return f"pg_temp.streamer_{zlib.crc32(identity.encode()):08x}_{len(columns)}"

    def create_stage(self, columns: Sequence[int]) -> str:
        """CREATE of the temporary table: the target's types, none of its constraints."""
        table = self.stage(columns).removeprefix("pg_temp.")
        chosen = self._list(columns)
        return f"CREATE TEMPORARY TABLE {table} ON COMMIT DELETE ROWS AS SELECT {chosen} FROM {self.name} WITH NO DATA"

    def copy_stage(self, columns: Sequence[int]) -> str:
        """COPY of rows into the temporary table."""
        return copy_into(self.stage(columns), [self._columns[i] for i in columns])

    def update_from(self, rows: str, assigned: Sequence[int], key: Sequence[int]) -> str:
        """UPDATE of all that `rows` has, the name of a temporary table or a subquery; parameters are its own."""
        sets = ", ".join(f"{self.column(i)} = s.{self.column(i)}" for i in assigned)
        return f"UPDATE {self.place} AS t SET {sets} FROM {rows} AS s WHERE {_doubled(self._joined(key))}"

    def delete_by(self, rows: str, key: Sequence[int]) -> str:
        """DELETE of all whose keys `rows` has, the name of a temporary table or a subquery; parameters are its own."""
        return f"DELETE FROM {self.place} AS t USING {rows} AS s WHERE {_doubled(self._joined(key))}"

    def _joined(self, key: Sequence[int]) -> str:
        return " AND ".join(f"t.{self.compared(i)} {self.equals(i)} s.{self.compared(i)}" for i in key)

    def _list(self, columns: Sequence[int]) -> str:
        return ", ".join(self._columns[i] for i in columns)

    def guarded(self, guard: str) -> GuardedWriter:
        """Return the same writer, whose updates and deletes find a row, `t`, only if it fulfils the condition `guard`."""
        return GuardedWriter(self.relation, self._target, self._node, guard)

    def column(self, column: int) -> str:
        """The column's name in a statement with placeholders."""
        return _doubled(self._columns[column])

    def compared(self, column: int) -> str:
        """The column as it is compared: no operator takes a domain over an enum, with a cast it still finds the index."""
        cast = f"::{self.base_type(column)}" if self._type(column).enum_domain else ""
        return f"{self._columns[column]}{cast}"

    def equals(self, column: int) -> str:
        """The operator by which values of the column are equal."""
        return self._type(column).equals

    @property
    def place(self) -> str:
        """The table in a statement with placeholders that looks at rows."""
        return _doubled(self.rows)

    def placeholder(self, column: int) -> str:
        """The placeholder for a value of the column: cast, because not every statement tells its type."""
        return f"%s::{self.type_of(column)}"

    def _type(self, column: int) -> TargetType:
        return self._target.columns[self.relation.names[column]].type

    def type_of(self, column: int) -> str:
        """The column's type on the target, without modifiers, in a statement with placeholders."""
        return _doubled(self.base_type(column))

    def in_arrays(self, column: int) -> bool:
        """Whether values of the column can travel as elements of an array of their type."""
        return self._type(column).in_arrays

    def base_type(self, column: int) -> str:
        """The column's type on the target, without modifiers."""
        return self._type(column).base_type

    @property
    def own_casts(self) -> bool:
        """Whether a cast from text may not be what the type of some column reads."""
        return any(self._target.columns[name].type.own_cast for name in self.relation.names)

    def others(self, key: Sequence[int]) -> tuple[tuple[int, ...], ...]:
        """The unique keys besides `key`, as far as the relation has their columns."""
        return tuple(u for u in self._indexes(self._target.uniques) if set(u) != set(key))

    @property
    def nulls_alike(self) -> frozenset[tuple[int, ...]]:
        """The unique keys in which a NULL is like another one."""
        return frozenset(self._indexes(self._target.nulls_alike))

    def _indexes(self, keys: Iterable[tuple[str, ...]]) -> list[tuple[int, ...]]:
        index = {name: i for i, name in enumerate(self.relation.names)}
        return [tuple(index[n] for n in names) for names in keys if all(n in index for n in names)]

    def describe(self, row: Row) -> str:
        """The row's key for people, as in `id=5`; all that is known where there is no key."""
        key = self.key or [i for i, v in enumerate(row) if v is not UNCHANGED]
        shown = ", ".join(f"{self.relation.names[i]}={_shortened(row[i])}" for i in key[:4])
        return shown + (", …" if len(key) > 4 else "")


class GuardedWriter(TableWriter):
    """Its updates and deletes find a row, `t`, only if it fulfils a condition as well."""

    def __init__(self, relation: Relation, target: TargetTable, node: str, guard: str) -> None:
        super().__init__(relation, target, node)
        self._guard = guard

    def by_key(self, key: Sequence[int]) -> str:
        """The condition for the row with a key, and the guard."""
        return f"{super().by_key(key)} AND {_doubled(self._guard)}"

    def _joined(self, key: Sequence[int]) -> str:
        return f"{super()._joined(key)} AND {self._guard}"


class TableWriters:
    """The writers of a connection's tables, made when they are first asked for."""

    def __init__(self, connection: Connection, node: str) -> None:
        self.node = node
        self._connection = connection
        self._known: dict[Relation, TableWriter] = {}

    def meet(self, relations: Collection[Relation]) -> None:
        """Look up those that are new, at once: a thousand tables one by one take a second. Raises SchemaError, psycopg.Error."""
        new = [relation for relation in relations if relation not in self._known]
        tables = read_targets(self._connection, {relation.table for relation in new}) if len(new) > 1 else {}
        self._known |= {r: TableWriter(r, tables[r.table], self.node) for r in new if r.table in tables}

    def of(self, relation: Relation) -> TableWriter:
        """Return the writer of a relation. Raises SchemaError, psycopg.Error."""
        writer = self._known.get(relation)
        if writer is None:
            writer = self._known[relation] = TableWriter(
                relation, read_target(self._connection, self.node, relation.table), self.node
            )
        return writer

    def key_of(self, relation: Relation) -> tuple[int, ...] | None:
        """Return the columns by which its rows are found. Raises as `of`."""
        return self.of(relation).key


def copy_into(table: str, columns: Sequence[str]) -> str:
    """Return the COPY statement that takes rows in text format; a table without columns takes none."""
    listed = f" ({', '.join(columns)})" if columns else ""
    return f"COPY {table}{listed} FROM STDIN"


def _doubled(text: str) -> str:
    return text.replace("%", "%%")


def _shortened(value: object) -> str:
    text = "NULL" if value is None else str(value)
    return text if len(text) <= 40 else text[:39] + "…"
