"""The types that tables need, as statements that make them on a target: enums, domains, composites, ranges, and extensions.

A type is made after those that it is built from. What belongs to an extension is made by creating the extension. The trap: a type
that 8.4 and 9.0 have from a module belongs to no extension, and nobody can make it from the catalog.

https://www.postgresql.org/docs/current/catalog-pg-type.html
"""

from __future__ import annotations

from typing import Any, Final

from psycopg import sql

from streamer.errors import SchemaError
from streamer.model import Creation, TableName
from streamer.session import Connection, version

COLLATIONS: Final = 90100  # and extensions, and the order of an enum's values: version 9.1
RANGES: Final = 90200
MULTIRANGES: Final = 140000


def quote(name: str) -> str:
    """Return the name as an SQL identifier."""
    return sql.Identifier(name).as_string()


def literal(text: str) -> str:
    """Return the text as an SQL literal, whatever the server makes of a backslash in it."""
    return sql.Literal(text).as_string().strip()


def collation(of: str, default: str, number: int) -> tuple[str, str]:
    """The expression for a COLLATE clause where the collation `of` is not the `default` one, and the joins that it needs;
    `number` is the version of the older server."""
    if number < COLLATIONS:
        return "''", ""
    clause = (
        f"CASE WHEN {of} <> {default} THEN ' COLLATE ' || quote_ident(cn.nspname) || '.' || quote_ident(co.collname) ELSE '' END"
    )
    return clause, f"LEFT JOIN pg_collation co ON co.oid = {of} LEFT JOIN pg_namespace cn ON cn.oid = co.collnamespace"


class TypeDefinitions:
    """Collects types for a server of version `target`; `creations` holds them in an order that works.

    The session's search_path must be pg_catalog.
    """

    def __init__(self, connection: Connection, target: int) -> None:
        self._execute = connection.execute
        self._version = version(connection)
        self._statements = _statements(self._version, target)
        #: the types that were looked at, those of the catalog too
        self.seen: set[int] = set()
        self.creations: list[Creation] = []
        self.schemas: set[str] = set()

    def collect(self, oid: int) -> None:
        """Add the type and what it is built from, unless every server has it. Raises SchemaError."""
        if oid in self.seen:
            return
        self.seen.add(oid)
        query = _TYPE.format(**_EXTENSION if self._version >= COLLATIONS else _NO_EXTENSION)
        row: Any = self._execute(query.encode(), [oid]).fetchone()
        kind, element, schema, name, qualified, extension, extension_schema = row
        if element:
            self.collect(element)
        elif extension is not None:
            self._add_extension(extension, extension_schema)
        elif schema not in ("pg_catalog", "information_schema"):
            self._add(oid, kind, TableName(schema, name), qualified)

    def _add_extension(self, extension: str, schema: str) -> None:
        name = TableName(schema, extension)
        if all(c.name != name for c in self.creations):
            self.schemas.add(schema)
            statement = f"CREATE EXTENSION {quote(extension)} WITH SCHEMA {quote(schema)}"
            self.creations.append(Creation("extension", name, statement, f"extension {quote(extension)}"))

    def _add(self, oid: int, kind: str, name: TableName, qualified: str) -> None:
        if kind == "m":  # comes into being with its range
            for (parent,) in self._execute("SELECT rngtypid::bigint FROM pg_range WHERE rngmultitypid = %s", [oid]):
                self.collect(parent)
            return
        if kind not in self._statements:
            raise SchemaError(
                f"type {qualified} cannot be made from the catalog", "create it on the target, with the tables that use it"
            )
        for (part,) in self._execute((_PARTS + _RANGE_PARTS * (self._version >= RANGES)).encode(), {"oid": oid}):
            self.collect(part)
        row = self._execute(self._statements[kind].encode(), {"oid": oid}).fetchone()
        if row is None or row[0] is None:  # the row type of a table
            return
        self.schemas.add(name.schema)
        self.creations.append(Creation("type", name, row[0], f"type {qualified}"))


_TYPE: Final = """
SELECT t.typtype::text, CASE WHEN t.typtype = 'b' AND t.typcategory = 'A' AND t.typelem <> 0 THEN t.typelem::bigint END,
       n.nspname, t.typname, format_type(t.oid, NULL), {names}
FROM pg_type t
JOIN pg_namespace n ON n.oid = t.typnamespace{joins}
WHERE t.oid = %s
"""
_NO_EXTENSION: Final = {"names": "NULL, NULL", "joins": ""}
_EXTENSION: Final = {
    "names": "e.extname, en.nspname",
    "joins": """
LEFT JOIN pg_depend d ON d.classid = 'pg_type'::regclass AND d.objid = t.oid AND d.deptype = 'e'
LEFT JOIN pg_extension e ON e.oid = d.refobjid
LEFT JOIN pg_namespace en ON en.oid = e.extnamespace""",
}

