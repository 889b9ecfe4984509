"""What a source looks like: its tables, keys, replica identities and partitions, read from the system catalogs.

One query a server version, read once per session of a stream and once per command; the rest of the code sees dataclasses.
The trap: the catalog shows the tables of now, the WAL those of then; decoders compare names and ask again when they differ.

https://www.postgresql.org/docs/current/catalogs.html
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field

from psycopg import sql

from streamer.errors import renamed, unlogged
from streamer.model import LSN, Column, ColumnDefinition, Identity, Relation, TableDefinition, TableName
from streamer.session import Connection, version

FULL_TEXT = 90000  # bytea_output, and an extra_float_digits of 3: version 9.0
DEFERRABLE = 90000  # unique constraints that are: version 9.0
PERSISTENCE = 90100  # unlogged tables: version 9.1
REPLICA_IDENTITY = 90400  # version 9.4; before, the primary key is all there is
PARTITIONED = 100000  # declarative partitioning and identity columns: version 10
INCLUDED = 110000  # columns that an index only carries: version 11
GENERATED = 120000  # generated columns: version 12
UNVALIDATED = 180000  # NOT NULL that is NOT VALID: version 18

BYTEA = 17
FLOAT4 = 700


@dataclass(frozen=True, slots=True)
class SourceTable:
    """A table that a sync selects, as it is on the source."""

    definition: TableDefinition
    identity: Identity
    #: the columns of the replica identity; all of them with FULL, none with NOTHING
    identity_columns: tuple[str, ...]
    #: the tables that hold its rows, if it is partitioned
    leaves: tuple[TableName, ...]
    #: estimated number of rows
    rows: int
    partitioned: bool = False
    #: in bytes, without indexes, as last vacuumed or analyzed: to ask now would wait for whoever has locked the table
    size: int = 0
    #: what its name may change and it does not
    oid: int = 0
    #: the primary key is deferrable: while a transaction lasts, two rows may have it
    deferrable: bool = False

    @property
    def table(self) -> TableName:
        """Its name."""
        return self.definition.table

    @property
    def travelling(self) -> tuple[ColumnDefinition, ...]:
        """The columns whose values are replicated: all but generated ones."""
        return tuple(c for c in self.definition.columns if not c.generated)

    def relation(self) -> Relation:
        """The table as the relation of a change."""
        columns = (Column(c.name, c.type_oid, c.name in self.identity_columns) for c in self.travelling)
        return Relation(self.table, tuple(columns), self.identity)


def read_tables(connection: Connection, selects: Callable[[TableName], bool], *, defaults: bool = False) -> list[SourceTable]:
    """Return the tables that `selects` chooses, by name; a selected table's partitions belong to it and are not listed.

    With the columns' `defaults` it waits for whoever has locked one of the tables, as VACUUM FULL does; without, for nobody.
    """
    rows = connection.execute(_tables_query(version(connection)).encode()).fetchall()
    parents = {row[0]: row[6] for row in rows if row[6] is not None}
    chosen = {row[0]: row for row in rows if selects(TableName(row[1], row[2]))}
    tops = {oid: row for oid, row in chosen.items() if not _ancestors(oid, parents) & chosen.keys()}
    names = {row[0]: TableName(row[1], row[2]) for row in rows}
    leaves: dict[int, list[TableName]] = defaultdict(list)
    for oid, _, _, relkind, *_ in rows:
        for top in (_ancestors(oid, parents) & tops.keys()) if relkind == "r" else ():
            leaves[top].append(names[oid])
    columns = _read_columns(connection, list(tops), defaults)
    keys = _read_keys(connection, list(tops))
    return [
        _source_table(row, columns.get(oid, []), keys.get(oid, _Keys()), leaves[oid])
        for oid, row in sorted(tops.items(), key=lambda item: (item[1][1], item[1][2]))
    ]


def name_of(connection: Connection, oid: int) -> TableName | None:
    """Return what the table is called now; None if it was dropped."""
    query = "SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = %s"
    row = connection.execute(query, [oid]).fetchone()
    return None if row is None else TableName(*row)


def current_position(connection: Connection) -> LSN:
    """Return how far the source's WAL is written."""
    function = "pg_current_wal_flush_lsn" if version(connection) >= 100000 else "pg_current_xlog_location"
    row = connection.execute(f"SELECT {function}()::text").fetchone()
    return LSN.parse(row[0] if row else "0/0")


def lineage(connection: Connection, table: TableName) -> set[TableName]:
    """Return the table's name and those of all tables that it is a part of; none if it does not exist."""
    return {TableName(*row) for row in connection.execute(_LINEAGE, [table.schema, table.name])}


