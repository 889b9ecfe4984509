"""What streamer has made on a PostgreSQL server, found in its catalogs: for each thing the statement that removes it.

Nothing is removed here but by `execute`. The trap: a name tells whose a thing is, and replication origins are those of a whole
cluster, in which two nodes may be databases.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, NamedTuple

import psycopg

from streamer.admin import installation
from streamer.capture import publication
from streamer.capture.slot_list import READERS, end_reader
from streamer.capture.snapshot import abandoned_slots
from streamer.config import OWN_SCHEMA, Config
from streamer.errors import UsageError
from streamer.model import EdgeName, TableName
from streamer.node_config import LOGICAL_DECODING
from streamer.session import Connection, sessions, version
from streamer.sinks.postgres_session import ORIGINS
from streamer.sinks.postgres_table import quote
from streamer.sinks.postgres_triggers import remove_unwanted, tables_with_triggers
from streamer.versions import ORIGIN_PREFIX

STOP: Final = "stop streamer run first, or end its sessions with: streamer teardown --force"
_DROP_SLOT: Final = "SELECT pg_drop_replication_slot(%s)"
_GONE: Final = (psycopg.errors.UndefinedObject, psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName)
READER_SECONDS: Final = 10.0
"""How long a reader that was told to end may take."""


@dataclass(frozen=True, slots=True)
class Removal:
    """One thing that goes, and the statement (or function) that removes it."""

    what: str
    statement: str | Callable[[Connection], object]
    parameters: tuple[Any, ...] = ()


class OriginName(NamedTuple):
    """The parts of a replication origin's name: the edge via -> target of a sync wrote what `origin` made."""

    sync: str
    target: str
    via: str
    origin: str

    @property
    def edge(self) -> EdgeName:
        """Whose session uses it."""
        return EdgeName(self.sync, self.via, self.target)

    def __str__(self) -> str:
        return ORIGIN_PREFIX + ":".join(self)


def writers(connection: Connection, node: str, edges: Iterable[EdgeName], *, force: bool) -> Iterator[Removal]:
    """Sessions of a daemon that writes to this node: it may be copying, when nobody reads the slot yet.

    Raises UsageError if there are any and `force` is not given.
    """
    for edge in edges:
        for pid in sessions(connection, f"streamer {edge}"):
            if not force:
                raise UsageError(f'edge {edge} is written by process {pid} on "{node}"', STOP)
            yield Removal(f"session of edge {edge} (process {pid})", "SELECT pg_terminate_backend(%s)", (pid,))


def captured(connection: Connection, node: str, slot: str, *, force: bool) -> Iterator[Removal]:
    """Slot and publications of one stream. Raises UsageError if the slot is read and `force` is not given."""
    if version(connection) < LOGICAL_DECODING:
        return
    reader = "active_pid::text" if version(connection) >= READERS else "'?'"
    query = f"SELECT active, {reader} FROM pg_replication_slots WHERE slot_name = %s AND database = current_database()"
    for active, pid in connection.execute(query.encode(), [slot]):
        if active and not force:
            raise UsageError(f'slot "{slot}" on "{node}" is read by process {pid}', STOP)
        yield Removal(f'slot "{slot}"', _DROP_SLOT, (slot,))
    for abandoned in abandoned_slots(connection):
        yield Removal(f'slot "{abandoned}" of a copy that was broken off', _DROP_SLOT, (abandoned,))
    if version(connection) >= 100000:
        query = "SELECT pubname FROM pg_publication WHERE pubname = ANY(%s) ORDER BY pubname"
        for (name,) in connection.execute(query, [list(publication.names(slot))]):
            yield Removal(f'publication "{name}"', f"DROP PUBLICATION IF EXISTS {quote(name)}")


def has_slot(connection: Connection, slot: str) -> bool:
    """Whether there is such a slot."""
    if version(connection) < LOGICAL_DECODING:
        return False
    return connection.execute("SELECT 1 FROM pg_replication_slots WHERE slot_name = %s", [slot]).fetchone() is not None


