"""`streamer setup` for syncs with several sources: triggers on their tables, and replica identities that carry the old row.

Triggers belong to all such syncs together: a table that two of them select has the merged columns of both. Those of tables that
none selects any more are removed, unless the database serves syncs of another config too.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

from streamer.admin import installation
from streamer.admin.capture_triggers import captures_here
from streamer.admin.check_identity import demand, lacking, read_parts
from streamer.admin.nodes import Say, session
from streamer.capture.catalog import read_tables
from streamer.config import Config, Sync
from streamer.errors import TargetError
from streamer.model import TableName
from streamer.session import Connection
from streamer.sinks import postgres_triggers
from streamer.sinks.postgres_table import read_target


def masters_of(config: Config, node: str) -> list[Sync]:
    """Return the syncs with several sources that the node is in."""
    return [s for s in config.syncs.values() if s.multi_master and node in (*s.sources, *s.targets)]


def wanted_triggers(config: Config, node: str, connection: Connection) -> dict[TableName, frozenset[str]]:
    """Return the tables on the node that need triggers, each with its merged columns. Raises psycopg.Error."""
    wanted: dict[TableName, frozenset[str]] = defaultdict(frozenset)
    for sync in masters_of(config, node):
        for table in read_tables(connection, sync.selects):
            wanted[table.table] |= sync.rules_for(table.table).merged
    return wanted


def keep_keys(config: Config, node: str, say: Say) -> None:
    """Bring the triggers on a PostgreSQL node into line. Raises StreamerError."""
    with session(config, node) as connection:
        if not installation.is_there(connection):
            return  # a source only, that is captured by other triggers
        wanted = wanted_triggers(config, node, connection)
        if not _has_strangers(config, connection):
            with _named(node):
                removed = postgres_triggers.remove_unwanted(connection, wanted.keys())
            for table in removed:
                say(f'{node}: removed triggers of table "{table}"')
        done: Counter[str] = Counter()
        for table, merged in wanted.items():
            target = read_target(connection, node, table)
            with _named(node):
                what = postgres_triggers.ensure(connection, target, merged)
            done[what] += bool(target.keys)
            if what != "kept":
                say(f'{node}: {what} triggers of table "{table}"')
        if kept := done["kept"]:
            say(f"{node}: kept triggers of {kept} table{'' if kept == 1 else 's'}")


@contextmanager
def _named(node: str) -> Iterator[None]:
    """Have errors of a table tell the node."""
    try:
        yield
    except TargetError as error:
        raise TargetError(f'node "{node}": {error.message}', error.hint) from error


def _has_strangers(config: Config, connection: Connection) -> bool:
    """Whether the database serves a sync that this config does not know."""
    rows = connection.execute("SELECT DISTINCT sync FROM streamer.progress")
    return any(sync not in config.syncs for (sync,) in rows)


def carry_old_rows(config: Config, sync: str, source: str, *, fix: bool, say: Say) -> None:
    """Have the tables carry the old row where the sync demands it, or say how. Raises StreamerError."""
    with session(config, source) as connection:
        if captures_here(config, source, connection):
            return  # whole rows are read of the tables themselves
        for table, why, statement in list(_without_old_rows(connection, config.syncs[sync], source)):
            if not fix:
                say(f'warning: {source}: table "{table}": {why}; {statement}, or run: streamer setup --fix')
                continue
            with _named(source), postgres_triggers.patiently(connection, table):
                connection.execute(statement.encode())
            say(f'{source}: altered table "{table}": REPLICA IDENTITY FULL')


def _without_old_rows(connection: Connection, sync: Sync, node: str) -> Iterator[tuple[TableName, str, str]]:
    for table in read_tables(connection, sync.selects):
        parts = read_parts(connection, table)
        has_key = bool(read_target(connection, node, table.table).keys)
        if why := demand(sync.rules_for(table.table), parts, has_key=has_key):
            yield from ((part.table, why, part.remedy) for part in lacking(parts))
