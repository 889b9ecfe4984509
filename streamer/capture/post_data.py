"""The indexes and constraints of a source's tables that are objects of their own, and which of them a target gets after the rows.

The key by which changes find their rows is there before the rows; so are all unique ones where the sync says so. The server itself
writes the definitions, on a session whose search_path is pg_catalog alone. The traps: 8.4 has no exclusion constraints and nothing
deferrable; the index of a partitioned table is written `ON ONLY`, which older servers don't know.

https://www.postgresql.org/docs/current/catalog-pg-index.html
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from streamer.capture.catalog import DEFERRABLE, INCLUDED, REPLICA_IDENTITY
from streamer.model import TableName
from streamer.post_data import First, Kind, PostData
from streamer.session import Connection, version

EXCLUSIONS: Final = 90000
VALIDATED: Final = 90100  # constraints that may not hold for all rows


@dataclass(frozen=True, slots=True)
class Selection:
    """What is wanted of a source for a target that lacks some tables."""

    #: that are to be made
    tables: Sequence[TableName]
    #: of which the target has all rows: foreign keys may refer to them
    complete: Collection[TableName]
    first: First


@dataclass(frozen=True, slots=True)
class Object:
    """An index or a constraint."""

    made_by: PostData
    #: whether it must be there before the rows
    first: bool = False
    primary: bool = False
    constraint: bool = True
    #: why a target cannot have it; empty if it can
    obstacle: str = ""


def read_objects(connection: Connection, relations: Mapping[TableName, TableName], selection: Selection) -> list[Object]:
    """Return them for `relations`, tables or partitions, each with the selected table that it is or belongs to; in an order that
    works. The search_path must be pg_catalog."""
    names = {"schemas": [r.schema for r in relations], "names": [r.name for r in relations]}
    number = version(connection)
    indexes = _INDEXES.format(
        exclusion="i.indisexclusion" if number >= EXCLUSIONS else "false",
        immediate="i.indimmediate" if number >= DEFERRABLE else "true",
        identity="i.indisreplident" if number >= REPLICA_IDENTITY else "false",
        count="i.indnkeyatts" if number >= INCLUDED else "i.indnatts",
    )
    found = [_index(row, relations, selection) for row in connection.execute(indexes.encode(), names)]
    constraints = _CONSTRAINTS.format(late="NOT k.convalidated" if number >= VALIDATED else "false")
    return [*found, *(_constraint(row, relations, selection) for row in connection.execute(constraints.encode(), names))]


def _index(row: tuple[Any, ...], relations: Mapping[TableName, TableName], selection: Selection) -> Object:
    schema, relation, qualified, name, quoted, primary, unique, exclusion, identity, constraint, definition, columns = row
    on = TableName(schema, relation)
    table = relations[on]
    first = bool(primary or identity or (unique and columns and selection.first(table, columns)))
    if constraint:
        statement = f"ALTER TABLE {qualified} ADD CONSTRAINT {quoted} {definition}"
    else:
        statement = definition.replace(f" INDEX {quoted} ON ONLY ", f" INDEX {quoted} ON ", 1)
    kind: Kind = "unique" if unique or exclusion else "index"
    what = f"{'constraint' if constraint else 'index'} {quoted} of table {qualified}"
    return Object(PostData(kind, (table,), on, name, statement, what), first, primary, constraint)


def _constraint(row: tuple[Any, ...], relations: Mapping[TableName, TableName], selection: Selection) -> Object:
    """A foreign key, or a check or NOT NULL that need not hold for the rows."""
    schema, relation, qualified, name, quoted, definition, other_schema, other, other_qualified = row
    on = TableName(schema, relation)
    table = relations[on]
    statement, what = f"ALTER TABLE {qualified} ADD CONSTRAINT {quoted} {definition}", f"constraint {quoted} of table {qualified}"
    if other is None:
        return Object(PostData("check", (table,), on, name, statement, what))
    refers = TableName(other_schema, other)
    refers = relations.get(refers, refers)
    obstacle = "" if refers in selection.complete else f"the target does not get all rows of {other_qualified}"
    tables = (table,) if refers == table else (table, refers)
    return Object(PostData("foreign key", tables, on, name, statement, what), obstacle=obstacle)


def partition_roots(connection: Connection, tables: Sequence[TableName]) -> Iterator[tuple[TableName, TableName]]:
    """Give each partition of these tables, those between root and leaf as well, with the table. Version 10 and later."""
    for schema, name, root_schema, root in connection.execute(_PARTITIONS, [[t.schema for t in tables], [t.name for t in tables]]):
        yield TableName(schema, name), TableName(root_schema, root)


_NAMED: Final = """
JOIN pg_namespace n ON n.oid = t.relnamespace
WHERE (n.nspname, t.relname) IN (SELECT s[i], r[i] FROM (SELECT %(schemas)s::text[] AS s, %(names)s::text[] AS r) AS wanted,
                                 generate_series(1, array_upper(%(names)s::text[], 1)) AS i)
