"""Rows on a target that nothing is recorded of: a part of `streamer setup`.

A target without the schema streamer counts as a new one, and its tables with rows are kept as if they held all that was confirmed
so far. Where the slot is an older one that is a guess: the target may have been restored from a dump without the schema.
"""

from __future__ import annotations

from psycopg import sql

from streamer.admin.nodes import session
from streamer.capture import keys
from streamer.capture.catalog import read_tables
from streamer.capture.shaped_tables import shaped_tables
from streamer.config import Config
from streamer.model import TableName
from streamer.sinks.postgres_ddl import has_table


def warning(config: Config, sync: str, source: str, target: str) -> str | None:
    """Return what to tell of a PostgreSQL target whose schema streamer has just been made, while its source's slot was there; None
    if its tables are empty, or are copied anyway. Raises StreamerError."""
    settings = config.syncs[sync]
    if settings.copy_rows == "always" or not (tables := _with_rows(config, sync, source, target)):
        return None
    others = " and others have" if tables[1:] else " has"
    compared = f"streamer verify {sync}" + ("" if settings.multi_master else " --repair")
    return (
        f'warning: {target}: table "{tables[0]}"{others} rows, and nothing is recorded of what they hold: they are taken for what '
        f'"{source}" has now; if {target} was restored from a backup or filled earlier, start streamer run, then: {compared}'
    )


def _with_rows(config: Config, sync: str, source: str, target: str) -> list[TableName]:
    settings = config.syncs[sync]
    with session(config, source) as connection:
        captured = [t for t in read_tables(connection, settings.selects) if settings.captures(t.table)]
        wanted = shaped_tables(keys.on_targets(captured, settings.key_for), settings.shapes_for(target))
    with session(config, target) as connection:
        there = [t.table for t in wanted if has_table(connection, t.table)]
        query = sql.SQL("SELECT 1 FROM {} LIMIT 1")
        return [t for t in there if connection.execute(query.format(sql.Identifier(t.schema, t.name))).fetchone()]
