"""Where the first rows of a table come from, noted on each node of a sync with several sources: a part of `streamer setup`.

A table without rows is copied from a node that has some; one that has none anywhere gets all of its rows from the streams. Both
must be known when the daemon starts: by then applications may have written to the table, whose rows would be taken for what the
other nodes have as well, or be copied back to the node that they came from. So what a copy brings is noted before the node's slot
is made, and what the streams bring after all slots are.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from streamer.admin.nodes import session
from streamer.admin.unrecorded import with_rows
from streamer.capture.catalog import read_tables
from streamer.config import Config
from streamer.model import TableName

_UNRECORDED: Final = """\
NOT EXISTS (SELECT 1 FROM streamer.{records} AS r WHERE r.sync = %(sync)s AND r.source = %(source)s AND r.target = %(target)s
                AND r.schema_name = %(schema)s AND r.table_name = %(table)s)"""
_NOTE: Final = f"""
INSERT INTO streamer.first_rows (sync, source, target, schema_name, table_name, by_copy)
SELECT %(sync)s, %(source)s, %(target)s, %(schema)s, %(table)s, %(by_copy)s
WHERE {_UNRECORDED.format(records="copy")} AND {_UNRECORDED.format(records="first_rows")}
"""
_RECORDED: Final = "SELECT source, schema_name, table_name FROM streamer.copy WHERE sync = %s AND target = %s"
_BEGUN: Final = "SELECT 1 FROM streamer.progress WHERE sync = %s LIMIT 1"


def note_copies(config: Config, sync: str) -> None:
    """Note on each source which of its tables have no rows, while another source has some. Raises StreamerError."""
    if not _looks(config, sync):
        return
    for target in config.syncs[sync].sources:
        if empty := _empty(config, sync, target):
            tables = {t for feeder in config.feeders(sync, target) for t in _filled(config, feeder, empty)}
            _note(config, sync, target, tables, by_copy=True)


def note_streams(config: Config, sync: str) -> None:
    """Note on each source of a sync that has never run which tables have no rows on any. Raises StreamerError."""
    if not _looks(config, sync) or any(_has_begun(config, sync, node) for node in config.syncs[sync].sources):
        return
    sources = config.syncs[sync].sources
    tables = set[TableName].intersection(*(_empty(config, sync, source) for source in sources))
    for target in sources:
        _note(config, sync, target, tables, by_copy=False)


def _looks(config: Config, sync: str) -> bool:
    """Whether the daemon looks if tables have rows."""
    settings = config.syncs[sync]
    return settings.multi_master and settings.copy_rows == "if-empty"


def _note(config: Config, sync: str, target: str, tables: Collection[TableName], *, by_copy: bool) -> None:
    if not tables:
        return
    with session(config, target) as connection, connection.transaction():
        for source in config.feeders(sync, target):
            edge = {"sync": sync, "source": source, "target": target, "by_copy": by_copy}
            for table in tables:
                connection.execute(_NOTE, edge | {"schema": table.schema, "table": table.name})


def _has_begun(config: Config, sync: str, node: str) -> bool:
    with session(config, node) as connection:
        return connection.execute(_BEGUN, [sync]).fetchone() is not None


def _empty(config: Config, sync: str, target: str) -> set[TableName]:
    """The tables without rows of which not all edges into the node have a record."""
    settings, feeders = config.syncs[sync], config.feeders(sync, target)
    with session(config, target) as connection:
        recorded = {(source, TableName(*name)) for source, *name in connection.execute(_RECORDED, [sync, target])}
        tables = [t.table for t in read_tables(connection, settings.selects) if settings.captures(t.table)]
        new = [t for t in tables if any((feeder, t) not in recorded for feeder in feeders)]
        return set(new).difference(with_rows(connection, new))


def _filled(config: Config, node: str, tables: Collection[TableName]) -> list[TableName]:
    with session(config, node) as connection:
        return with_rows(connection, list(tables))
