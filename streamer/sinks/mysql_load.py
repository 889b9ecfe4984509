"""The initial copy of one table into MySQL or MariaDB: blocks of COPY's text become files of LOAD DATA.

Where no column needs a conversion a block is handed on as it is, but for two escapes. The trap: a row that is refused must end the
copy; LOAD DATA would leave it out (see mysql_bulk).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Final

import pymysql

from streamer.copytext import parse
from streamer.errors import ApplyError
from streamer.model import Value
from streamer.ports import CopyTable
from streamer.sinks.mysql_apply import refusal
from streamer.sinks.mysql_bulk import Bulk, Server
from streamer.sinks.mysql_ddl import Names
from streamer.sinks.mysql_fields import Field, Fields, Stored, described, file_of_copy
from streamer.sinks.mysql_session import Connection
from streamer.sinks.mysql_table import TargetTable, require_columns
from streamer.sinks.unrepresentable import Replacements, Unrepresentable

FILE_BYTES: Final = 4 << 20
"""How much is gathered for one file."""


def load_table(
    connection: Connection,
    node: str,
    names: Names,
    table: CopyTable,
    target: TargetTable,
    blocks: Iterable[bytes],
    replacements: Replacements,
) -> int:
    """Write the rows in `blocks` inside the open transaction; return how many.

    Raises SchemaError for a column that the target lacks, ApplyError, pymysql.MySQLError.
    """
    require_columns(target, names, table.table, table.columns)
    server = Server.of(connection)
    bulk, fields, name = Bulk(connection, server, replacements), _fields(table, target, replacements), names.sql(table.table)
    count = 0
    try:
        for file in _files(blocks):
            rows = file.count(b"\n")
            if not (server.local_infile and fields.as_copied and bulk.load_file(name, fields, [file_of_copy(file)], rows)):
                bulk.fill(name, fields, list(parse(file)))
            count += rows
    except pymysql.MySQLError as error:
        if (reason := refusal(error)) is None:
            raise
        raise ApplyError(
            f'table "{table.table}" on "{node}" refused a copied row: {reason}',
            f"give {name} the constraints and types of the source's table; streamer copies again by itself",
        ) from error
    return count


def _fields(table: CopyTable, target: TargetTable, replacements: Replacements) -> Fields:
    columns = [target.column(name) for name in table.columns]
    made = [
        Field.of(i, table.type_oids[i], column)
        for i, column in enumerate(columns)
        if column is not None and not target.is_generated(table.columns[i])
    ]
    key = target.unique[0] if target.unique else frozenset()
    shown = [i for i, column in enumerate(columns) if column is not None and column.name.lower() in key] or range(
        min(4, len(columns))
    )

    def replace(position: int, row: Sequence[Value], problem: Unrepresentable) -> Stored:
        column = columns[position]
        assert column is not None
        return replacements.replace(
            table.table,
            table.columns[position],
            lambda: described(row, table.columns, shown),
            problem,
            nullable=column.nullable,
            in_key=column.name.lower() in key,
        )

    return Fields(len(columns), made, replace)


def _files(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """The blocks, joined where they are small."""
    gathered: list[bytes] = []
    size = 0
    for block in blocks:
        gathered.append(block)
        size += len(block)
        if size >= FILE_BYTES:
            yield b"".join(gathered)
            gathered, size = [], 0
    if size:
        yield b"".join(gathered)
