"""Tables that a PostgreSQL target has under another name or with fewer columns, as statements that make them.

pg_dump only writes tables as they are; so these are made from the catalog: columns with their types, NOT NULL, the primary key and
unique keys. Defaults, checks, foreign keys and other indexes may name what does not travel, and are left to the user.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from streamer.capture.definition import needed_creations
from streamer.capture.definition_types import quote
from streamer.model import Creation, TableDefinition, TableName
from streamer.session import Connection


def recast_creations(
    connection: Connection, tables: Sequence[TableName], recast: Sequence[TableDefinition], target: int
) -> list[Creation]:
    """Return what makes the tables as they are `recast` on a server of version `target`, with the types that they need.

    Raises SchemaError if a column's type cannot be made from the catalog, psycopg.Error.
    """
    needed = [c for c in needed_creations(connection, tables, target) if c.kind in ("schema", "extension", "type")]
    schemas = {c.name.schema for c in needed if c.kind != "schema"}
    own = {definition.table.schema for definition in recast}
    return [
        *(_schema(name) for name in sorted(own)),
        *(c for c in needed if c.kind != "schema" or c.name.schema in schemas - own),
        *(_table(definition) for definition in recast),
    ]


def _schema(name: str) -> Creation:
    return Creation("schema", TableName(name, name), f"CREATE SCHEMA {quote(name)}", f"schema {quote(name)}")


def _table(definition: TableDefinition) -> Creation:
    name = f"{quote(definition.table.schema)}.{quote(definition.table.name)}"
    lines = ",\n    ".join(_lines(definition))
    return Creation("table", definition.table, f"CREATE TABLE {name} (\n    {lines}\n)", f"table {name}")


def _lines(definition: TableDefinition) -> Iterator[str]:
    for column in definition.columns:
        yield f"{quote(column.name)} {column.type_name}{' NOT NULL' if column.not_null else ''}"
    if definition.primary_key:
        yield f"PRIMARY KEY ({', '.join(map(quote, definition.primary_key))})"
    for key in definition.unique_keys:
        yield f"UNIQUE ({', '.join(map(quote, key))})"
