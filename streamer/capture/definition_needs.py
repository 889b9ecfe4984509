"""What tables need besides their types: collations, and the extensions behind their defaults, indexes and constraints.

The server knows it all: whatever it would not drop without the tables is in pg_depend. A collation is needed, because the tables
cannot be made without it. An extension that no column's type belongs to may be missing: what uses it is left out then, one by one.

https://www.postgresql.org/docs/current/catalog-pg-depend.html
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from streamer.capture.definition_types import COLLATIONS, quote
from streamer.model import Creation, TableName
from streamer.session import Connection, version

PROVIDERS: Final = 100000
NONDETERMINISTIC: Final = 120000
_ICU_LOCALE: Final = 150000
_RULES: Final = 160000
_LOCALE: Final = 170000


def needed_collations(connection: Connection, tables: Collection[int], types: Collection[int]) -> list[Creation]:
    """Return what makes the collations that somebody has made, and these tables or types use."""
    number = version(connection)
    if number < COLLATIONS:
        return []
    made = []
    for schema, name, statement in connection.execute(_collations(number).encode(), _oids(tables, types)):
        qualified = f"{quote(schema)}.{quote(name)}"
        made.append(Creation("collation", TableName(schema, name), statement, f"collation {qualified}"))
    return made


def needed_extensions(connection: Connection, tables: Collection[int], types: Collection[int]) -> list[Creation]:
    """Return what makes the extensions that defaults, indexes and constraints of the tables use."""
    if version(connection) < COLLATIONS:
        return []
    made = []
    for schema, name in connection.execute(_EXTENSIONS.encode(), _oids(tables, types)):
        statement = f"CREATE EXTENSION {quote(name)} WITH SCHEMA {quote(schema)}"
        made.append(Creation("extension", TableName(schema, name), statement, f"extension {quote(name)}", required=False))
    return made


def _oids(tables: Collection[int], types: Collection[int]) -> dict[str, list[int]]:
    return {"tables": list(tables), "types": list(types)}


def _collations(number: int) -> str:
    """The query for a server of this version."""
    locale = "c.colllocale" if number >= _LOCALE else "c.colliculocale" if number >= _ICU_LOCALE else "c.collcollate::text"
    libc = "'LC_COLLATE = ' || quote_literal(c.collcollate) || ', LC_CTYPE = ' || quote_literal(c.collctype)"
    options = libc
    if number >= PROVIDERS:
        options = (
            f"CASE c.collprovider WHEN 'i' THEN 'PROVIDER = icu, LOCALE = ' || quote_literal({locale}) "
            f"WHEN 'b' THEN 'PROVIDER = builtin, LOCALE = ' || quote_literal({locale}) ELSE {libc} END"
        )
    if number >= NONDETERMINISTIC:
        options += " || CASE WHEN c.collisdeterministic THEN '' ELSE ', DETERMINISTIC = false' END"
    if number >= _RULES:
        options += " || coalesce(', RULES = ' || quote_literal(c.collicurules), '')"
    return _COLLATIONS.format(options=options)


_NEEDS: Final = """
WITH needy AS (
    SELECT 'pg_class'::regclass::oid AS class, unnest(%(tables)s::bigint[])::oid AS oid
    UNION ALL SELECT 'pg_class'::regclass, indexrelid FROM pg_index WHERE indrelid = ANY(%(tables)s)
    UNION ALL SELECT 'pg_constraint'::regclass, oid FROM pg_constraint WHERE conrelid = ANY(%(tables)s)
    UNION ALL SELECT 'pg_attrdef'::regclass, oid FROM pg_attrdef WHERE adrelid = ANY(%(tables)s)
    UNION ALL SELECT 'pg_type'::regclass, unnest(%(types)s::bigint[])::oid
    UNION ALL SELECT 'pg_class'::regclass, typrelid FROM pg_type WHERE oid = ANY(%(types)s) AND typrelid <> 0
    UNION ALL SELECT 'pg_constraint'::regclass, oid FROM pg_constraint WHERE contypid = ANY(%(types)s)
)
"""
_COLLATIONS: Final = f"""{_NEEDS}
SELECT DISTINCT n.nspname, c.collname,
       'CREATE COLLATION ' || quote_ident(n.nspname) || '.' || quote_ident(c.collname) || ' (' || {{options}} || ')'
FROM needy
JOIN pg_depend d ON d.classid = needy.class AND d.objid = needy.oid AND d.refclassid = 'pg_collation'::regclass
JOIN pg_collation c ON c.oid = d.refobjid
JOIN pg_namespace n ON n.oid = c.collnamespace
WHERE n.nspname <> 'pg_catalog'
  AND NOT EXISTS (SELECT 1 FROM pg_depend m WHERE m.classid = d.refclassid AND m.objid = c.oid AND m.deptype = 'e')
ORDER BY 1, 2
"""
_EXTENSIONS: Final = f"""{_NEEDS}
SELECT DISTINCT n.nspname, e.extname
FROM needy
JOIN pg_depend d ON d.classid = needy.class AND d.objid = needy.oid
JOIN pg_depend m ON m.classid = d.refclassid AND m.objid = d.refobjid AND m.deptype = 'e'
JOIN pg_extension e ON m.refclassid = 'pg_extension'::regclass AND e.oid = m.refobjid
JOIN pg_namespace n ON n.oid = e.extnamespace
ORDER BY 1, 2
"""
