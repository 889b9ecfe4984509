"""Tables of an SQLite target: their names, the statements that make them, and what a file really has.

A table of the schema public keeps its name, any other is named schema.table. Tables are made STRICT where the library knows that
(3.37 and later), so that nobody puts into them what PostgreSQL would not take; tables that exist are taken as they are.

The trap: SQLite compares names without regard to the case of ASCII letters, PostgreSQL does not. Two tables that only differ
by case would become one; they are refused.

https://www.sqlite.org/stricttables.html
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from streamer.errors import SchemaError
from streamer.model import ColumnDefinition, TableDefinition, TableName
from streamer.sinks.defaults import constant
from streamer.sinks.postgres_types import BOOLEAN, TYPES, SourceType
from streamer.sinks.shared_names import refuse_tables, travelling
from streamer.sinks.sqlite_types import HAS_STRICT, column_type
from streamer.sinks.sqlite_values import conversion
from streamer.sinks.unrepresentable import Unrepresentable

BOOL: Final = BOOLEAN
OWN_TABLES: Final = ("streamer_progress", "streamer_copy", "streamer_copied_part", "streamer_quarantine")
"""What streamer keeps on such a target."""


def quote(name: str) -> str:
    """Return the identifier as SQL writes it."""
    return '"' + name.replace('"', '""') + '"'


def fold_case(name: str) -> str:
    """Return what SQLite compares names by."""
    return name.encode().lower().decode()  # bytes: ASCII letters only, as SQLite does


def target_name(table: TableName) -> str:
    """Return the unquoted name of the table in SQLite."""
    return table.name if table.schema == "public" else str(table)


def declared_type(type_oid: int, *, strict: bool = False) -> str:
    """Return the type that a column of this PostgreSQL type, which is no domain, is declared with."""
    return column_type(SourceType(TYPES.get(type_oid, "other")), strict=strict)


def create_table(definition: TableDefinition, *, strict: bool = HAS_STRICT) -> str:
    """Return the statement that makes the table. Generated columns are left out: their values do not travel.

    Raises SchemaError if two columns would share a name, or there is none.
    """
    columns = travelling(definition, "SQLite", fold_case)
    there = {c.name for c in columns}
    keys = [key for key in (definition.primary_key, *definition.unique_keys) if key and there.issuperset(key)]
    primary = definition.primary_key if definition.primary_key in keys else ()
    lines = [_column(c, in_key=c.name in primary, strict=strict) for c in columns]
    lines += [f"{'PRIMARY KEY' if key == primary else 'UNIQUE'} ({', '.join(map(quote, key))})" for key in dict.fromkeys(keys)]
    body = ",\n    ".join(lines)
    return f"CREATE TABLE {quote(target_name(definition.table))} (\n    {body}\n){' STRICT' if strict else ''}"


def _column(column: ColumnDefinition, *, in_key: bool, strict: bool) -> str:
    declared = column_type(SourceType.of(column), strict=strict)
    not_null = " NOT NULL" if column.not_null or in_key else ""
    default = _default(column, declared, strict=strict)
    return f"{quote(column.name)} {declared}{not_null}{f' DEFAULT {default}' if default else ''}"


def _default(column: ColumnDefinition, declared: str, *, strict: bool) -> str | None:
    """A constant default as SQL writes it; the current time has another form in SQLite than PostgreSQL's text."""
    value = None if column.default is None else constant(column.default)
    if value is None:
        return None
    convert = conversion(column.base_oid or column.type_oid, declared, strict=strict)
    try:
        made = value if convert is None else convert(value)
    except (Unrepresentable, ValueError):
        return None
    if isinstance(made, bytes):
        return f"x'{made.hex()}'"
    if declared == "INTEGER" or isinstance(made, int | float):
        return str(made)
    return "'" + made.replace("'", "''") + "'"


