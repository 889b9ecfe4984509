"""Rows on a target that nothing is recorded of: a part of `streamer setup`.

A target without the schema streamer counts as a new one, and its tables with rows are kept as if they held all that was confirmed
so far. Where the slot is an older one that is a guess: the target may have been restored from a dump without the schema. And with
copy = "if-empty" a single row is enough to have a table not copied; one that was taken out of a sync and comes back lacks what came
meanwhile.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Final

import psycopg
from psycopg import sql

from streamer.admin.foreign import target_of
from streamer.admin.nodes import session
from streamer.capture import keys
from streamer.capture.catalog import read_tables
from streamer.capture.shaped_tables import shaped_tables
from streamer.config import Config
from streamer.model import EdgeName, TableName
from streamer.session import Connection
from streamer.sinks.postgres_ddl import has_table


def of_lost(config: Config, edge: EdgeName) -> str | None:
    """Return what to tell of a PostgreSQL target whose schema streamer has just been made, while its source's slot was there; None
    if its tables are empty, or are copied anyway. Raises StreamerError."""
    if config.syncs[edge.sync].copy_rows == "always":
        return None
    wanted = _wanted(config, edge)
    with session(config, edge.target) as connection:
        tables = with_rows(connection, wanted)
    return _told(config, edge, tables, f"{edge.target} was restored from a backup or filled earlier")


def of_kept(config: Config, edge: EdgeName) -> str | None:
    """Return what to tell of tables with rows that the edge will keep when it begins, or when they join it; None if there are none,
    or if that is what `copy` asks for. Raises StreamerError."""
    settings = config.syncs[edge.sync]
    if settings.copy_rows == "always":
        return None
    wanted = _wanted(config, edge)
    if (foreign := target_of(config, edge.target)) is not None:
        begun = foreign.position(edge) is not None
        there, known = foreign.existing(wanted), foreign.copied(edge)
        filled = foreign.filled([t for t in wanted if t in there and t not in known])
        tables = [t for t in wanted if t in filled]
    else:
        with session(config, edge.target) as connection:
            begun = connection.execute(_BEGUN, asdict(edge)).fetchone() is not None
            recorded = {TableName(*row) for row in connection.execute(_RECORDED, asdict(edge))}
            tables = with_rows(connection, [t for t in wanted if t not in recorded])
    if not begun and (settings.copy_rows == "never" or settings.multi_master):  # sources have rows before they find each other
        return None
    return _told(config, edge, tables, "they may differ")


_OF_EDGE: Final = "sync = %(sync)s AND source = %(source)s AND target = %(target)s"
_BEGUN: Final = f"SELECT 1 FROM streamer.progress WHERE {_OF_EDGE}"
_RECORDED: Final = (
    f"SELECT schema_name, table_name FROM streamer.copy WHERE {_OF_EDGE} "
    f"UNION SELECT schema_name, table_name FROM streamer.copied_part WHERE {_OF_EDGE} "
    f"UNION SELECT schema_name, table_name FROM streamer.first_rows WHERE {_OF_EDGE}"
)
"""Tables of which the edge has a record, that of an unfinished copy and one whose first rows are to come."""


def _told(config: Config, edge: EdgeName, tables: Sequence[TableName], unless: str) -> str | None:
    if not tables:
        return None
    others = " and others have" if tables[1:] else " has"
    # where the target is a source as well, nobody but its users can say which side is right
    both_ways = any(source == edge.target for _, source, _ in config.edges())
    compared = f"streamer verify {edge.sync}" + ("" if both_ways else " --repair")
    return (
        f'warning: {edge.target}: table "{tables[0]}"{others} rows, and nothing is recorded of what they hold: they are taken for '
        f'what "{edge.source}" has now; if {unless}, start streamer run, then: {compared}'
    )


def _wanted(config: Config, edge: EdgeName) -> list[TableName]:
    """The tables that the edge writes changes to, by their names on the target."""
    settings = config.syncs[edge.sync]
    with session(config, edge.source) as connection:
        captured = [t for t in read_tables(connection, settings.selects) if settings.captures(t.table)]
        return [t.table for t in shaped_tables(keys.on_targets(captured, settings.key_for), settings.shapes_for(edge.target))]


def with_rows(connection: Connection, tables: Sequence[TableName]) -> list[TableName]:
    """Return those of the tables that are there and have rows."""
    return [t for t in tables if has_table(connection, t) and _has_rows(connection, t)]


def _has_rows(connection: Connection, table: TableName) -> bool:
    """Whether the table has rows, as far as the role may look: `check` tells where it may not, and the copy stops there."""
    query = sql.SQL("SELECT 1 FROM {} LIMIT 1").format(sql.Identifier(table.schema, table.name))
    try:
        return connection.execute(query).fetchone() is not None
    except psycopg.errors.InsufficientPrivilege:
        return False