_PARTS: Final = """
SELECT typbasetype::bigint FROM pg_type WHERE oid = %(oid)s AND typbasetype <> 0
UNION ALL
SELECT a.atttypid::bigint FROM pg_type t JOIN pg_attribute a ON a.attrelid = t.typrelid
WHERE t.oid = %(oid)s AND a.attnum > 0 AND NOT a.attisdropped
"""
_RANGE_PARTS: Final = """
UNION ALL
SELECT rngsubtype::bigint FROM pg_range WHERE rngtypid = %(oid)s
"""


def _statements(number: int, target: int) -> dict[str, str]:
    """The queries that give, on a server of version `number`, what makes a type on one of version `target`, by the type's kind."""
    collated, joins = collation("t.typcollation", "b.typcollation", min(number, target))
    of_part, parts = collation("a.attcollation", "b.typcollation", min(number, target))
    of_range, ranges = collation("r.rngcollation", "b.typcollation", min(number, target))
    multirange = min(number, target) >= MULTIRANGES
    return {
        "e": _ENUM.format(order="enumsortorder" if number >= COLLATIONS else "oid"),
        "d": _DOMAIN.format(collated=collated, joins=joins),
        "c": _COMPOSITE.format(collated=of_part, joins=parts),
        "r": _RANGE.format(
            collated=of_range.replace(" COLLATE ", ", COLLATION = "), joins=ranges, multirange=_MULTIRANGE if multirange else "''"
        ),
    }


_ENUM: Final = """
SELECT 'CREATE TYPE ' || quote_ident(n.nspname) || '.' || quote_ident(t.typname) || ' AS ENUM ('
       || array_to_string(ARRAY(SELECT quote_literal(enumlabel) FROM pg_enum WHERE enumtypid = t.oid ORDER BY {order}), ', ')
       || ')'
FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace WHERE t.oid = %(oid)s
"""
_DOMAIN: Final = """
SELECT 'CREATE DOMAIN ' || quote_ident(n.nspname) || '.' || quote_ident(t.typname) || ' AS '
       || format_type(t.typbasetype, t.typtypmod) || {collated}
       || coalesce(' DEFAULT ' || t.typdefault, '') || CASE WHEN t.typnotnull THEN ' NOT NULL' ELSE '' END
       || array_to_string(ARRAY(SELECT ' CONSTRAINT ' || quote_ident(k.conname) || ' ' || pg_get_constraintdef(k.oid)
                                FROM pg_constraint k WHERE k.contypid = t.oid AND k.contype = 'c' ORDER BY k.conname), '')
FROM pg_type t
JOIN pg_namespace n ON n.oid = t.typnamespace
JOIN pg_type b ON b.oid = t.typbasetype
{joins}
WHERE t.oid = %(oid)s
"""
_COMPOSITE: Final = """
SELECT 'CREATE TYPE ' || quote_ident(n.nspname) || '.' || quote_ident(t.typname) || ' AS ('
       || array_to_string(ARRAY(SELECT quote_ident(a.attname) || ' ' || format_type(a.atttypid, a.atttypmod) || {collated}
                                FROM pg_attribute a JOIN pg_type b ON b.oid = a.atttypid {joins}
                                WHERE a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped
                                ORDER BY a.attnum), ', ')
       || ')'
FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace JOIN pg_class c ON c.oid = t.typrelid
WHERE t.oid = %(oid)s AND c.relkind = 'c'
"""
_RANGE: Final = """
SELECT 'CREATE TYPE ' || quote_ident(n.nspname) || '.' || quote_ident(t.typname) || ' AS RANGE (SUBTYPE = '
       || format_type(r.rngsubtype, NULL) || {collated} || {multirange} || ')'
FROM pg_type t
JOIN pg_namespace n ON n.oid = t.typnamespace
JOIN pg_range r ON r.rngtypid = t.oid
JOIN pg_type b ON b.oid = r.rngsubtype
{joins}
WHERE t.oid = %(oid)s
"""
_MULTIRANGE: Final = "', MULTIRANGE_TYPE_NAME = ' || format_type(r.rngmultitypid, NULL)"
