"""The publications of a stream on its source: which there are, what belongs into them, and making them so.

A stream has two: the main one, and one for tables that have no replica identity. PostgreSQL refuses UPDATE and DELETE on a table
without identity as soon as a publication publishes them, in the user's own transaction; so such a table is published for inserts
and truncates only. The traps: a publication must exist before the slot, and both must always exist, because decoding sees the
catalog as it was when the change was made; and a partition is checked by its own identity, whatever its parent's is.

https://www.postgresql.org/docs/current/sql-createpublication.html
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from psycopg import sql

from streamer.capture.assemble import OWN_TABLES
from streamer.capture.catalog import SourceTable, read_tables
from streamer.model import Identity, TableName
from streamer.session import Connection, version

TRUNCATES: Final = 110000  # publishing TRUNCATE: version 11
VIA_ROOT: Final = 130000  # publish_via_partition_root: version 13
SCHEMAS: Final = 150000  # publishing all tables of a schema: version 15
GENERATED_COLUMNS: Final = 180000
"""From version 18 on a table with FULL identity may only be updated if its generated columns are published too."""


def names(slot: str) -> tuple[str, str]:
    """The publications of the stream with this slot: the main one, and the one for tables without replica identity.

    The suffix holds a character that no slot name may hold, so that it is never another stream's; 63 bytes are the limit.
    """
    return slot, f"{slot}-in"


def published(connection: Connection, slot: str) -> set[TableName] | None:
    """The tables that the stream carries, partitions by the name that they travel under; None if a publication is missing."""
    both = list(names(slot))
    found = connection.execute("SELECT count(*) FROM pg_publication WHERE pubname = ANY(%s)", [both]).fetchone()
    if found != (len(both),):
        return None
    if not _names_tables(connection, both):
        query = "SELECT schemaname, tablename FROM pg_publication_tables WHERE pubname = ANY(%s)"
        return {TableName(*row) for row in connection.execute(query, [both])}
    # the view would wait for whoever has locked one of the tables, as VACUUM FULL does
    return set[TableName]().union(*(_members(connection, name) for name in both))


def _names_tables(connection: Connection, publications: list[str]) -> bool:
    """Whether the publications name all of their tables, as those that setup makes do."""
    of_schemas = "EXISTS (SELECT 1 FROM pg_publication_namespace n WHERE n.pnpubid = p.oid)"
    all_of_some = of_schemas if version(connection) >= SCHEMAS else "false"
    query = f"SELECT 1 FROM pg_publication p WHERE p.pubname = ANY(%s) AND (p.puballtables OR {all_of_some})"
    return connection.execute(query.encode(), [publications]).fetchone() is None


@dataclass(frozen=True, slots=True)
class Publication:
    """A publication as it should be."""

    name: str
    tables: frozenset[TableName]
    options: tuple[tuple[str, str], ...]


def wanted(connection: Connection, slot: str, tables: Sequence[SourceTable]) -> tuple[Publication, Publication]:
    """Return the stream's publications for these tables."""
    number = version(connection)
    only_inserts = insert_only(connection, tables, "pgoutput")
    main = {*OWN_TABLES, *_publishable(number, (t for t in tables if t.table not in only_inserts))}
    inserts = set(_publishable(number, (t for t in tables if t.table in only_inserts)))
    truncate = ", truncate" if number >= TRUNCATES else ""
    options = [("publish_via_partition_root", "true")] if number >= VIA_ROOT else []
    if number >= GENERATED_COLUMNS:
        options.append(("publish_generated_columns", "stored"))
    first, second = names(slot)
    return (
        Publication(first, frozenset(main), (("publish", f"insert, update, delete{truncate}"), *options)),
        Publication(second, frozenset(inserts), (("publish", f"insert{truncate}"), *options)),
    )


def joining(connection: Connection, slot: str, tables: Sequence[SourceTable]) -> set[TableName]:
    """Return those of the tables that the stream's publications do not have yet."""
    there = set[TableName]().union(*(_members(connection, name) for name in names(slot)))
    return set(_publishable(version(connection), tables)) - there


def _publishable(number: int, tables: Iterable[SourceTable]) -> Iterator[TableName]:
    """What to name in a publication: before version 13 a partitioned table can only be published by its partitions."""
    for table in tables:
        if table.partitioned and number < VIA_ROOT:
            yield from table.leaves
        else:
            yield table.table


