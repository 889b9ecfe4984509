"""The deltas that wait on a source: how many of which table not every target of a stream holds yet.

They are counted from the snapshot of the last batch that was confirmed. The trap: where much waits, counting it must not take long;
so at most MOST deltas of a stream are looked at, and then each number is a least one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from streamer.capture import batches
from streamer.capture.trigger_query import window
from streamer.model import TableName
from streamer.report import DeltaReport
from streamer.session import Connection, version

MOST: Final = 100_000
PARTITIONS: Final = 100000  # pg_class.relispartition

Captured = Mapping[str, tuple[str, Callable[[TableName], bool]]]
"""The streams of the config on a node by their names: the sync, and whether it reads the changes of a table."""


def read_deltas(connection: Connection, node: str, streams: Captured) -> list[DeltaReport]:
    """Return the tables that have deltas which a stream of `streams` still needs; none where triggers capture nothing.

    Raises psycopg.Error.
    """
    if not batches.installed(connection):
        return []
    found = []
    for stream, snapshot in connection.execute(_CONFIRMED, [list(streams)]).fetchall():
        sync, captures = streams[stream]
        with connection.transaction():
            connection.execute("SET LOCAL enable_seqscan = off")  # deltas that others need may be many
            rows = connection.execute(_query(snapshot, version(connection)).encode()).fetchall()
        more = sum(number for *_, number in rows) >= MOST
        tables = [(TableName(schema, name), number) for schema, name, number in rows]
        found += [DeltaReport(sync, node, str(table), number, more) for table, number in tables if captures(table)]
    return found


_CONFIRMED: Final = """
SELECT r.stream, b.snapshot::text
FROM streamer.delta_reader r JOIN streamer.delta_batch b ON b.stream = r.stream AND b.number = r.confirmed
WHERE r.stream = ANY (%s) ORDER BY r.stream
"""


def _query(snapshot: str, server: int) -> str:
    """The number of deltas by table, those of a partition as the partitioned table's."""
    partition = "c.relispartition" if server >= PARTITIONS else "false"
    return f"""
WITH RECURSIVE waiting AS (
    SELECT relation, count(*) AS deltas
    FROM (SELECT relation FROM streamer.delta WHERE {window(snapshot)} LIMIT {MOST}) AS d GROUP BY relation
), of (relation, deltas) AS (
    SELECT relation, deltas FROM waiting
    UNION ALL
    SELECT i.inhparent, of.deltas
    FROM of JOIN pg_catalog.pg_class c ON c.oid = of.relation AND {partition}
    JOIN pg_catalog.pg_inherits i ON i.inhrelid = of.relation
)
SELECT n.nspname, c.relname, sum(of.deltas)::bigint
FROM of JOIN pg_catalog.pg_class c ON c.oid = of.relation JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE NOT {partition} GROUP BY n.nspname, c.relname ORDER BY n.nspname, c.relname
"""
