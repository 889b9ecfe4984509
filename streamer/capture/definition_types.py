"""The types that tables need, as statements that make them on a target: enums, domains, composites, ranges, and extensions.

A type is made after those that it is built from. What belongs to an extension is made by creating the extension.

https://www.postgresql.org/docs/current/catalog-pg-type.html
"""

from __future__ import annotations

from typing import Any, Final

from psycopg import sql

from streamer.errors import SchemaError
from streamer.model import Creation, TableName
from streamer.session import Connection


def quote(name: str) -> str:
    """Return the name as an SQL identifier."""
    return sql.Identifier(name).as_string()


class TypeDefinitions:
    """Collects types; `creations` holds them in an order that works. The session's search_path must be pg_catalog."""

    def __init__(self, connection: Connection) -> None:
        self._execute = connection.execute
        self._seen: set[int] = set()
        self.creations: list[Creation] = []
        self.schemas: set[str] = set()

    def collect(self, oid: int) -> None:
        """Add the type and what it is built from, unless every server has it. Raises SchemaError."""
        if oid in self._seen:
            return
        self._seen.add(oid)
        row: Any = self._execute(_TYPE, [oid]).fetchone()
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
        if kind not in _STATEMENTS:
            raise SchemaError(
                f"type {qualified} cannot be made from the catalog", "create it on the target, with the tables that use it"
            )
        for (part,) in self._execute(_PARTS, {"oid": oid}):
            self.collect(part)
        row = self._execute(_STATEMENTS[kind], {"oid": oid}).fetchone()
        if row is None or row[0] is None:  # the row type of a table
            return
        self.schemas.add(name.schema)
        self.creations.append(Creation("type", name, row[0], f"type {qualified}"))


_TYPE: Final = """
SELECT t.typtype::text, CASE WHEN t.typtype = 'b' AND t.typcategory = 'A' AND t.typelem <> 0 THEN t.typelem::bigint END,
       n.nspname, t.typname, format_type(t.oid, NULL), e.extname, en.nspname
FROM pg_type t
JOIN pg_namespace n ON n.oid = t.typnamespace
LEFT JOIN pg_depend d ON d.classid = 'pg_type'::regclass AND d.objid = t.oid AND d.deptype = 'e'
LEFT JOIN pg_extension e ON e.oid = d.refobjid
LEFT JOIN pg_namespace en ON en.oid = e.extnamespace
WHERE t.oid = %s
"""

_PARTS: Final = """
SELECT typbasetype::bigint FROM pg_type WHERE oid = %(oid)s AND typbasetype <> 0
UNION ALL
SELECT a.atttypid::bigint FROM pg_type t JOIN pg_attribute a ON a.attrelid = t.typrelid
WHERE t.oid = %(oid)s AND a.attnum > 0 AND NOT a.attisdropped
UNION ALL
SELECT rngsubtype::bigint FROM pg_range WHERE rngtypid = %(oid)s
"""

_STATEMENTS: Final = {
    "e": """
SELECT format('CREATE TYPE %%I.%%I AS ENUM (', n.nspname, t.typname)
       || coalesce((SELECT string_agg(quote_literal(enumlabel), ', ' ORDER BY enumsortorder)
                    FROM pg_enum WHERE enumtypid = t.oid), '')
       || ')'
FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace WHERE t.oid = %(oid)s
""",
    "d": """
SELECT format('CREATE DOMAIN %%I.%%I AS ', n.nspname, t.typname) || format_type(t.typbasetype, t.typtypmod)
       || CASE WHEN t.typcollation <> b.typcollation THEN format(' COLLATE %%I.%%I', cn.nspname, co.collname) ELSE '' END
       || coalesce(' DEFAULT ' || t.typdefault, '') || CASE WHEN t.typnotnull THEN ' NOT NULL' ELSE '' END
       || coalesce((SELECT string_agg(format(' CONSTRAINT %%I ', k.conname) || pg_get_constraintdef(k.oid), '' ORDER BY k.conname)
                    FROM pg_constraint k WHERE k.contypid = t.oid AND k.contype = 'c'), '')
FROM pg_type t
JOIN pg_namespace n ON n.oid = t.typnamespace
JOIN pg_type b ON b.oid = t.typbasetype
LEFT JOIN pg_collation co ON co.oid = t.typcollation
LEFT JOIN pg_namespace cn ON cn.oid = co.collnamespace
WHERE t.oid = %(oid)s
""",
    "c": """
SELECT format('CREATE TYPE %%I.%%I AS (', n.nspname, t.typname)
       || coalesce((SELECT string_agg(quote_ident(a.attname) || ' ' || format_type(a.atttypid, a.atttypmod), ', ' ORDER BY a.attnum)
                    FROM pg_attribute a WHERE a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped), '')
       || ')'
FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace JOIN pg_class c ON c.oid = t.typrelid
WHERE t.oid = %(oid)s AND c.relkind = 'c'
""",
    "r": """
SELECT format('CREATE TYPE %%I.%%I AS RANGE (SUBTYPE = ', n.nspname, t.typname) || format_type(r.rngsubtype, NULL) || ')'
FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace JOIN pg_range r ON r.rngtypid = t.oid WHERE t.oid = %(oid)s
""",
}
