"""A PostgreSQL table as the target's catalog has it, and names in SQL.

The trap: what a value is compared by is not always `=`, nor is a cast from text always what the type reads.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import Any, Final, NamedTuple
from weakref import WeakKeyDictionary

from streamer.errors import SchemaError
from streamer.model import TableName
from streamer.session import Connection, version


class TargetType(NamedTuple):
    """What matters of a type; of a domain, what matters of the one below it."""

    #: without modifiers: what a value is cast to without being cut
    base_type: str
    #: whether somebody has made a cast from text to the type: then it may differ from how the type reads its values
    own_cast: bool
    #: whether values of the type can be compared by `=`, and are alike if they are equal
    has_equality: bool
    #: whether the type is a domain over an enum
    enum_domain: bool
    #: whether an array of the type is written with commas, and `unnest` gives its elements as they are
    in_arrays: bool
    #: the operator that indexes go by: that of a type from an extension must be named with its schema, or text would be compared
    equals: str


_known_types: Final = WeakKeyDictionary[Connection, dict[int, TargetType]]()
"""What a session has once been told of a type it does not ask for again: that takes longer than all the rest."""


@dataclass(frozen=True, slots=True)
class TargetColumn:
    """A column of the target's table."""

    name: str
    type: TargetType
    generated: bool
    always_identity: bool


@dataclass(frozen=True, slots=True)
class TargetTable:
    """The target's table as its catalog has it. `keys` are the column sets that are unique and not null, an index that
    is the replica identity first, then the primary key;
    `uniques` all that are unique, `nulls_alike` those of them in which a NULL is like another one. Deferrable ones don't count: a
    session that acts as a replica does not check them."""

    table: TableName
    columns: dict[str, TargetColumn]
    keys: tuple[tuple[str, ...], ...]
    uniques: tuple[tuple[str, ...], ...]
    partitioned: bool = False
    nulls_alike: frozenset[tuple[str, ...]] = frozenset()

    @property
    def rows(self) -> str:
        """The table in SQL, for statements that look at rows: with its partitions, but without tables that inherit from it, which
        are tables of their own."""
        return f"{'' if self.partitioned else 'ONLY '}{quoted(self.table)}"


class _Unique(NamedTuple):
    """A unique index."""

    columns: tuple[str, ...]
    #: whether no column may be null
    is_key: bool
    nulls_alike: bool


def read_target(connection: Connection, node: str, table: TableName) -> TargetTable:
    """Return the table. Raises SchemaError if it does not exist."""
    found = read_targets(connection, {table}).get(table)
    if found is None:
        raise SchemaError(f'table "{table}" does not exist on "{node}", or has no columns', "run: streamer setup, or exclude it")
    return found


def read_targets(connection: Connection, tables: Set[TableName]) -> dict[TableName, TargetTable]:
    """Return those of the tables that exist."""
    rows = [row for row in _columns(connection, tables) if TableName(*row[:2]) in tables]
    types = _types(connection, {row[5] for row in rows})
    uniques = _uniques(connection, sorted({row[2] for row in rows}))
    return {
        TableName(schema, name): _table(TableName(schema, name), partitioned, columns, types, uniques.get(oid, []))
        for (schema, name, oid, partitioned), columns in groupby(rows, itemgetter(0, 1, 2, 3))
    }


def _table(
    table: TableName,
    partitioned: bool,
    columns: Iterable[tuple[Any, ...]],
    types: Mapping[int, TargetType],
    uniques: Sequence[_Unique],
) -> TargetTable:
    return TargetTable(
        table,
        {name: TargetColumn(name, types[oid], *flags) for name, oid, *flags in (row[4:] for row in columns)},
        tuple(names for names, is_key, _ in uniques if is_key),
        tuple(names for names, _, _ in uniques),
        partitioned,
        frozenset(names for names, _, alike in uniques if alike),
    )


def _columns(connection: Connection, tables: Set[TableName]) -> list[tuple[Any, ...]]:
    """The columns of the tables, in order; perhaps of others as well."""
    number = version(connection)
    query = _COLUMNS.format(
        generated="a.attgenerated <> ''" if number >= 120000 else "false",
        identity="a.attidentity = 'a'" if number >= 100000 else "false",
    )
    schemas, names = {table.schema for table in tables}, {table.name for table in tables}
    return _ask(connection, query, sorted(schemas), sorted(names))


def _types(connection: Connection, types: Set[int]) -> Mapping[int, TargetType]:
    """What matters of the types with these oids, and of those that were asked for before."""
    known = _known_types.setdefault(connection, {})
    if new := types - known.keys():
        query = _TYPES.format(equals=EQUALS.format(opclass="o.opcdefault AND o.opcintype = b.oid"))
        known |= {oid: TargetType(*facts) for oid, *facts in _ask(connection, query, sorted(new))}
    return known


def _uniques(connection: Connection, tables: list[int]) -> dict[int, list[_Unique]]:
    """The unique indexes by the oids of their tables."""
    number = version(connection)
    query = _UNIQUES.format(
        immediate="i.indimmediate" if number >= 90000 else "true",
        identity="i.indisreplident" if number >= 90400 else "false",
        **index_columns(number),
    )
    uniques: dict[int, list[_Unique]] = {}
    for oid, names, is_key, nulls_alike in _ask(connection, query, tables):
        uniques.setdefault(oid, []).append(_Unique(tuple(names), is_key, nulls_alike))
    return uniques


