"""Tables of an SQLite target: their names and types, the statements that make them, and what a file really has.

A table of the schema public keeps its name, any other is named schema.table. Types are chosen so that no value changes:
integers and booleans INTEGER, floats REAL, bytea BLOB, all else TEXT (numeric too: as REAL it would lose digits).

The trap: SQLite compares names without regard to the case of ASCII letters, PostgreSQL does not. Two tables that only differ
by case would become one; they are refused.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from streamer.errors import SchemaError
from streamer.model import TableDefinition, TableName

BOOL: Final = 16
BYTEA: Final = 17
FLOATS: Final = (700, 701)
_INTEGERS: Final = (20, 21, 23, 26)  # int8, int2, int4, oid
_TYPES: Final = dict.fromkeys((*_INTEGERS, BOOL), "INTEGER") | dict.fromkeys(FLOATS, "REAL") | {BYTEA: "BLOB"}
_OWN: Final = ("streamer_progress", "streamer_copy")


def quote(name: str) -> str:
    """Return the identifier as SQL writes it."""
    return '"' + name.replace('"', '""') + '"'


def fold_case(name: str) -> str:
    """Return what SQLite compares names by."""
    return name.encode().lower().decode()  # bytes: ASCII letters only, as SQLite does


def target_name(table: TableName) -> str:
    """Return the unquoted name of the table in SQLite."""
    return table.name if table.schema == "public" else str(table)


def declared_type(type_oid: int) -> str:
    """Return the type that a column of this PostgreSQL type is declared with."""
    return _TYPES.get(type_oid, "TEXT")


def create_table(definition: TableDefinition) -> str:
    """Return the statement that makes the table. Generated columns are left out: their values do not travel."""
    columns = [c for c in definition.columns if not c.generated]
    key = definition.primary_key if {c.name for c in columns}.issuperset(definition.primary_key) else ()
    lines = [f"{quote(c.name)} {declared_type(c.type_oid)}{' NOT NULL' if c.not_null or c.name in key else ''}" for c in columns]
    if key:
        lines.append(f"PRIMARY KEY ({', '.join(map(quote, key))})")
    return f"CREATE TABLE {quote(target_name(definition.table))} (\n    " + ",\n    ".join(lines) + "\n)"


def missing_column(table: TableName, column: str, type_oid: int) -> SchemaError:
    """Return the error for a column that the target's table lacks."""
    return SchemaError(
        f'table "{table}" has no column "{column}" on the target',
        f"there: ALTER TABLE {quote(target_name(table))} ADD COLUMN {quote(column)} {declared_type(type_oid)}",
    )


def refuse_clashes(tables: Iterable[TableName]) -> None:
    """Raise SchemaError if two tables would share a name in SQLite, or one would take ours."""
    taken: dict[str, TableName] = {}
    for table in tables:
        name = fold_case(target_name(table))
        if name in _OWN or name.startswith("sqlite_"):
            raise SchemaError(f'table "{table}" cannot be replicated to SQLite: the name is reserved', "exclude the table")
        if (other := taken.setdefault(name, table)) != table:
            raise SchemaError(f'tables "{other}" and "{table}" would share a name in SQLite', "exclude one of them")


@dataclass(frozen=True, slots=True)
class TargetTable:
    """A table as it is in the file. Column names are folded by `fold_case`."""

    columns: frozenset[str]
    generated: frozenset[str]
    #: sets of columns that no two rows share and that are never NULL, the primary key first
    keys: tuple[frozenset[str], ...]
    #: a name by which the rowid is reached
    rowid: str


def inspect(connection: sqlite3.Connection, table: TableName) -> TargetTable | None:
    """Return what the file has of the table, None if nothing. Raises sqlite3.Error."""
    name = quote(target_name(table))
    rows = connection.execute(f"PRAGMA table_xinfo({name})").fetchall()
    if not rows:
        return None
    columns = {fold_case(column): (kind, not_null, hidden) for _, column, kind, not_null, _, _, hidden in rows}
    generated = frozenset(c for c, (_, _, hidden) in columns.items() if hidden in (2, 3))
    primary = [fold_case(column) for _, column, _, _, _, place, _ in rows if place]
    alias = len(primary) == 1 and columns[primary[0]][0].upper() == "INTEGER"  # the rowid itself, so never NULL
    solid = {c for c, (_, not_null, _) in columns.items() if not_null} | (set(primary) if alias else set())
    keys = [frozenset(primary)] if primary else []
    for _, index, unique, _, partial in connection.execute(f"PRAGMA index_list({name})").fetchall():
        if unique and not partial:
            members = [column for _, _, column in connection.execute(f"PRAGMA index_info({quote(index)})")]
            keys.append(frozenset("" if c is None else fold_case(c) for c in members))  # "": an expression
    rowid = next((r for r in ("rowid", "_rowid_") if r not in columns), "oid")
    return TargetTable(frozenset(columns), generated, tuple(k for k in keys if k <= solid), rowid)


def read_target(connection: sqlite3.Connection, node: str, table: TableName) -> TargetTable:
    """Return the table as it is in the file. Raises SchemaError if there is none, sqlite3.Error."""
    found = inspect(connection, table)
    if found is None:
        of = f' for "{table}"' if table.schema == "public" else ""
        raise SchemaError(f'node "{node}" has no table "{target_name(table)}"{of}', "run: streamer setup")
    return found


def differences(connection: sqlite3.Connection, node: str, definitions: Sequence[TableDefinition]) -> list[SchemaError]:
    """Return what the file lacks to take rows of `definitions`, as the errors that writing would raise. Changes nothing.

    Raises SchemaError if two of them would share a name, sqlite3.Error.
    """
    refuse_clashes(d.table for d in definitions)
    return [lack for d in definitions for lack in _lacks(connection, node, d)]


def _lacks(connection: sqlite3.Connection, node: str, definition: TableDefinition) -> Iterator[SchemaError]:
    try:
        target = read_target(connection, node, definition.table)
    except SchemaError as error:
        yield error
        return
    for column in definition.columns:
        if not column.generated and fold_case(column.name) not in target.columns:
            yield missing_column(definition.table, column.name, column.type_oid)
