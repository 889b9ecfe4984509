"""How tables are defined on the source, as statements that make the same on a target: read from the catalog.

The server itself writes most of the text (format_type, pg_get_expr, pg_get_constraintdef …), on a session whose search_path is
pg_catalog alone, so that every name comes out qualified. What a target may lack, such as a function in a default, is a
statement of its own that may fail. The traps: a partitioned table becomes an ordinary one; a virtual generated column is stored
before version 18; the queries run on 8.4 as well, which has neither format() nor string_agg().

https://www.postgresql.org/docs/current/catalogs.html
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, Final

from streamer.capture.catalog import GENERATED, PARTITIONED, REPLICA_IDENTITY, holds_no_null
from streamer.capture.definition_needs import needed_collations, needed_extensions
from streamer.capture.definition_types import TypeDefinitions, collation, quote
from streamer.capture.post_data import VALIDATED, Object, Selection, read_objects
from streamer.model import Creation, TableName
from streamer.post_data import PostData, Structure
from streamer.session import Connection, version

VIRTUAL: Final = 180000  # virtual generated columns: version 18


def table_structure(connection: Connection, selection: Selection, target: int) -> Structure:
    """Return what makes the tables on a server of version `target`, with the types and sequences that they need, in order.

    Raises SchemaError if a column's type cannot be made from the catalog, psycopg.Error.
    """
    with connection.transaction():
        connection.execute("SET LOCAL search_path = pg_catalog")
        objects = read_objects(connection, {table: table for table in selection.tables}, selection)
        return _Definitions(connection, selection.tables, target).structure(objects)


def needed_creations(connection: Connection, tables: Sequence[TableName], target: int) -> list[Creation]:
    """Return only what pg_dump leaves out: schemas, collations, extensions, types, sequences of others. Raises the same."""
    with connection.transaction():
        connection.execute("SET LOCAL search_path = pg_catalog")
        return _Definitions(connection, tables, target).before_dump()


class _Definitions:
    """Reads the definitions of some tables."""

    def __init__(self, connection: Connection, tables: Sequence[TableName], target: int) -> None:
        self._connection = connection
        self._execute = connection.execute
        self._source = version(connection)
        self._target = target
        self._tables = self._find(tables)
        self._types = TypeDefinitions(connection, target)

    def _find(self, tables: Sequence[TableName]) -> dict[int, TableName]:
        found = {}
        for table in tables:
            query = (
                "SELECT c.oid::bigint FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
                "WHERE n.nspname = %s AND c.relname = %s"
            )
            for (oid,) in self._execute(query, [table.schema, table.name]):
                found[oid] = table
        return found

    def structure(self, objects: Sequence[Object]) -> Structure:
        """Everything, in an order that works, with these indexes and constraints."""
        columns = self._columns()
        sequences = list(self._sequences(and_own=True))
        before = [
            *self._needed(sequences),
            *sequences,
            *(self._table(oid, columns[oid]) for oid in self._tables),
            *self._ownerships(),
            *self._defaults(),
            *(_creation(one.made_by, required=one.primary) for one in objects if one.first),
            *self._checks(),
            *self._identities(),
        ]
        late = [one for one in objects if not one.first]
        left_out = [f"{one.made_by.what}: {one.obstacle}" for one in late if one.obstacle]
        return Structure(before, [one.made_by for one in late if not one.obstacle], left_out)

    def before_dump(self) -> list[Creation]:
        """What pg_dump leaves out when it is told of the tables."""
        sequences = list(self._sequences(and_own=False))
        return [*self._needed(sequences), *sequences]

    def _needed(self, sequences: Sequence[Creation]) -> list[Creation]:
        """Schemas, collations, extensions and types."""
        query = "SELECT DISTINCT atttypid::bigint FROM pg_attribute WHERE attrelid = ANY(%s) AND attnum > 0 AND NOT attisdropped"
        for (oid,) in self._execute(query, [list(self._tables)]):
            self._types.collect(oid)
        collations = needed_collations(self._connection, self._tables, self._types.seen)
        made = {c.name for c in self._types.creations if c.kind == "extension"}
        extensions = [c for c in needed_extensions(self._connection, self._tables, self._types.seen) if c.name not in made]
        schemas = {one.schema for one in self._tables.values()} | self._types.schemas
        schemas |= {one.name.schema for one in (*sequences, *collations, *extensions)}
        return [*map(_schema, sorted(schemas)), *collations, *self._types.creations, *extensions]

    def _columns(self) -> dict[int, list[str]]:
        """The columns of every table as CREATE TABLE writes them."""
        collated, joins = collation("a.attcollation", "t.typcollation", min(self._source, self._target))
        query = _COLUMNS.format(
            collated=collated,
            joins=joins,
            identity="a.attidentity::text" if self._source >= PARTITIONED else "''",
            not_null=holds_no_null(self._source),
            generated="a.attgenerated::text" if self._source >= GENERATED else "''",
        )
        numbers = self._identity_sequences()
        found = defaultdict(list)
        for oid, position, start, not_null, expression, identity, generated in self._execute(query, [list(self._tables)]):
            parts = [start]
            if generated and self._target < GENERATED:
                continue  # the target has no such thing, and nobody would keep an ordinary column in step
            if generated:
                virtual = generated == "v" and self._target >= VIRTUAL
                parts.append(f"GENERATED ALWAYS AS ({expression}) {'VIRTUAL' if virtual else 'STORED'}")
            elif identity and self._target >= PARTITIONED:
                when = "ALWAYS" if identity == "a" else "BY DEFAULT"
                parts.append(f"GENERATED {when} AS IDENTITY ({numbers[oid, position]})")
            if not_null:
                parts.append("NOT NULL")
            found[oid].append(" ".join(parts))
        return found

    def _table(self, oid: int, columns: Sequence[str]) -> Creation:
        name = self._name(oid)
        listed = ",\n    ".join(columns)
        return Creation("table", self._tables[oid], f"CREATE TABLE {name} (\n    {listed}\n)", f"table {name}")

    def _name(self, oid: int) -> str:
        row: Any = self._execute("SELECT %s::bigint::oid::regclass::text", [oid]).fetchone()
        return str(row[0])

    # -- sequences ---------------------------------------------------------------------------------------------------------------

    def _identity_sequences(self) -> dict[tuple[int, int], str]:
        """The options of the sequences behind identity columns, by table and column number."""
        if self._source < PARTITIONED:
            return {}
        query = f"SELECT d.refobjid::bigint, d.refobjsubid, {_OPTIONS} {_IDENTITY_SEQUENCES}"
        return {(oid, number): options for oid, number, options in self._execute(query.encode(), [list(self._tables)])}

    def _sequences(self, *, and_own: bool) -> Iterator[Creation]:
        """The sequences that defaults draw from: those that belong to no column, and with `and_own` the others as well."""
        for oid, schema, name, qualified, owned in self._execute(_USED_SEQUENCES, [list(self._tables)]):
            if owned and not and_own:
                continue
            options = self._sequence_options(oid, qualified)
            yield Creation("sequence", TableName(schema, name), f"CREATE SEQUENCE {qualified} {options}", f"sequence {qualified}")

    def _sequence_options(self, oid: int, qualified: str) -> str:
        if self._source >= PARTITIONED:
            kind = "'AS ' || format_type(s.seqtypid, NULL) || ' ' || " if self._target >= PARTITIONED else ""
            query = f"SELECT {kind}{_OPTIONS} FROM pg_sequence s WHERE s.seqrelid = %s"
            row: Any = self._execute(query.encode(), [oid]).fetchone()
        else:  # the name comes from the catalog, quoted
            row = self._execute(f"SELECT {_OPTIONS_84} FROM {qualified}".encode()).fetchone()
        return str(row[0])

    def _ownerships(self) -> Iterator[Creation]:
        """Serial columns: their sequences go with them."""
        for oid, sequence, column in self._execute(_OWNERSHIPS, [list(self._tables)]):
            statement = f"ALTER SEQUENCE {sequence} OWNED BY {self._name(oid)}.{column}"
            yield Creation("detail", self._tables[oid], statement, f"owner of sequence {sequence}", required=False)

    # -- what may fail alone -----------------------------------------------------------------------------------------------------

    def _defaults(self) -> Iterator[Creation]:
        query = _DEFAULTS.format(generated="a.attgenerated = ''" if self._source >= GENERATED else "true")
        for oid, column, expression in self._execute(query, [list(self._tables)]):
            name = self._name(oid)
            yield Creation(
                "detail",
                self._tables[oid],
                f"ALTER TABLE {name} ALTER COLUMN {column} SET DEFAULT {expression}",
                f"default {expression} of column {column} of table {name}",
                required=False,
            )

    def _checks(self) -> Iterator[Creation]:
        """Checks that hold for all rows; the others come with what is made after them."""
        query = _CHECKS.format(valid="k.convalidated" if self._source >= VALIDATED else "true")
        for oid, constraint, definition in self._execute(query.encode(), [list(self._tables)]):
            name = self._name(oid)
            yield Creation(
                "detail",
                self._tables[oid],
                f"ALTER TABLE {name} ADD CONSTRAINT {constraint} {definition}",
                f"constraint {constraint} of table {name}",
                required=False,
            )

    def _identities(self) -> Iterator[Creation]:
        """Replica identities other than the default: needed where the target is a source as well."""
        if self._source < REPLICA_IDENTITY:
            return
        for oid, identity in self._execute(_IDENTITIES, [list(self._tables)]):
            name = self._name(oid)
            yield Creation(
                "detail",
                self._tables[oid],
                f"ALTER TABLE {name} REPLICA IDENTITY {identity}",
                f"replica identity of table {name}",
                required=False,
            )


def _creation(made: PostData, *, required: bool) -> Creation:
    """What is there before the rows; without its primary key a table would be no good target."""
    return Creation("detail", made.on, made.statement, made.what, required=required)


def _schema(name: str) -> Creation:
    return Creation("schema", TableName(name, name), f"CREATE SCHEMA {quote(name)}", f"schema {quote(name)}")


_COLUMNS: Final = """
SELECT a.attrelid::bigint, a.attnum,
       quote_ident(a.attname) || ' ' || format_type(a.atttypid, a.atttypmod) || {collated},
       {not_null}, pg_get_expr(d.adbin, d.adrelid), {identity}, {generated}