def missing_column(table: TableName, column: str, type_oid: int, *, strict: bool = False) -> SchemaError:
    """Return the error for a column that the target's table lacks."""
    kind = declared_type(type_oid, strict=strict)
    return SchemaError(
        f'table "{table}" has no column "{column}" on the target',
        f"there: ALTER TABLE {quote(target_name(table))} ADD COLUMN {quote(column)} {kind}",
    )


def refuse_clashes(tables: Iterable[TableName]) -> None:
    """Raise SchemaError if two tables would share a name in SQLite, or one would take ours."""
    tables = list(tables)
    for table in tables:
        name = fold_case(target_name(table))
        if name in OWN_TABLES or name.startswith("sqlite_"):
            raise SchemaError(f'table "{table}" cannot be replicated to SQLite: the name is reserved', "exclude the table")
    refuse_tables(tables, "SQLite", lambda table: fold_case(target_name(table)))


@dataclass(frozen=True, slots=True)
class TargetTable:
    """A table as it is in the file. Column names are folded by `fold_case`."""

    columns: frozenset[str]
    generated: frozenset[str]
    #: sets of columns that no two rows share and that are never NULL, the primary key first
    keys: tuple[frozenset[str], ...]
    #: a name by which the rowid is reached
    rowid: str
    #: how columns are declared, in upper case
    types: dict[str, str] = field(default_factory=dict)
    not_null: frozenset[str] = frozenset()
    strict: bool = False
    #: columns that an insert must name: neither NULL, nor a default
    required: frozenset[str] = frozenset()

    def type_of(self, column: str) -> str:
        """How a column is declared, in upper case; empty if it is not, or not there."""
        return self.types.get(fold_case(column), "")


def inspect(connection: sqlite3.Connection, table: TableName) -> TargetTable | None:
    """Return what the file has of the table, None if nothing. Raises sqlite3.Error."""
    name = quote(target_name(table))
    rows = connection.execute(f"PRAGMA table_xinfo({name})").fetchall()
    if not rows:
        return None
    columns = {fold_case(column): (kind.upper(), not_null, hidden) for _, column, kind, not_null, _, _, hidden in rows}
    defaults = {fold_case(column) for _, column, _, _, default, _, hidden in rows if default is not None or hidden}
    primary = [fold_case(column) for _, column, _, _, _, place, _ in rows if place]
    alias = len(primary) == 1 and columns[primary[0]][0] == "INTEGER"  # the rowid itself, so never NULL
    solid = {c for c, (_, not_null, _) in columns.items() if not_null} | (set(primary) if alias else set())
    keys = [frozenset(primary)] if primary else []
    for _, index, unique, _, partial in connection.execute(f"PRAGMA index_list({name})").fetchall():
        if unique and not partial:
            members = [column for _, _, column in connection.execute(f"PRAGMA index_info({quote(index)})")]
            keys.append(frozenset("" if c is None else fold_case(c) for c in members))  # "": an expression
    return TargetTable(
        frozenset(columns),
        frozenset(c for c, (_, _, hidden) in columns.items() if hidden in (2, 3)),
        tuple(k for k in keys if k <= solid),
        next((r for r in ("rowid", "_rowid_") if r not in columns), "oid"),
        {c: kind for c, (kind, _, _) in columns.items()},
        frozenset(solid),
        _is_strict(connection, name),
        frozenset(solid - defaults - (set(primary) if alias else set())),
    )


def _is_strict(connection: sqlite3.Connection, name: str) -> bool:
    """Whether the table is STRICT; where the library does not know that, no table is."""
    rows = connection.execute(f"PRAGMA table_list({name})").fetchall() if HAS_STRICT else []
    return any(strict for schema, *_, strict in rows if schema == "main")


def read_target(connection: sqlite3.Connection, node: str, table: TableName) -> TargetTable:
    """Return the table as it is in the file. Raises SchemaError if there is none, sqlite3.Error."""
    found = inspect(connection, table)
    if found is None:
        of = f' for "{table}"' if table.schema == "public" else ""
        raise SchemaError(f'node "{node}" has no table "{target_name(table)}"{of}', "run: streamer setup")
    return found
