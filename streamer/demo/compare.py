"""Whether three copies of a table hold the same rows: their number, and a checksum over all of them in the order of the key.

The rows of either engine are turned into COPY's text format, which tells NULL from an empty text and keeps the blanks of char(n).
The trap: `column::text` would take these blanks away.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from psycopg import sql

from streamer.capture.catalog import read_tables
from streamer.config import Sync
from streamer.model import TableDefinition
from streamer.session import Connection
from streamer.sinks.copytext import format_rows
from streamer.sinks.postgres_table import quote
from streamer.sinks.sqlite_ddl import target_name

_BATCH: Final = 5000


@dataclass(frozen=True, slots=True)
class Contents:
    """What a table holds."""

    rows: int
    checksum: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """One table and what each node holds of it."""

    table: str
    contents: tuple[Contents, ...]

    @property
    def equal(self) -> bool:
        """Whether all are the same."""
        return len(set(self.contents)) == 1


def compare(sync: Sync, source: Connection, target: Connection, file: Path) -> list[Verdict]:
    """Return a verdict on each table of the sync. Nobody may write meanwhile."""
    definitions = [t.definition for t in read_tables(source, sync.selects)]
    with closing(sqlite3.connect(file)) as copy:
        return [Verdict(d.table.name, (_in_postgres(source, d), _in_postgres(target, d), _in_sqlite(copy, d))) for d in definitions]


def _in_postgres(connection: Connection, definition: TableDefinition) -> Contents:
    query = sql.SQL("COPY (SELECT {} FROM {} ORDER BY {}) TO STDOUT").format(
        sql.SQL(", ").join(sql.Identifier(c.name) for c in definition.columns),
        sql.Identifier(definition.table.schema, definition.table.name),
        sql.SQL(", ").join(map(sql.Identifier, definition.primary_key)),
    )
    with connection.cursor().copy(query) as copy:
        return _summed(bytes(block) for block in copy)


def _in_sqlite(connection: sqlite3.Connection, definition: TableDefinition) -> Contents:
    columns = ", ".join(quote(c.name) for c in definition.columns)
    key = ", ".join(map(quote, definition.primary_key))
    rows = connection.execute(f"SELECT {columns} FROM {quote(target_name(definition.table))} ORDER BY {key}")
    return _summed(_as_text(rows))


def _as_text(rows: sqlite3.Cursor) -> Iterator[bytes]:
    while batch := rows.fetchmany(_BATCH):
        yield format_rows([_texts(row) for row in batch])


def _texts(row: Sequence[object]) -> list[str | None]:
    return [None if value is None else str(value) for value in row]


def _summed(blocks: Iterable[bytes]) -> Contents:
    """Count and sum blocks of whole lines."""
    rows, digest = 0, hashlib.sha256()
    for block in blocks:
        rows += block.count(b"\n")
        digest.update(block)
    return Contents(rows, digest.hexdigest()[:8])
