"""TRUNCATE where several nodes write: it empties the table of what was written before it, not of what came later elsewhere.

Which rows stay is decided as for a delete of each: those that another node wrote later; with a priority list, those of a node that
comes before the one that truncated; where columns are merged, those of keys that were deleted later, and used again. So a row that
is on its way still has the same end where it comes after the TRUNCATE and meets its tombstone.

The trap: a TRUNCATE may itself come late, after another one that wins over it, whose tombstone must stay.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from streamer.model import Origin, Value, Version
from streamer.session import Connection, version
from streamer.sinks.policy import rank
from streamer.sinks.postgres_table import quote
from streamer.sinks.postgres_tombstones import bury
from streamer.sinks.postgres_world import MasterTable, World
from streamer.versions import Versions, key_hash, key_text

Query: TypeAlias = tuple[str, list[Value]]
"""A query, or a condition, with its parameters."""


def truncate(connection: Connection, world: World, versions: Versions, tables: Sequence[MasterTable], origin: Origin) -> None:
    """Empty the tables of all rows but those that stay (see above). Raises psycopg.Error where refused."""
    places = ", ".join(table.writer.place for table in tables)
    connection.execute(f"LOCK TABLE {places} IN ACCESS EXCLUSIVE MODE".replace("%%", "%").encode())
    late = [table for table in tables if table.key and _is_late(world, table, origin)]
    staying = [(table, _staying(connection, versions, table, origin, late=table in late)) for table in tables]
    if not late and not any(connection.execute(f"{query} LIMIT 1".encode(), values).fetchone() for _, (query, values) in staying):
        connection.execute(f"TRUNCATE {places}".replace("%%", "%").encode())
        return
    for table, (query, values) in staying:
        rest = f"DELETE FROM {table.writer.place} AS d WHERE (d.tableoid, d.ctid) NOT IN ({query})"
        connection.execute(rest.encode(), values)
        if table.key and table not in late:
            bury(connection, table.writer.relation.table, ())


def _is_late(world: World, table: MasterTable, origin: Origin) -> bool:
    """Whether the table has been truncated here by one that wins, and that the origin did not know of."""
    known, policy = next(iter(world.deletions(table, [()]).get((), ())), None), table.rules.policy
    if known is None or origin.knew(known):
        return False
    if isinstance(policy, tuple):
        return rank(policy, known.node) <= rank(policy, origin.node)
    return Version(origin.commit_time, origin.node).precedes(known)


def _staying(connection: Connection, versions: Versions, table: MasterTable, origin: Origin, *, late: bool) -> Query:
    """The query for the rows that stay."""
    rows, policy = f"SELECT t.tableoid, t.ctid FROM {table.writer.place} AS t", table.rules.policy
    if not table.key:
        condition, values = _later(versions.time("t.xmin"), origin)
        return f"{rows} WHERE {condition}", values
    if isinstance(policy, tuple):
        xid = "t.xmin"
        if table.merges:
            xid = f"coalesce((SELECT s.xid FROM streamer.version AS s WHERE s.id = {_id(connection, table)}), t.xmin)"
        condition, values = _of_nodes(connection, versions, table, xid, policy[: rank(policy, origin.node)], origin)
        return f"{rows} {_copied(connection, table)} WHERE {condition}", values
    if table.merges and policy == "latest":
        if late:
            return rows, []
        graves = (
            f"JOIN streamer.tombstone AS g ON g.id = {_id(connection, table)} "
            "LEFT JOIN streamer.copied AS c ON c.id = g.id AND c.buried AND c.xid = g.xmin"
        )
        condition, values = _later(f"coalesce(c.commit_time, {versions.time('g.xmin')})", origin)
        return f"{rows} {graves} WHERE {condition}", values
    condition, values = _later(f"coalesce(c.commit_time, {versions.time('t.xmin')})", origin)
    return f"{rows} {_copied(connection, table)} WHERE {condition}", values


def _later(time: str, origin: Origin) -> Query:
    return f"{time} > %s::timestamptz", [origin.commit_time.isoformat()]


def _of_nodes(
    connection: Connection, versions: Versions, table: MasterTable, xid: str, nodes: Sequence[str], origin: Origin
) -> Query:
    """The condition that a row was written by one of the nodes, and that the origin did not know of it."""
    mark = f"coalesce(({versions.origin(xid)})::text, '')"
    found = connection.execute(f"SELECT DISTINCT {mark} FROM {table.writer.place} AS t".replace("%%", "%").encode()).fetchall()
    marks = {one: versions.node(one or None) for (one,) in found}
    conditions, values = ["false"], list[Value]()
    for node in nodes:
        since = max(versions.oldest(node), origin.seen.get(node, versions.oldest(node))).isoformat()
        conditions.append("c.origin = %s AND c.commit_time > %s::timestamptz")
        values += [node, since]
        for one in (one for one, of in marks.items() if of == node):
            conditions.append(f"{mark} = %s AND {versions.time(xid)} > %s::timestamptz")
            values += [one, since]
    return " OR ".join(f"({condition})" for condition in conditions), values


def _copied(connection: Connection, table: MasterTable) -> str:
    """The join with the true versions of copied rows; that costs something for each row."""
    if connection.execute("SELECT EXISTS (SELECT 1 FROM streamer.copied)").fetchone() != (True,):
        return "LEFT JOIN streamer.copied AS c ON false"
    return f"LEFT JOIN streamer.copied AS c ON c.id = {_id(connection, table)} AND NOT c.buried AND c.xid = t.xmin"


def _id(connection: Connection, table: MasterTable) -> str:
    """The expression for what a row's tombstone and version are kept under."""
    relation = table.writer.relation
    key = key_text(version(connection), "t", [quote(relation.names[i]) for i in table.key])
    return key_hash(connection, relation.table, key).replace("%", "%%")
