"""`streamer copy`: the running daemon copies a table once more, while its stream goes on with the others."""

from __future__ import annotations

from urllib.parse import quote

from streamer.admin.arguments import table_name
from streamer.admin.cutover_route import ways_back
from streamer.admin.daemon_client import tell
from streamer.admin.nodes import Say, chosen_syncs, session
from streamer.capture.catalog import read_tables
from streamer.config import Config
from streamer.errors import UsageError
from streamer.model import EdgeName, TableName


def copy(config: Config, sync: str, table: TableName, say: Say) -> None:
    """Have all targets of the sync copy the table, which `require` has found. Raises UsageError if the daemon is not there or
    refuses."""
    tell(config, sync, f"copy?table={quote(str(table), safe='')}")
    when = "" if config.syncs[sync].continuous else ", in the next run of the sync"
    say(f'table "{table}" is copied again to {", ".join(config.syncs[sync].targets)}{when}; see: streamer status')


def consequences(config: Config, sync: str, table: str) -> list[str]:
    """Return what becomes of the rows that are there, a line each. Pure."""
    edges = [EdgeName(*edge) for edge in config.edges() if edge[0] == sync]
    return [f'the rows of table "{table}" on the targets of sync "{sync}" go'] + [
        f'also what clients write to it on "{back.source}", which sync "{back.sync}" reads: do this while they write elsewhere'
        for edge in edges
        for back in ways_back(config, edge)
    ]


def require(config: Config, sync: str, table: str) -> TableName:
    """Return the table's name. Refuse a sync that does not exist, and a table that its patterns would select, and that is not
    there: the daemon waits for one that may come. What else is wrong it says itself. Raises UsageError."""
    chosen_syncs(config, sync)
    name, settings = table_name(table), config.syncs[sync]
    if settings.multi_master or not settings.selects(name):
        return name
    with session(config, settings.sources[0]) as connection:
        if name not in {found.table for found in read_tables(connection, settings.selects)}:
            raise UsageError(f'sync "{sync}" has no table "{name}"', f"see: streamer tables --sync {sync}")
    return name
