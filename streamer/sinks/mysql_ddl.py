"""Tables of a MySQL or MariaDB target: their names, and the statements that make them.

A table of the schema public keeps its name, any other is named schema.table, or stands in a database of its schema's name, as the
node says. A name that the engine does not take (64 characters, none beyond the basic plane, no blank at the end, a file name of 255
bytes) is cut and ends with a hash of the whole. Columns of a key must fit into an index, so their text is limited: 3,072 bytes are
shared out among the columns of a key.

The traps: names of columns, and on some servers of tables, are compared without regard to case; two that would be one are refused.
A row's VARCHAR columns share 65,535 bytes, whatever they hold, so that the longest become LONGTEXT where there are many.

https://dev.mysql.com/doc/refman/8.4/en/identifiers.html, https://dev.mysql.com/doc/refman/8.4/en/innodb-limits.html
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from streamer.errors import SchemaError
from streamer.model import ColumnDefinition, TableDefinition, TableName
from streamer.sinks import defaults
from streamer.sinks.mysql_types import ColumnType, Engine, column_type
from streamer.sinks.mysql_values import TargetColumn, converter
from streamer.sinks.postgres_types import SourceType
from streamer.sinks.shared_names import refuse_tables, travelling
from streamer.sinks.unrepresentable import Unrepresentable

KEY_BYTES: Final = 3072
KEY_COLUMNS: Final = 16
ROW_BYTES: Final = 60_000
"""What the texts of limited length may take of a row's 65,535 bytes."""
_NAME: Final = 64
_FILE_NAME: Final = 240
OWN_TABLES: Final = ("streamer_progress", "streamer_copy", "streamer_copied_part", "streamer_quarantine")
"""What streamer keeps on such a target."""


def quote(name: str) -> str:
    """Return the identifier as SQL writes it."""
    return "`" + name.replace("`", "``") + "`"


def text(value: str) -> str:
    """Return the text as an SQL literal."""
    return "'" + value.replace("\\", "\\\\").replace("'", "''") + "'"


def safe_name(name: str) -> str:
    """Return the name as it is if the engine takes it, else what it is mapped to."""
    if len(name) <= _NAME and max(name, default="") <= "\uffff" and not name.endswith(" ") and _file_bytes(name) <= _FILE_NAME:
        return name
    kept = re.sub("[^\0-\uffff]", "_", name)[: _NAME - 9]
    if _file_bytes(kept) > _FILE_NAME - 9:
        kept = re.sub("[^0-9A-Za-z_]", "_", kept)
    return f"{kept}_{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _file_bytes(name: str) -> int:
    """The length of a table's file name, in which other characters are written @hhhh."""
    return sum(1 if c.isascii() and (c.isalnum() or c == "_") else 5 for c in name)


def fold_case(name: str) -> str:
    """Return what the engines compare names of columns by."""
    return name.lower()


@dataclass(frozen=True, slots=True)
class Names:
    """Where tables stand: `database` is the one of the node's url, `schemas` what the node says."""

    database: str
    schemas: Literal["prefix", "database"] = "prefix"

    def of(self, table: TableName) -> tuple[str, str]:
        """Return the unquoted names of the table's database and of the table there."""
        if table.schema == "public":
            return self.database, safe_name(table.name)
        if self.schemas == "database":
            return safe_name(table.schema), safe_name(table.name)
        return self.database, safe_name(str(table))

    def sql(self, table: TableName) -> str:
        """Return the table as SQL writes it, with its database."""
        return ".".join(map(quote, self.of(table)))

    def refuse_clashes(self, tables: Iterable[TableName]) -> None:
        """Raise SchemaError if two tables would share a name, or one would take ours."""
        tables = list(tables)
        for table in tables:
            if self._place(table)[1] in OWN_TABLES:
                raise SchemaError(f'table "{table}" cannot be replicated to MySQL: the name is reserved', "exclude the table")
        refuse_tables(tables, "MySQL", self._place)

    def _place(self, table: TableName) -> tuple[str, str]:
        """Some servers keep names in lower case."""
        database, name = self.of(table)
        return database.lower(), name.lower()


def create_table(definition: TableDefinition, engine: Engine, names: Names) -> list[str]:
    """Return the statements that make the table. Generated columns are left out: their values do not travel.

    Raises SchemaError if two columns would share a name, or there is none.
    """
    columns = travelling(definition, "MySQL", lambda name: fold_case(safe_name(name)))
    keys = _keys(definition, columns)
    types = _column_types(columns, keys, engine)
    lines = [_column(c, types[c.name], engine, in_key=bool(keys) and c.name in definition.primary_key) for c in columns]
    for number, key in enumerate(keys):
        listed = ", ".join(quote(safe_name(name)) for name in key)
        lines.append(f"PRIMARY KEY ({listed})" if key == definition.primary_key else f"UNIQUE KEY {quote(f'u{number}')} ({listed})")
    options = f"ENGINE=InnoDB ROW_FORMAT=DYNAMIC DEFAULT CHARSET=utf8mb4 COLLATE={engine.collation}"
    database, _ = names.of(definition.table)
    made = [f"CREATE DATABASE IF NOT EXISTS {quote(database)}"] if database != names.database else []
    return [*made, f"CREATE TABLE {names.sql(definition.table)} (\n    " + ",\n    ".join(lines) + f"\n) {options}"]