FROM pg_attribute a
JOIN pg_type t ON t.oid = a.atttypid
LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
{joins}
WHERE a.attrelid = ANY(%s) AND a.attnum > 0 AND NOT a.attisdropped
ORDER BY a.attrelid, a.attnum
"""

_DEFAULTS: Final = """
SELECT a.attrelid::bigint, quote_ident(a.attname), pg_get_expr(d.adbin, d.adrelid)
FROM pg_attribute a JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
WHERE a.attrelid = ANY(%s) AND NOT a.attisdropped AND {generated}
ORDER BY a.attrelid, a.attnum
"""

_OPTIONS: Final = """
'START WITH ' || s.seqstart || ' INCREMENT BY ' || s.seqincrement || ' MINVALUE ' || s.seqmin || ' MAXVALUE ' || s.seqmax
    || ' CACHE ' || s.seqcache || CASE WHEN s.seqcycle THEN ' CYCLE' ELSE ' NO CYCLE' END
"""
_IDENTITY_SEQUENCES: Final = """
FROM pg_sequence s JOIN pg_depend d ON d.classid = 'pg_class'::regclass AND d.objid = s.seqrelid
WHERE d.refobjid = ANY(%s) AND d.refclassid = 'pg_class'::regclass AND d.deptype = 'i'
"""

_OPTIONS_84: Final = """
'START WITH ' || start_value || ' INCREMENT BY ' || increment_by || ' MINVALUE ' || min_value || ' MAXVALUE ' || max_value
    || ' CACHE ' || cache_value || CASE WHEN is_cycled THEN ' CYCLE' ELSE ' NO CYCLE' END
