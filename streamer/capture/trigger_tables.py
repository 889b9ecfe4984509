"""The captured tables of a stream as they are on the source, by the oids that deltas name.

They are read when the stream opens, and again as soon as an oid is new or a table's columns differ: then the batch at hand is
given up. The trap: TRUNCATE and ALTER TABLE do not care about snapshots. A table that is emptied or rewritten after a batch's
snapshot was taken looks empty to it; so the tables are locked, and then must still have the files that the snapshot knows.

https://www.postgresql.org/docs/current/mvcc-caveats.html
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Final, NamedTuple

from psycopg.pq.abc import PGresult

from streamer.capture.assemble import REMOVALS, Interest
from streamer.capture.catalog import SourceTable, read_as, read_tables, require_names
from streamer.capture.keys import is_enforced
from streamer.capture.trigger_functions import NONDETERMINISTIC, is_written_one_way
from streamer.capture.trigger_query import DeltaTable
from streamer.capture.triggers import captured
from streamer.errors import SourceError, no_longer_captured
from streamer.model import Column, Identity, Relation, TableName
from streamer.session import Connection, cells, version

ORDERED_AGGREGATES: Final = 90000  # array_agg(… ORDER BY …): version 9.0


class Touched(NamedTuple):
    """What a batch has of a relation: see trigger_query.relations."""

    deltas: int
    deletes: int
    #: the id of the last truncate
    truncated: int | None
    first: int
    last_time: datetime
    file: int | None

    def plus(self, other: Touched) -> Touched:
        """Return what two partitions have together."""
        return self._replace(
            deltas=self.deltas + other.deltas,
            deletes=self.deletes + other.deletes,
            truncated=max((id_ for id_ in (self.truncated, other.truncated) if id_ is not None), default=None),
        )


class TriggerTables:
    """The tables of the sync `sync` on the node named `node`, read over a connection in autocommit mode.

    `carried` are the tables that the stream has told of since the daemon started, with their oids.
    Raises psycopg.Error, SourceError.
    """

    def __init__(
        self, connection: Connection, node: str, sync: str, interest: Interest, carried: dict[TableName, int] | None = None
    ) -> None:
        self._connection = connection
        self._node = node
        self._sync = sync
        self._interest = interest
        self._carried: dict[TableName, int] = {} if carried is None else carried
        self._tables: dict[int, DeltaTable] = {}
        self._shapes: dict[int, str] = {}
        #: streamer.removal, where there is one
        self.removals: int | None = None
        self.refresh()

    def refresh(self) -> None:
        """Read them anew. A table that has been captured must still be, by the same name: deltas follow one that is renamed."""
        before = {table.table: table for table in self._tables.values()}
        tables = [t for t in read_tables(self._connection, self._interest.selects) if not self._interest.whole(t.table)]
        require_names(self._connection, self._carried, {t.table for t in tables}, self._node, self._sync)
        keys = captured(self._connection)
        oids = {TableName(schema, name): oid for oid, schema, name in self._connection.execute(_OIDS)}
        self.removals = oids.get(REMOVALS)
        taken = {oids[name] for t in tables for name in (t.table, *t.leaves) if name in oids}
        loose = _loose_collations(self._connection, tables)
        now = {t.table: _delta_table(self._connection, t, keys, loose, oids, taken, before.get(t.table)) for t in tables}
        # also when the stream begins again: until the triggers are back, changes are missed
        if gone := [name for name in self._carried if name in now and now[name] is None]:
            raise no_longer_captured(gone[0], self._node)
        found = [made for made in now.values() if made is not None]
        self._tables = {oid: made for made in found for oid in made.oids}
        self._carried |= {t.table: t.oid for t in tables if now[t.table] is not None}
        self._shapes = self._read_shapes(self._tables)[1]

    @property
    def names(self) -> set[TableName]:
        """The captured tables."""
        return {table.table for table in self._tables.values()}

    @property
    def oids(self) -> list[int]:
        """Theirs, and those of their partitions."""
        return list(self._tables)

    def of(self, oid: int) -> DeltaTable | None:
        """Return the table that has this oid, or a partition that has; None if the stream has no such table."""
        return self._tables.get(oid)

    def matters(self, oid: int) -> bool:
        """Return whether the stream tells of deltas of this oid: its tables', and where several nodes write, removed keys."""
        return oid in self._tables or (self._interest.by_transaction and oid == self.removals)

    def are(self, files: Mapping[int, int | None]) -> bool:
        """Return whether relations still have these files, and the columns that we know. They must be locked."""
        now, shapes = self._read_shapes(files)
        return all(now.get(oid) == file and shapes.get(oid) == self._shapes.get(oid) for oid, file in files.items())

    def _read_shapes(self, oids: Iterable[int]) -> tuple[dict[int, int], dict[int, str]]:
        rows = self._connection.execute(_SHAPES, [list(oids)]).fetchall()
        return {oid: file for oid, file, _ in rows}, {oid: shape for oid, _, shape in rows}


