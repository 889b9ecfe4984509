"""A PostgreSQL table as the target's catalog has it, and names in SQL.

The trap: what a value is compared by is not always `=`, nor is a cast from text always what the type reads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from streamer.errors import SchemaError
from streamer.model import TableName
from streamer.session import Connection, version


@dataclass(frozen=True, slots=True)
class TargetColumn:
    """A column of the target's table."""

    name: str
    #: the type without modifiers, of a domain the one below it: what a value is cast to without being cut
    base_type: str
    generated: bool
    always_identity: bool
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


def read_target(connection: Connection, node: str, table: TableName) -> TargetTable:
    """Return the table. Raises SchemaError if it does not exist."""
    number = version(connection)
    columns = _COLUMNS.format(
        generated="a.attgenerated <> ''" if number >= 120000 else "false",
        identity="a.attidentity = 'a'" if number >= 100000 else "false",
        equals=EQUALS.format(opclass="o.opcdefault AND o.opcintype = b.oid"),
    )
    # prepared: planning takes longer than all the rest, which adds up to half a minute for a thousand tables
    rows = connection.execute(columns, {"schema": table.schema, "name": table.name}, prepare=True).fetchall()
    if not rows:
        raise SchemaError(f'table "{table}" does not exist on "{node}", or has no columns', "run: streamer setup, or exclude it")
    query = _UNIQUES.format(
        immediate="i.indimmediate" if number >= 90000 else "true",
        identity="i.indisreplident" if number >= 90400 else "false",
        **index_columns(number),
    )
    uniques = connection.execute(query, [table.schema, table.name], prepare=True).fetchall()
    keys = tuple(tuple(names) for names, is_key, _ in uniques if is_key)
    nulls_alike = frozenset(tuple(names) for names, _, alike in uniques if alike)
    partitioned = bool(rows[0][-1])
    found = {row[0]: TargetColumn(*row[:-1]) for row in rows}
    return TargetTable(table, found, keys, tuple(tuple(row[0]) for row in uniques), partitioned, nulls_alike)


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
WITH RECURSIVE bases AS (
    SELECT t.oid AS type, t.oid, t.typtype, t.typarray, t.typdelim, t.typbasetype FROM pg_catalog.pg_type t
    WHERE t.oid IN (SELECT atttypid FROM pg_catalog.pg_attribute a
                    JOIN pg_catalog.pg_class c ON c.oid = a.attrelid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
                    WHERE n.nspname = %(schema)s AND c.relname = %(name)s)
    UNION ALL
    SELECT b.type, t.oid, t.typtype, t.typarray, t.typdelim, t.typbasetype
    FROM bases b JOIN pg_catalog.pg_type t ON t.oid = b.typbasetype
    WHERE b.typtype = 'd'
)
SELECT a.attname, pg_catalog.format_type(b.oid, -1), {generated}, {identity},
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
       coalesce((SELECT {equals} AND s.nspname <> 'pg_catalog'), '='),
       c.relkind = 'p'
FROM pg_catalog.pg_class c
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
JOIN bases b ON b.type = a.atttypid AND b.typtype <> 'd'
WHERE n.nspname = %(schema)s AND c.relname = %(name)s AND c.relkind IN ('r', 'p')
ORDER BY a.attnum
"""

_UNIQUES: Final = """
SELECT ARRAY(SELECT a.attname::text FROM pg_catalog.generate_series(0, i.{count} - 1) AS k(n)
             JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[k.n] ORDER BY k.n),
       NOT EXISTS (SELECT 1 FROM pg_catalog.pg_attribute a
                                      WHERE a.attrelid = i.indrelid AND a.attnum = ANY (i.indkey) AND NOT a.attnotnull),
       {nulls_alike}
FROM pg_catalog.pg_index i
JOIN pg_catalog.pg_class c ON c.oid = i.indrelid
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = %s AND c.relname = %s AND i.indisunique AND i.indisvalid AND i.indpred IS NULL AND i.indexprs IS NULL
  AND {immediate}
ORDER BY NOT {identity}, NOT i.indisprimary, i.indexrelid
"""


def quote(name: str) -> str:
    """Return the name as an SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def quoted(table: TableName) -> str:
    """Return the qualified name in SQL."""
    return f"{quote(table.schema)}.{quote(table.name)}"