def declared_types(definition: TableDefinition, engine: Engine) -> dict[str, str]:
    """Return how `create_table` declares each column. Raises SchemaError, as that."""
    columns = travelling(definition, "MySQL", lambda name: fold_case(safe_name(name)))
    return _column_types(columns, _keys(definition, columns), engine)


def missing_column(table: TableName, column: ColumnDefinition, engine: Engine, names: Names) -> SchemaError:
    """Return the error for a column that the target's table lacks."""
    kind = column_type(SourceType.of(column), engine).sql(engine)
    return SchemaError(
        f'table "{table}" has no column "{column.name}" on the target',
        f"there: ALTER TABLE {names.sql(table)} ADD COLUMN {quote(safe_name(column.name))} {kind}",
    )


def _keys(definition: TableDefinition, columns: Sequence[ColumnDefinition]) -> list[tuple[str, ...]]:
    """The keys that the target can have too, the primary one first."""
    there = {c.name for c in columns}
    keys = [key for key in (definition.primary_key, *definition.unique_keys) if key and there.issuperset(key)]
    return [key for key in dict.fromkeys(keys) if len(key) <= KEY_COLUMNS]


def _column_types(columns: Sequence[ColumnDefinition], keys: Sequence[tuple[str, ...]], engine: Engine) -> dict[str, str]:
    """How each column is declared."""
    kinds = {c.name: column_type(SourceType.of(c), engine) for c in columns}
    shares: dict[str, int] = {}
    for key in keys:
        for name, left in _shares({name: kinds[name] for name in key}).items():
            shares[name] = min(left, shares.get(name, KEY_BYTES))
    spent = sum(shares.values())
    found = {}
    for column in sorted(columns, key=lambda c: kinds[c.name].chars or 0):
        kind, share = kinds[column.name], shares.get(column.name)
        if share is None and not kind.fixed and kind.chars is not None:
            spent += 4 * kind.chars
            kind = kind if spent <= ROW_BYTES else ColumnType()
        found[column.name] = kind.sql(engine, share)
    return found


def _shares(kinds: dict[str, ColumnType]) -> dict[str, int]:
    """Share the bytes of an index out among its columns: those that need little get it, the others the same each."""
    left, shares = KEY_BYTES, {}
    modest_first = sorted(kinds.items(), key=lambda item: item[1].key_bytes or math.inf)
    for place, (name, kind) in enumerate(modest_first):
        share, need = left // (len(kinds) - place), kind.key_bytes
        shares[name] = share if need is None else min(need, share)
        left -= shares[name]
    return shares


def _column(column: ColumnDefinition, declared: str, engine: Engine, *, in_key: bool) -> str:
    default = _default(column, declared, engine)
    not_null = " NOT NULL" if column.not_null or in_key else ""
    return f"{quote(safe_name(column.name))} {declared}{not_null}{f' DEFAULT {default}' if default else ''}"


def _default(column: ColumnDefinition, declared: str, engine: Engine) -> str | None:
    """The default in parentheses, without which texts of any length take none."""
    expression = column.default
    if expression is None or column.generated:
        return None
    if defaults.is_now(expression) and declared.startswith("DATETIME"):
        places = declared[len("DATETIME") : declared.index(")") + 1]
        in_utc = SourceType.of(column).name == "timestamp with time zone"
        return f"({'UTC_TIMESTAMP' if in_utc else 'CURRENT_TIMESTAMP'}{places})"
    if expression == "CURRENT_DATE" and declared == "DATE":
        return "(CURRENT_DATE)"
    if expression in ("gen_random_uuid()", "uuid_generate_v4()") and SourceType.of(column).name == "uuid":
        return "(UUID())"
    value = defaults.constant(expression)
    return None if value is None else _literal(value, column, declared)


def _literal(value: str, column: ColumnDefinition, declared: str) -> str | None:
    convert = converter(column.base_oid or column.type_oid, declared_column(column.name, declared))
    try:
        made = value if convert is None else convert(value)
    except Unrepresentable:
        return None
    if isinstance(made, bytes):
        return f"(X'{made.hex()}')"
    return f"({made})" if _NUMBER.match(declared) else f"({text(str(made))})"


_NUMBER: Final = re.compile("TINYINT|SMALLINT|INT|BIGINT|DECIMAL|DOUBLE")
_DECLARED: Final = re.compile(r"(\w+)(?:\((\d+)(?:,(\d+))?\))?")
_LENGTHS: Final = {"longtext": 2**32 - 1, "longblob": 2**32 - 1}


def declared_column(name: str, declared: str) -> TargetColumn:
    """Return a column as information_schema would tell it, by the type that `create_table` declares it with."""
    match = _DECLARED.match(declared)
    assert match is not None
    kind, first = match[1].lower(), int(match[2]) if match[2] else None
    return TargetColumn(
        name,
        kind,
        declared.partition(" CHARACTER SET")[0].lower(),
        length=_LENGTHS.get(kind, first),
        precision=first,
        scale=int(match[3]) if match[3] else None,
        fraction=first,
        charset="utf8mb4" if " CHARACTER SET utf8mb4" in declared else None,
    )