def insert_only(connection: Connection, tables: Sequence[SourceTable], plugin: str) -> set[TableName]:
    """The tables whose updates and deletes the plugin cannot give: no replica identity, or a partition that has none.

    For pgoutput FULL is none either if there is a virtual generated column, which cannot be published.
    """
    roots = {leaf: t.table for t in tables for leaf in t.leaves}
    partitions = read_tables(connection, roots.__contains__) if roots else []
    virtual = _with_virtual_columns(connection) if plugin == "pgoutput" else set()
    # else rows of a partition travel with its own identity, and that of the table above is nobody's
    via_root = plugin == "pgoutput" and version(connection) >= VIA_ROOT
    return {
        roots.get(t.table, t.table)
        for t in (*(t for t in tables if via_root or not t.leaves), *partitions)
        if t.identity is Identity.NOTHING or (t.identity is Identity.FULL and t.table in virtual)
    }


def held_back(connection: Connection, slot: str, tables: Sequence[SourceTable]) -> set[TableName]:
    """The tables that got a replica identity after they were published for inserts only: their updates and deletes are left out
    until setup publishes them anew."""
    first, second = names(slot)
    inserts = _members(connection, second) - _members(connection, first)
    only_inserts = insert_only(connection, tables, "pgoutput")
    return {t.table for t in tables if t.table not in only_inserts and {t.table, *t.leaves} & inserts}


def _with_virtual_columns(connection: Connection) -> set[TableName]:
    if version(connection) < GENERATED_COLUMNS:
        return set()
    query = (
        "SELECT DISTINCT n.nspname, c.relname FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid "
        "JOIN pg_namespace n ON n.oid = c.relnamespace WHERE a.attgenerated = 'v'"
    )
    return {TableName(*row) for row in connection.execute(query)}


def ensure(connection: Connection, publication: Publication) -> str:
    """Create or change the publication so that it is as given, and return what was done. Raises psycopg.Error."""
    name = sql.Identifier(publication.name)
    options = sql.SQL(", ").join(sql.SQL("{} = {}").format(sql.Identifier(k), sql.Literal(v)) for k, v in publication.options)
    with connection.transaction():
        if not connection.execute("SELECT 1 FROM pg_publication WHERE pubname = %s", [publication.name]).fetchone():
            tables = sql.SQL(" FOR TABLE {}").format(_listed(publication.tables)) if publication.tables else sql.SQL("")
            connection.execute(sql.SQL("CREATE PUBLICATION {}{} WITH ({})").format(name, tables, options))
            return f'created publication "{publication.name}" for {_counted(publication.tables)}'
        if not _has_options(connection, publication):
            connection.execute(sql.SQL("ALTER PUBLICATION {} SET ({})").format(name, options))
        return _match_tables(connection, publication, name)


def _match_tables(connection: Connection, publication: Publication, name: sql.Identifier) -> str:
    present = _members(connection, publication.name)
    done = []
    for verb, past, tables in (
        ("DROP", "removed", present - publication.tables),
        ("ADD", "added", publication.tables - present),
    ):
        if tables:
            connection.execute(sql.SQL("ALTER PUBLICATION {} {} TABLE {}").format(name, sql.SQL(verb), _listed(tables)))
            done.append(f"{past} {', '.join(sorted(map(str, tables)))}")
    if done:
        return f'changed publication "{publication.name}": {"; ".join(done)}'
    return f'kept publication "{publication.name}" for {_counted(publication.tables)}'


def _members(connection: Connection, name: str) -> set[TableName]:
    query = (
        "SELECT n.nspname, c.relname FROM pg_publication p JOIN pg_publication_rel r ON r.prpubid = p.oid "
        "JOIN pg_class c ON c.oid = r.prrelid JOIN pg_namespace n ON n.oid = c.relnamespace WHERE p.pubname = %s"
    )
    return {TableName(*row) for row in connection.execute(query, [name])}


def _has_options(connection: Connection, publication: Publication) -> bool:
    tests = {"insert": "pubinsert", "update": "pubupdate", "delete": "pubdelete"}
    if version(connection) >= TRUNCATES:
        tests["truncate"] = "pubtruncate"
    if version(connection) >= VIA_ROOT:
        tests["publish_via_partition_root"] = "pubviaroot"
    if version(connection) >= GENERATED_COLUMNS:
        tests["publish_generated_columns"] = "pubgencols = 's'"
    query = f"SELECT {', '.join(tests.values())} FROM pg_publication WHERE pubname = %s"
    row: Any = connection.execute(query.encode(), [publication.name]).fetchone()
    options = dict(publication.options)
    options.update(dict.fromkeys(options["publish"].split(", "), ""))
    return list(row) == [test in options for test in tests]


def _listed(tables: Iterable[TableName]) -> sql.Composable:
    ordered = sorted(tables, key=str)
    # ONLY: tables that merely inherit from a selected one are not selected by that
    return sql.SQL(", ").join(sql.SQL("ONLY {}").format(sql.Identifier(t.schema, t.name)) for t in ordered)


def _counted(tables: frozenset[TableName]) -> str:
    number = len(tables - OWN_TABLES)
    return f"{number} table{'' if number == 1 else 's'}"