def _loose_collations(connection: Connection, tables: Sequence[SourceTable]) -> dict[tuple[int, str], str]:
    """The collations of columns in which different texts are equal, to be written after their types; by table and column. Of a text
    that is only cast to the type `a` and `A` would be two keys, which one row has both."""
    if version(connection) < NONDETERMINISTIC:
        return {}
    found = connection.execute(_LOOSE, [[table.oid for table in tables]])
    return {(oid, column): f" COLLATE {collation}" for oid, column, collation in found}


def _delta_table(
    connection: Connection,
    table: SourceTable,
    keys: Mapping[int, tuple[str, ...]],
    loose: Mapping[tuple[int, str], str],
    oids: Mapping[TableName, int],
    taken: Collection[int],
    before: DeltaTable | None,
) -> DeltaTable | None:
    """The table as its changes are read; None if triggers do not capture it."""
    own = [oids[name] for name in (table.table, *table.leaves) if name in oids]
    if before is not None and table.partitioned:  # what was deleted from partitions that have been detached or dropped since
        own += [oid for oid in before.oids if oid not in taken]
    key = next((keys[oid] for oid in own if oid in keys), None)
    if key is None:
        return None
    columns = {c.name: c for c in table.travelling}
    if missing := [name for name in key if name not in columns]:
        raise SourceError(
            f'table "{table.table}": its triggers tell rows by the column "{missing[0]}", which it does not have',
            "run: streamer setup",
        )
    made = Relation(
        table.table, tuple(Column(c.name, c.type_oid, c.name in key) for c in table.travelling), Identity.DEFAULT, net=True
    )
    # relations compare by identity: the same table must not look altered
    relation = before.relation if before is not None and before.relation.columns == made.columns else made
    return DeltaTable(
        relation,
        tuple((name, columns[name].type_name + loose.get((table.oid, name), "")) for name in key),
        tuple(read_as(connection, c) for c in table.travelling),
        table.rows,
        tuple(own),
        table.partitioned,
        is_enforced(table, key),
        version(connection) >= ORDERED_AGGREGATES
        and any((table.oid, name) in loose or not is_written_one_way(columns[name]) for name in key),
    )


_OIDS: Final = """
SELECT c.oid::bigint, n.nspname, c.relname
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p')
"""
_SHAPES: Final = """
SELECT c.oid::bigint, c.relfilenode::bigint,
       n.nspname || '.' || c.relname || ':' || array_to_string(ARRAY(
           SELECT a.attname || ' ' || a.atttypid::text || ' ' || a.atttypmod::text FROM pg_catalog.pg_attribute a
           WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum), ',')
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE c.oid = ANY (%s::bigint[]::oid[])
"""
_LOOSE: Final = """
SELECT a.attrelid::bigint, a.attname, pg_catalog.quote_ident(n.nspname) || '.' || pg_catalog.quote_ident(c.collname)
FROM pg_catalog.pg_attribute a
JOIN pg_catalog.pg_collation c ON c.oid = a.attcollation AND NOT c.collisdeterministic
JOIN pg_catalog.pg_namespace n ON n.oid = c.collnamespace
WHERE a.attrelid = ANY (%s) AND a.attnum > 0 AND NOT a.attisdropped
"""


def touched_of(result: PGresult) -> dict[int, Touched]:
    """Read the answer to trigger_query.relations: what a batch has, by the oid of the relation."""
    found = {}
    for relation, deltas, deletes, truncated, first, last_time, file in cells(result):
        found[int(str(relation))] = Touched(
            int(str(deltas)),
            int(str(deletes)),
            None if truncated is None else int(truncated),
            int(str(first)),
            datetime.fromisoformat(str(last_time)),
            None if file is None else int(file),
        )
    return found


def by_table(touched: Mapping[int, Touched], tables: TriggerTables, wanted: set[TableName]) -> Iterator[tuple[DeltaTable, Touched]]:
    """The wanted ones of the tables that have deltas, with all that their partitions have."""
    found: dict[TableName, tuple[DeltaTable, Touched]] = {}
    for oid, of in touched.items():
        table = tables.of(oid)
        if table is not None and table.table in wanted:
            before = found.get(table.table)
            found[table.table] = table, of if before is None else before[1].plus(of)
    return iter(found.values())