"""
_INDEXES: Final = f"""
SELECT n.nspname, t.relname, t.oid::regclass::text, c.relname, quote_ident(c.relname), i.indisprimary, i.indisunique, {{exclusion}},
       {{identity}}, k.oid IS NOT NULL, coalesce(pg_get_constraintdef(k.oid), pg_get_indexdef(i.indexrelid)),
       CASE WHEN i.indisunique AND {{immediate}} AND i.indpred IS NULL AND i.indexprs IS NULL
            THEN ARRAY(SELECT a.attname::text FROM pg_attribute a
                       WHERE a.attrelid = i.indrelid AND a.attnum = ANY ((i.indkey::int2[])[0:{{count}} - 1])) END
FROM pg_index i
JOIN pg_class c ON c.oid = i.indexrelid
LEFT JOIN pg_depend d ON d.classid = 'pg_class'::regclass AND d.objid = i.indexrelid
                      AND d.refclassid = 'pg_constraint'::regclass AND d.deptype = 'i'
LEFT JOIN pg_constraint k ON k.oid = d.refobjid
JOIN pg_class t ON t.oid = i.indrelid {_NAMED} AND i.indisvalid
ORDER BY 1, 2, i.indisprimary DESC, c.relname
"""
_CONSTRAINTS: Final = f"""
SELECT n.nspname, t.relname, t.oid::regclass::text, k.conname, quote_ident(k.conname), pg_get_constraintdef(k.oid),
       fn.nspname, f.relname, f.oid::regclass::text
FROM pg_constraint k
LEFT JOIN pg_class f ON f.oid = k.confrelid AND k.contype = 'f'
LEFT JOIN pg_namespace fn ON fn.oid = f.relnamespace
JOIN pg_class t ON t.oid = k.conrelid {_NAMED} AND (k.contype = 'f' OR k.contype IN ('c', 'n') AND {{late}})
ORDER BY k.contype, 1, 2, k.conname
"""
_PARTITIONS: Final = """
WITH RECURSIVE part(oid, root) AS (
    SELECT c.oid, c.oid FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    JOIN unnest(%s::text[], %s::text[]) AS wanted(schema, name) ON wanted.schema = n.nspname AND wanted.name = c.relname
    WHERE c.relkind = 'p'
    UNION
    SELECT i.inhrelid, part.root FROM pg_inherits i JOIN part ON part.oid = i.inhparent
)
SELECT n.nspname, c.relname, rn.nspname, r.relname
FROM part JOIN pg_class c ON c.oid = part.oid JOIN pg_namespace n ON n.oid = c.relnamespace
JOIN pg_class r ON r.oid = part.root JOIN pg_namespace rn ON rn.oid = r.relnamespace
WHERE c.relispartition AND part.oid <> part.root ORDER BY 1, 2
"""