def require_names(
    connection: Connection, carried: dict[TableName, int], present: Collection[TableName], node: str, sync: str
) -> None:
    """See that no table that a stream has carried (by name and oid) is called otherwise now, or unlogged. One that was dropped, or
    has become the partition of another, is forgotten.

    Raises SourceError.
    """
    for gone in carried.keys() - set(present):
        now = name_of(connection, carried[gone])
        if now is not None and now != gone:
            raise renamed(gone, now, node, sync)
        if now is not None and _is_unlogged(connection, carried[gone]):
            raise unlogged(gone, node, sync)
        del carried[gone]


def _is_unlogged(connection: Connection, oid: int) -> bool:
    if version(connection) < PERSISTENCE:
        return False
    return connection.execute("SELECT 1 FROM pg_class WHERE oid = %s AND relpersistence = 'u'", [oid]).fetchone() is not None


def generated_columns(connection: Connection, table: TableName) -> set[str]:
    """Return the names of the table's generated columns as they are now."""
    if version(connection) < GENERATED:
        return set()
    return {name for (name,) in connection.execute(_GENERATED, [table.schema, table.name])}


def read_as(connection: Connection, column: ColumnDefinition) -> str:
    """Return the SQL expression that gives the column's value as newer servers write it: 8.4 has neither hex for bytea, nor enough
    digits for float4."""
    name = sql.Identifier(column.name).as_string()
    if version(connection) >= FULL_TEXT:
        return name
    kind = column.base_oid or column.type_oid
    if kind == BYTEA:
        return f"'\\x' || pg_catalog.encode({name}, 'hex')"
    return f"{name}::float8" if kind == FLOAT4 else name


def _ancestors(oid: int, parents: dict[int, int]) -> set[int]:
    found: set[int] = set()
    while (parent := parents.get(oid)) is not None:
        found.add(parent)
        oid = parent
    return found


def _source_table(
    row: tuple[object, ...],
    columns: list[ColumnDefinition],
    keys: _Keys,
    leaves: Iterable[TableName],
) -> SourceTable:
    oid, schema, name, relkind, identity, estimate, _, size = row
    keys = keys.without({c.name for c in columns if c.generated})
    kind = Identity(str(identity))
    identity_columns = {
        Identity.DEFAULT: keys.default,
        Identity.INDEX: keys.identity,
        Identity.FULL: tuple(c.name for c in columns),
        Identity.NOTHING: (),
    }[kind]
    if not identity_columns:
        kind = Identity.NOTHING
    return SourceTable(
        TableDefinition(TableName(str(schema), str(name)), tuple(columns), keys.primary, tuple(keys.unique)),
        kind,
        identity_columns,
        tuple(leaves),
        max(int(str(estimate)), 0),
        partitioned=relkind == "p",
        size=int(str(size)),
        oid=int(str(oid)),
        deferrable=bool(keys.primary) and not keys.default,
    )


def holds_no_null(number: int) -> str:
    """The expression for whether the column a holds no NULL, on a server of this version: from 18 on there may be older ones."""
    if number < UNVALIDATED:
        return "a.attnotnull"
    return (
        "a.attnotnull AND NOT EXISTS (SELECT 1 FROM pg_catalog.pg_constraint v WHERE v.conrelid = a.attrelid "
        "AND v.contype = 'n' AND v.conkey = ARRAY[a.attnum] AND NOT v.convalidated)"
    )


def _read_columns(connection: Connection, oids: list[int], defaults: bool) -> dict[int, list[ColumnDefinition]]:
    number = version(connection)
    query = _COLUMNS.format(
        default="pg_catalog.pg_get_expr(d.adbin, d.adrelid)" if defaults else "NULL",
        not_null=holds_no_null(number),
        identity="a.attidentity::text" if number >= PARTITIONED else "''",
        generated="a.attgenerated::text" if number >= GENERATED else "''",
    )
    found: dict[int, list[ColumnDefinition]] = defaultdict(list)
    for oid, *column in connection.execute(query.encode(), [oids]):
        name, type_name, type_oid, not_null, default, identity, generated, base_oid, base_name, enum = column
        definition = ColumnDefinition(
            name, type_name, type_oid, not_null, default, identity, bool(generated), base_oid, base_name, enum
        )
        found[oid].append(definition)
    return found


@dataclass(slots=True)
class _Keys:
    """The columns of a table's unique indexes."""

    primary: tuple[str, ...] = ()
    #: what identifies rows where the replica identity is the default one
    default: tuple[str, ...] = ()
    #: of the index that is the replica identity
    identity: tuple[str, ...] = ()
    unique: list[tuple[str, ...]] = field(default_factory=list)

    def without(self, generated: set[str]) -> _Keys:
        """Only those that tell rows apart by values that travel: a target could not find a row by a part of its key."""

        def kept(key: tuple[str, ...]) -> tuple[str, ...]:
            return key if generated.isdisjoint(key) else ()

        return _Keys(kept(self.primary), kept(self.default), kept(self.identity), self.unique)


