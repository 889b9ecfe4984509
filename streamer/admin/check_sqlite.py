"""What `streamer check` says of the tables of an SQLite file.

https://www.sqlite.org/pragma.html#pragma_table_xinfo
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator

from streamer.admin.findings import Finding, error, narrower, warning
from streamer.errors import SchemaError
from streamer.model import TableDefinition
from streamer.sinks.extremes import lost
from streamer.sinks.postgres_types import SourceType
from streamer.sinks.sqlite_ddl import TargetTable, create_table, fold_case, missing_column, quote, read_target, target_name
from streamer.sinks.sqlite_types import column_type
from streamer.sinks.sqlite_values import conversion


def check_definition(node: str, definition: TableDefinition) -> Iterator[Finding]:
    """Yield what keeps any SQLite file from having such a table. Pure."""
    try:
        create_table(definition)
    except SchemaError as problem:
        yield error(f'node "{node}"', problem.message, problem.hint)


def check_table(node: str, connection: sqlite3.Connection, definition: TableDefinition) -> Iterator[Finding]:
    """Yield what is wrong with the table in the file. Raises sqlite3.Error."""
    try:
        target = read_target(connection, node, definition.table)
    except SchemaError as problem:
        yield warning(f'node "{node}"', problem.message.removeprefix(f'node "{node}" '), problem.hint)
        return
    what = f'table "{definition.table}" on "{node}"'
    yield from _judge_columns(what, definition, target)
    yield from _judge_widths(what, definition, target)
    yield from _judge_key(what, definition, target)


def _judge_columns(what: str, definition: TableDefinition, target: TargetTable) -> Iterator[Finding]:
    travelling = [c for c in definition.columns if not c.generated]
    for column in travelling:
        if fold_case(column.name) not in target.columns:
            lack = missing_column(definition.table, column.name, column.base_oid or column.type_oid, strict=target.strict)
            yield error(what, f'has no column "{column.name}"', lack.hint)
    for name in sorted(target.required - {fold_case(c.name) for c in travelling}):
        yield error(
            what,
            f'column "{name}" is NOT NULL without a default, and the source does not have it',
            "make that table anew, with a default for the column or without it",
        )


def _judge_widths(what: str, definition: TableDefinition, target: TargetTable) -> Iterator[Finding]:
    """Columns of STRICT tables that hold less than the source's; any other takes everything."""
    for column in definition.columns if target.strict else ():
        there, source = target.type_of(column.name), SourceType.of(column)
        made = column_type(source, strict=True)
        converts = [conversion(column.type_oid, declared, strict=True) for declared in (there, made)]
        if there and (problem := lost(source, *converts)) is not None:
            remedy = f"make that table anew, with {quote(column.name)} {made}"
            yield narrower(what, f'column "{column.name}" is {there} in a STRICT table', column.type_name, problem, remedy)


def _judge_key(what: str, definition: TableDefinition, target: TargetTable) -> Iterator[Finding]:
    """Without an index on the key each update and delete reads the whole table."""
    key = {fold_case(name) for name in definition.primary_key}
    if key and not any(unique <= key for unique in target.keys):
        listed = ", ".join(map(quote, definition.primary_key))
        yield warning(
            what,
            f"no unique index over NOT NULL columns covers its key ({', '.join(definition.primary_key)}): every update and delete "
            "may read the whole table",
            f"there: CREATE UNIQUE INDEX {quote(f'{target_name(definition.table)} key')} ON "
            f"{quote(target_name(definition.table))} ({listed}), or make it anew with a PRIMARY KEY",
        )