def _ask(connection: Connection, query: str, *parameters: list[Any]) -> list[tuple[Any, ...]]:
    # prepared: planning takes longer than all the rest, which adds up to half a minute for a thousand tables
    return connection.execute(query.encode(), parameters, prepare=True).fetchall()


EQUALS: Final = """'OPERATOR(' || pg_catalog.quote_ident(s.nspname) || '.' || e.oprname || ')'
          FROM pg_catalog.pg_opclass o
          JOIN pg_catalog.pg_am m ON m.oid = o.opcmethod AND m.amname = 'btree'
          JOIN pg_catalog.pg_amop p ON p.amopfamily = o.opcfamily AND p.amopstrategy = 3
                                   AND p.amoplefttype = o.opcintype AND p.amoprighttype = o.opcintype
          JOIN pg_catalog.pg_operator e ON e.oid = p.amopopr
          JOIN pg_catalog.pg_namespace s ON s.oid = e.oprnamespace
          WHERE {opclass}"""
"""What follows SELECT to get the operator by which an operator class takes values for equal."""


def index_columns(server: int) -> dict[str, str]:
    """Return what pg_index has by version, in SQL: the number of columns that are compared, and whether NULLs are alike."""
    return {
        "count": "indnkeyatts" if server >= 110000 else "indnatts",
        "nulls_alike": "i.indnullsnotdistinct" if server >= 150000 else "false",
    }


_COLUMNS: Final = """
SELECT n.nspname, c.relname, c.oid::bigint, c.relkind = 'p', a.attname, a.atttypid::bigint, {generated}, {identity}
FROM pg_catalog.pg_class c
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
WHERE n.nspname = ANY (%s::name[]) AND c.relname = ANY (%s::name[]) AND c.relkind IN ('r', 'p')
ORDER BY c.oid, a.attnum
"""

_TYPES: Final = """
WITH RECURSIVE bases AS (
    SELECT t.oid AS type, t.oid, t.typtype, t.typarray, t.typdelim, t.typbasetype FROM pg_catalog.pg_type t
    WHERE t.oid = ANY (%s::oid[])
    UNION ALL
    SELECT b.type, t.oid, t.typtype, t.typarray, t.typdelim, t.typbasetype
    FROM bases b JOIN pg_catalog.pg_type t ON t.oid = b.typbasetype
    WHERE b.typtype = 'd'
)
SELECT b.type::bigint, pg_catalog.format_type(b.oid, -1),
       EXISTS (SELECT 1 FROM pg_catalog.pg_cast k
               WHERE k.castsource = 'text'::regtype AND k.casttarget = b.oid AND k.castmethod = 'f' AND k.oid >= 16384),
       b.typtype IN ('e', 'r', 'm') OR EXISTS (
               SELECT 1 FROM pg_catalog.pg_opclass o JOIN pg_catalog.pg_am m ON m.oid = o.opcmethod
               WHERE o.opcdefault AND m.amname IN ('btree', 'hash') AND o.opcintype IN (
                   SELECT b.oid UNION ALL
                   SELECT k.casttarget FROM pg_catalog.pg_cast k
                   WHERE k.castsource = b.oid AND k.castmethod = 'b' AND k.castcontext = 'i')),
       b.typtype = 'e' AND b.oid <> b.type,
       b.typarray <> 0 AND b.typtype <> 'c' AND b.typdelim = ',',
       coalesce((SELECT {equals} AND s.nspname <> 'pg_catalog'), '=')
FROM bases b WHERE b.typtype <> 'd'
"""

_UNIQUES: Final = """
SELECT i.indrelid::bigint,
       ARRAY(SELECT a.attname::text FROM pg_catalog.generate_series(0, i.{count} - 1) AS k(n)
             JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[k.n] ORDER BY k.n),
       NOT EXISTS (SELECT 1 FROM pg_catalog.pg_attribute a
                                      WHERE a.attrelid = i.indrelid AND a.attnum = ANY (i.indkey) AND NOT a.attnotnull),
       {nulls_alike}
FROM pg_catalog.pg_index i
WHERE i.indrelid = ANY (%s::oid[]) AND i.indisunique AND i.indisvalid AND i.indpred IS NULL AND i.indexprs IS NULL
  AND {immediate}
ORDER BY NOT {identity}, NOT i.indisprimary, i.indexrelid
"""


def quote(name: str) -> str:
    """Return the name as an SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def quoted(table: TableName) -> str:
    """Return the qualified name in SQL."""
    return f"{quote(table.schema)}.{quote(table.name)}"


_OWNER: Final = """
SELECT r.rolname, r.rolsuper FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
JOIN pg_catalog.pg_roles r ON r.oid = c.relowner WHERE n.nspname = %s AND c.relname = %s
"""


def owning(connection: Connection, table: TableName) -> str:
    """Return the statement that lets our role do what only the owner of the table may. Raises psycopg.Error.

    An application that owns the table keeps it, as it could not write to it any more; a superuser can do without.
    """
    role = quote(connection.info.user)
    row = connection.execute(_OWNER, [table.schema, table.name]).fetchone()
    if row is None or row[1]:
        return f"ALTER TABLE {quoted(table)} OWNER TO {role}"
    return f"GRANT {quote(row[0])} TO {role}"