"""

_USED_SEQUENCES: Final = """
SELECT DISTINCT s.oid::bigint, n.nspname, s.relname, s.oid::regclass::text,
       EXISTS (SELECT 1 FROM pg_depend o WHERE o.classid = 'pg_class'::regclass AND o.objid = s.oid AND o.deptype = 'a'
               AND o.refclassid = 'pg_class'::regclass)
FROM pg_attrdef a
JOIN pg_depend d ON d.classid = 'pg_attrdef'::regclass AND d.objid = a.oid AND d.refclassid = 'pg_class'::regclass
JOIN pg_class s ON s.oid = d.refobjid AND s.relkind = 'S'
JOIN pg_namespace n ON n.oid = s.relnamespace
WHERE a.adrelid = ANY(%s)
ORDER BY 2, 3
"""

_OWNERSHIPS: Final = """
SELECT a.attrelid::bigint, s.oid::regclass::text, quote_ident(a.attname)
FROM pg_depend d
JOIN pg_class s ON s.oid = d.objid AND s.relkind = 'S'
JOIN pg_attribute a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid
WHERE d.classid = 'pg_class'::regclass AND d.refclassid = 'pg_class'::regclass AND d.deptype = 'a' AND d.refobjid = ANY(%s)
  AND EXISTS (SELECT 1 FROM pg_attrdef f
              JOIN pg_depend u ON u.classid = 'pg_attrdef'::regclass AND u.objid = f.oid AND u.refobjid = s.oid
              WHERE f.adrelid = a.attrelid)
ORDER BY 2
"""

_CHECKS: Final = """
SELECT k.conrelid::bigint, quote_ident(k.conname), pg_get_constraintdef(k.oid)
FROM pg_constraint k WHERE k.conrelid = ANY(%s) AND k.contype = 'c' AND {valid}
ORDER BY k.conrelid, k.conname
"""

_IDENTITIES: Final = """
SELECT c.oid::bigint, CASE c.relreplident WHEN 'f' THEN 'FULL' WHEN 'n' THEN 'NOTHING'
                      ELSE 'USING INDEX ' || quote_ident(x.relname) END
FROM pg_class c
LEFT JOIN pg_index i ON i.indrelid = c.oid AND i.indisreplident
LEFT JOIN pg_class x ON x.oid = i.indexrelid
WHERE c.oid = ANY(%s) AND (c.relreplident IN ('f', 'n') OR x.relname IS NOT NULL AND c.relreplident = 'i')
ORDER BY c.oid
"""
