"""TRUNCATE where several nodes write: it empties the table of what was written before it, not of what came later elsewhere."""

from __future__ import annotations

from collections.abc import Sequence

from streamer.model import Origin
from streamer.session import Connection
from streamer.sinks.postgres_effects import bury
from streamer.sinks.postgres_table import quote
from streamer.sinks.postgres_world import MasterTable
from streamer.versions import Versions, key_hash, key_text


def truncate(connection: Connection, versions: Versions, tables: Sequence[MasterTable], origin: Origin) -> None:
    """Empty the tables of all rows but those that another node wrote later. Raises psycopg.Error where refused."""
    places = ", ".join(table.writer.place for table in tables)
    connection.execute(f"LOCK TABLE {places} IN ACCESS EXCLUSIVE MODE".replace("%%", "%").encode())
    later = {id(table): _later(connection, table, versions) for table in tables}
    time = origin.commit_time.isoformat()
    survivors = [t for t in tables if connection.execute(f"{later[id(t)]} LIMIT 1".encode(), [time]).fetchone()]
    if not survivors:
        connection.execute(f"TRUNCATE {places}".replace("%%", "%").encode())
        return
    for table in tables:
        rest = f"DELETE FROM {table.writer.place} AS d WHERE (d.tableoid, d.ctid) NOT IN ({later[id(table)]})"
        connection.execute(rest.encode(), [time])
        if table.key:
            bury(connection, table, ())


def _later(connection: Connection, table: MasterTable, versions: Versions) -> str:
    """The query for the rows that were written after a moment."""
    join, time = versions.join("t.xmin"), "v.at"
    if table.key and connection.execute("SELECT EXISTS (SELECT FROM streamer.copied)").fetchone() == (True,):
        relation = table.writer.relation
        id_ = key_hash(connection, relation.table, key_text("t", [quote(relation.names[i]) for i in table.key]))
        join += f" LEFT JOIN streamer.copied AS c ON c.id = {id_} AND NOT c.buried AND c.xid = t.xmin".replace("%", "%%")
        time = "coalesce(c.commit_time, v.at)"
    return f"SELECT t.tableoid, t.ctid FROM {table.writer.place} AS t {join} WHERE {time} > %s::timestamptz"