def origins(connection: Connection, node: str) -> list[OriginName]:
    """The replication origins of all edges that end on this node."""
    if version(connection) < ORIGINS:
        return []
    names = [name for (name,) in connection.execute("SELECT roname FROM pg_replication_origin ORDER BY roname")]
    parts = [name.removeprefix(ORIGIN_PREFIX).split(":") for name in names if name.startswith(ORIGIN_PREFIX)]
    return [OriginName(*found) for found in parts if len(found) == len(OriginName._fields) and found[1] == node]


def origin_removals(names: Iterable[OriginName]) -> list[Removal]:
    """The removals of replication origins."""
    return [Removal(f'replication origin "{name}"', "SELECT pg_replication_origin_drop(%s)", (str(name),)) for name in names]


def unfinished(connection: Connection, sync: str, node: str) -> Iterator[Removal]:
    """The rows of tables whose copy was broken off between two ranges: without records nobody could tell that."""
    if installation.has_table(connection, "copied_part"):
        for schema, name in connection.execute(_UNFINISHED, [sync, node]).fetchall():
            place = f"{quote(schema)}.{quote(name)}"
            yield Removal(f'the part of table "{schema}.{name}" that was copied', f"DELETE FROM {place}")


_UNFINISHED: Final = """
SELECT DISTINCT p.schema_name, p.table_name FROM streamer.copied_part p
JOIN streamer.copy c ON c.sync = p.sync AND c.source = p.source AND c.target = p.target
    AND c.schema_name = p.schema_name AND c.table_name = p.table_name
JOIN pg_catalog.pg_namespace n ON n.nspname = p.schema_name
JOIN pg_catalog.pg_class t ON t.relnamespace = n.oid AND t.relname = p.table_name
WHERE p.sync = %s AND p.target = %s AND c.position = '0/0'
ORDER BY 1, 2
"""


def rows(connection: Connection, table: str, what: str, **where: str) -> list[Removal]:
    """The removal of rows of one of streamer's own tables, if there are any; an older installation lacks some of the tables."""
    if not installation.has_table(connection, table):
        return []
    condition = " AND ".join(f"{column} = %s" for column in where)
    found = f"FROM {OWN_SCHEMA}.{table} WHERE {condition}"
    if connection.execute(f"SELECT 1 {found} LIMIT 1".encode(), list(where.values())).fetchone() is None:
        return []
    return [Removal(what, f"DELETE {found}", tuple(where.values()))]


def triggers(connection: Connection, node: str, rest: Config) -> list[Removal]:
    """The triggers, and the deleted keys that they have kept, of tables in which no sync of the config resolves conflicts here."""
    resolving = [s for s in rest.syncs.values() if s.multi_master and node in (*s.sources, *s.targets)]
    tables = tables_with_triggers(connection)
    wanted = [table for table in tables if any(sync.selects(table) for sync in resolving)]
    unwanted = [table for table in tables if table not in wanted]
    if not unwanted:
        return []
    names = ", ".join(f'"{table}"' for table in unwanted)
    return [Removal(f"triggers of {names}", partial(_forget_tables, wanted=wanted, unwanted=unwanted))]


def _forget_tables(connection: Connection, *, wanted: Collection[TableName], unwanted: Sequence[TableName]) -> None:
    remove_unwanted(connection, wanted)
    for table in unwanted:
        for kept in ("tombstone", "removal"):
            where = "WHERE schema_name = %s AND table_name = %s"
            connection.execute(f"DELETE FROM {OWN_SCHEMA}.{kept} {where}".encode(), [table.schema, table.name])


def execute(connection: Connection, removal: Removal, *, force: bool) -> None:
    """Execute the statement; with `force`, end whoever reads the slot that is dropped, as often as it comes back.

    An origin is given back when its session has ended, which takes a moment.
    """
    if callable(removal.statement):
        removal.statement(connection)
        return
    deadline = time.monotonic() + READER_SECONDS
    while True:
        try:
            connection.execute(removal.statement.encode(), removal.parameters)
            return
        except _GONE:  # another teardown was faster, or the slot went with the session that was making it
            return
        except psycopg.errors.ObjectInUse:
            if not force or time.monotonic() > deadline:
                raise
        end_reader(connection, *removal.parameters)
        time.sleep(0.05)
