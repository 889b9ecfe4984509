"""Whether all copies of a table hold the same rows, and whether all money adds up.

A copy is told by the number of its rows and a checksum over all of them, in the order of the key; without a key, in the order of
their texts. The rows of either engine are turned into COPY's text format, which tells NULL from an empty text and keeps the blanks
of char(n). The trap: `column::text` would take these blanks away.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from psycopg import sql

from streamer.capture.catalog import read_tables
from streamer.config import Sync
from streamer.copytext import format_rows
from streamer.model import TableDefinition
from streamer.session import Connection
from streamer.sinks.postgres_table import quote
from streamer.sinks.sqlite_ddl import target_name

Node: TypeAlias = Connection | sqlite3.Connection

SUMS: Final = {
    "accounts": "SELECT sum(abalance) FROM pgbench_accounts",
    "tellers": "SELECT sum(tbalance) FROM pgbench_tellers",
    "branches": "SELECT sum(bbalance) FROM pgbench_branches",
    "history": "SELECT sum(delta) FROM pgbench_history",
}
"""Each of pgbench's transactions adds the same amount to all four."""
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


def compare(sync: Sync, nodes: Sequence[Node]) -> list[Verdict]:
    """Return a verdict on each table of the sync. The first node is PostgreSQL and tells which. Nobody may write meanwhile."""
    first = nodes[0]
    assert not isinstance(first, sqlite3.Connection)
    definitions = [t.definition for t in read_tables(first, sync.selects)]
    return [Verdict(d.table.name, tuple(_contents(node, d) for node in nodes)) for d in definitions]


def add_up(nodes: Sequence[Node]) -> Mapping[str, Sequence[int]]:
    """Return the sums of the money on each node, by the tables that it is kept in."""
    return {name: [int(_one(node, query) or 0) for node in nodes] for name, query in SUMS.items()}


def _one(node: Node, query: str) -> int | None:
    row = node.execute(query).fetchone() if isinstance(node, sqlite3.Connection) else node.execute(query.encode()).fetchone()
    return row[0] if row else None


def _contents(node: Node, definition: TableDefinition) -> Contents:
    blocks = _from_sqlite(node, definition) if isinstance(node, sqlite3.Connection) else _from_postgres(node, definition)
    return _summed(blocks if definition.primary_key else sorted(b"".join(blocks).splitlines(keepends=True)))


def _from_postgres(connection: Connection, definition: TableDefinition) -> Iterator[bytes]:
    query = sql.SQL("COPY (SELECT {} FROM {} ORDER BY {}) TO STDOUT").format(
        sql.SQL(", ").join(sql.Identifier(c.name) for c in definition.columns),
        sql.Identifier(definition.table.schema, definition.table.name),
        sql.SQL(", ").join([*map(sql.Identifier, definition.primary_key), sql.SQL("1")]),
    )
    with connection.cursor().copy(query) as copy:
        yield from (bytes(block) for block in copy)


def _from_sqlite(connection: sqlite3.Connection, definition: TableDefinition) -> Iterator[bytes]:
    columns = ", ".join(quote(c.name) for c in definition.columns)
    key = ", ".join([*map(quote, definition.primary_key), "1"])
    rows = connection.execute(f"SELECT {columns} FROM {quote(target_name(definition.table))} ORDER BY {key}")
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