def _read_keys(connection: Connection, oids: list[int]) -> dict[int, _Keys]:
    number = version(connection)
    query = _KEYS.format(
        immediate="i.indimmediate" if number >= DEFERRABLE else "true",
        identity="i.indisreplident" if number >= REPLICA_IDENTITY else "false",
        count="i.indnkeyatts" if number >= INCLUDED else "i.indnatts",
    )
    found: dict[int, _Keys] = defaultdict(_Keys)
    for oid, is_primary, is_immediate, is_identity, is_unique, names in connection.execute(query.encode(), [oids]):
        keys, columns = found[oid], tuple(names)
        if is_primary:
            keys.primary = columns
        if is_primary and is_immediate:  # a deferrable key identifies nothing
            keys.default = columns
        if is_identity:
            keys.identity = columns
        if is_unique and not is_primary:
            keys.unique.append(columns)
    return found


def _tables_query(number: int) -> str:
    return _TABLES.format(
        identity="c.relreplident::text" if number >= REPLICA_IDENTITY else "'d'",
        lasting="c.relpersistence = 'p'" if number >= PERSISTENCE else "NOT c.relistemp",
        **_PARTITIONS if number >= PARTITIONED else _NO_PARTITIONS,
    )


_TABLES = """
SELECT c.oid::bigint, n.nspname, c.relname, c.relkind::text, {identity}, c.reltuples::bigint, {parent},
       (c.relpages + coalesce(l.relpages, 0))::bigint * current_setting('block_size')::bigint
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
LEFT JOIN pg_catalog.pg_class l ON l.oid = c.reltoastrelid{inherits}
WHERE c.relkind IN ({kinds}) AND {lasting} AND n.nspname NOT IN ('pg_catalog', 'information_schema')
"""
_NO_PARTITIONS = {"kinds": "'r'", "parent": "NULL::bigint", "inherits": ""}
_PARTITIONS = {
    "kinds": "'r', 'p'",
    "parent": "CASE WHEN c.relispartition THEN i.inhparent::bigint END",
    "inherits": "\nLEFT JOIN pg_catalog.pg_inherits i ON i.inhrelid = c.oid AND c.relispartition",
}

# the last domain of a chain has the modifier
_COLUMNS = """
WITH RECURSIVE steps(type, base, modifier) AS (
    SELECT oid, typbasetype, typtypmod FROM pg_catalog.pg_type WHERE typtype = 'd'
    UNION ALL
    SELECT s.type, t.typbasetype, t.typtypmod FROM steps s JOIN pg_catalog.pg_type t ON t.oid = s.base WHERE t.typtype = 'd'
)
SELECT a.attrelid::bigint, a.attname, pg_catalog.format_type(a.atttypid, a.atttypmod), a.atttypid::bigint, {not_null},
       {default}, {identity}, {generated},
       coalesce(b.base::bigint, 0), coalesce(pg_catalog.format_type(b.base, b.modifier), ''), coalesce(b.kind, t.typtype) = 'e'
FROM pg_catalog.pg_attribute a
JOIN pg_catalog.pg_type t ON t.oid = a.atttypid
LEFT JOIN pg_catalog.pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
LEFT JOIN (SELECT s.type, s.base, s.modifier, t.typtype AS kind FROM steps s JOIN pg_catalog.pg_type t ON t.oid = s.base
           WHERE t.typtype <> 'd') b ON b.type = a.atttypid
WHERE a.attrelid = ANY(%s) AND a.attnum > 0 AND NOT a.attisdropped
ORDER BY a.attrelid, a.attnum
"""

_LINEAGE = """
WITH RECURSIVE line(oid) AS (
    SELECT c.oid FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname = %s AND c.relname = %s
    UNION
    SELECT i.inhparent FROM line l JOIN pg_catalog.pg_inherits i ON i.inhrelid = l.oid
)
SELECT n.nspname, c.relname
FROM line l JOIN pg_catalog.pg_class c ON c.oid = l.oid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
"""

_GENERATED = """
SELECT a.attname
FROM pg_catalog.pg_attribute a
JOIN pg_catalog.pg_class c ON c.oid = a.attrelid
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = %s AND c.relname = %s AND a.attgenerated <> '' AND NOT a.attisdropped
"""

# indkey is an int2vector, which counts from 0
_KEYS = """
SELECT i.indrelid::bigint, i.indisprimary, {immediate}, {identity},
       i.indisunique AND {immediate} AND i.indpred IS NULL AND i.indexprs IS NULL,
       ARRAY(SELECT a.attname::text
             FROM pg_catalog.generate_series(0, {count} - 1) AS k(n)
             JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[k.n]
             ORDER BY k.n)
FROM pg_catalog.pg_index i
WHERE i.indrelid = ANY(%s) AND i.indisvalid AND i.indisunique
ORDER BY i.indrelid, i.indexrelid
"""
