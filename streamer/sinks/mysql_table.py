"""A table of a MySQL or MariaDB target as it really is: columns, which of them are generated, and what is unique.

Columns are found by mysql_ddl.fold_case and safe_name. The trap: a unique index over a prefix of a column, or
over one that may be NULL, does not tell rows apart.

https://dev.mysql.com/doc/refman/8.4/en/information-schema-statistics-table.html
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter

from streamer.errors import SchemaError
from streamer.model import TableName
from streamer.sinks.mysql_ddl import Names, fold_case, quote, safe_name
from streamer.sinks.mysql_session import Connection
from streamer.sinks.mysql_values import TargetColumn

_WHERE = "WHERE table_schema = %s AND table_name = %s"
_TABLE = f"SELECT table_type, engine FROM information_schema.tables {_WHERE}"
_COLUMNS = (
    "SELECT column_name, data_type, column_type, character_maximum_length, numeric_precision, numeric_scale, datetime_precision, "
    "character_set_name, is_nullable, collation_name, coalesce(generation_expression, '') <> '', "
    "is_nullable = 'NO' AND column_default IS NULL AND extra NOT LIKE '%%auto_increment%%' "
    f"FROM information_schema.columns {_WHERE} ORDER BY ordinal_position"
)
_KEYS = (
    f"SELECT index_name, column_name, sub_part FROM information_schema.statistics {_WHERE} AND non_unique = 0 "
    "ORDER BY index_name <> 'PRIMARY', index_name, seq_in_index"
)


@dataclass(frozen=True, slots=True)
class TargetTable:
    """A table as it is on the server. Column names are folded by `fold_case`; values are compared to see what changed."""

    columns: dict[str, TargetColumn]
    generated: frozenset[str]
    #: sets of columns that no two rows share, the primary key first
    unique: tuple[frozenset[str], ...]
    #: of text columns
    collations: dict[str, str]
    #: columns that an insert must name: neither NULL, nor a default
    required: frozenset[str] = frozenset()

    def column(self, name: str) -> TargetColumn | None:
        """The column for one of the source's."""
        return self.columns.get(fold_case(safe_name(name)))

    def is_generated(self, name: str) -> bool:
        """Whether the target makes the values of a column of the source."""
        return fold_case(safe_name(name)) in self.generated

    @property
    def keys(self) -> tuple[frozenset[str], ...]:
        """Those of `unique` that are never NULL."""
        return tuple(k for k in self.unique if not any(self.columns[c].nullable for c in k))


def inspect(connection: Connection, names: Names, table: TableName) -> TargetTable | None:
    """Return what the server has of the table, None if nothing.

    Raises SchemaError if that cannot be written in transactions, pymysql.MySQLError.
    """
    place = names.of(table)
    found = connection.rows(_TABLE, place)
    if not found:
        return None
    ((kind, engine),) = found
    if engine != "InnoDB":
        if kind != "BASE TABLE":
            raise SchemaError(f'table "{table}" is a view on the target', "drop it there, then run: streamer setup")
        raise SchemaError(
            f'table "{table}" has the engine {engine} on the target, which knows no transactions',
            f"there: ALTER TABLE {names.sql(table)} ENGINE = InnoDB",
        )
    return _described(connection.rows(_COLUMNS, place), connection.rows(_KEYS, place))


def _described(columns: Sequence[tuple[object, ...]], keys: Sequence[tuple[object, ...]]) -> TargetTable:
    known: dict[str, TargetColumn] = {}
    collations: dict[str, str] = {}
    generated, required = set(), set()
    for name, data_type, column_type, length, precision, scale, fraction, charset, nullable, collation, made, needed in columns:
        folded = fold_case(_text(name))
        known[folded] = TargetColumn(
            _text(name),
            _text(data_type).lower(),
            _text(column_type),
            _number(length),
            _number(precision),
            _number(scale),
            _number(fraction),
            None if charset is None else _text(charset),
            _text(nullable) == "YES",
        )
        if collation is not None:
            collations[folded] = _text(collation)
        if made:
            generated.add(folded)
        elif needed:
            required.add(folded)
    unique = []
    for _, members in groupby(keys, key=itemgetter(0)):
        parts = list(members)
        if all(column is not None and prefix is None for _, column, prefix in parts):  # no column: an expression
            unique.append(frozenset(fold_case(_text(column)) for _, column, _ in parts))
    return TargetTable(known, frozenset(generated), tuple(unique), collations, frozenset(required))


def _text(value: object) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _number(value: object) -> int | None:
    return None if value is None else int(str(value))


def read_target(connection: Connection, node: str, names: Names, table: TableName) -> TargetTable:
    """Return the table as it is on the server. Raises SchemaError if there is none, or it cannot be written, pymysql.MySQLError."""
    found = inspect(connection, names, table)
    if found is None:
        raise SchemaError(f'node "{node}" has no table {names.sql(table)} for "{table}"', "run: streamer setup")
    return found


def require_columns(target: TargetTable, names: Names, table: TableName, columns: Sequence[str]) -> None:
    """Raise SchemaError for a column that the target's table lacks."""
    for name in columns:
        if target.column(name) is None:
            raise SchemaError(
                f'table "{table}" has no column "{name}" on the target',
                f"there: ALTER TABLE {names.sql(table)} ADD COLUMN {quote(safe_name(name))} …; streamer ddl shows its type; "
                "or RENAME COLUMN, if the source did",
            )


def require_key(target: TargetTable, names: Names, table: TableName, key: Sequence[str]) -> None:
    """Raise SchemaError if nothing on the target keeps rows with these key columns apart: each would be searched in all rows."""
    wanted = {fold_case(safe_name(name)) for name in key}
    if not any(unique <= wanted for unique in target.unique):
        raise SchemaError(
            f'table "{table}" has no primary key or unique index over ({", ".join(key)}) on the target',
            f"there: ALTER TABLE {names.sql(table)} ADD PRIMARY KEY ({', '.join(quote(safe_name(name)) for name in key)})",
        )
