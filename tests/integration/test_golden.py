"""The same SQL through both output plugins gives the same transactions, and every value is the text that PostgreSQL writes.

golden.sql is replayed with a slot for each plugin; the payloads are peeked at through SQL functions, so that only the decoders are
tested here. The oracle for values is the output function of each type: what a SELECT in the text protocol returns.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from psycopg import sql

from streamer.capture.assemble import Assembler
from streamer.capture.layout import CatalogTable
from streamer.capture.pgoutput import PgoutputDecoder
from streamer.capture.wal2json import Wal2jsonDecoder, options
from streamer.model import LSN, UNCHANGED, Change, Column, Identity, Kind, Relation, Row, TableName, Transaction, Value
from streamer.session import Connection, connect
from tests.servers import Database

SCRIPT = Path(__file__).with_name("golden.sql")
USER_OID = 16384  # oids from here on differ between databases
WHOLE_TABLES = ("numbers", "strings", "moments", "plain_types", "documents", "collections", "computed")
"""Tables whose rows are all there at the end of the script, and have a column named id."""

Told: TypeAlias = tuple[Kind, TableName, dict[str, Value] | None, dict[str, Value] | None]
"""A change without what may differ: (kind, table, old, new), UNCHANGED columns left out."""


@dataclass(frozen=True)
class Read:
    """A transaction with changes, as one of the decoders tells it."""

    transaction: Transaction
    end: int
    changes: list[Change]

    def told(self) -> list[Told]:
        return [(kind, r.table, _told(r, old), _told(r, new)) for kind, r, old, new in self.changes]


def _told(relation: Relation, row: Row | None) -> dict[str, Value] | None:
    if row is None:
        return None
    return {name: value for name, value in zip(relation.names, row, strict=True) if value is not UNCHANGED}


def script_sections() -> dict[str, str]:
    """The script's sections by name, in order."""
    parts = re.split(r"^--! (.*)\n", SCRIPT.read_text(), flags=re.MULTILINE)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


def open_source(database: Database) -> Connection:
    return connect("source", database.url, application="golden")


def _replay(database: Database) -> list[str]:
    """Run the script; return the names of the sections that ran, which are all but those that the build cannot."""
    with open_source(database) as connection:
        # without it 18 refuses updates of tables with generated columns and the identity FULL
        more = ", publish_generated_columns = stored" if database.server.version >= 180000 else ""
        connection.execute(f"CREATE PUBLICATION golden FOR ALL TABLES WITH (publish_via_partition_root = true{more})")
        connection.execute("SELECT pg_create_logical_replication_slot('golden_pgoutput', 'pgoutput')")
        if database.server.wal2json:
            connection.execute("SELECT pg_create_logical_replication_slot('golden_wal2json', 'wal2json')")
        xml = connection.execute("SELECT count(*) FROM pg_config WHERE name = 'CONFIGURE' AND setting ~ 'libxml'").fetchone()
        sections = {name: text for name, text in script_sections().items() if name != "xml" or xml != (0,)}
        for text in sections.values():
            connection.pgconn.exec_(b"ROLLBACK")
            result = connection.pgconn.exec_(f"BEGIN; {text}; COMMIT".encode())
            assert not result.error_message, result.error_message.decode()
    return list(sections)


def assembled(decode: Callable[[bytes], Any], payloads: Sequence[bytes]) -> list[Read]:
    """The transactions that have changes: whether empty ones are sent depends on plugin and version."""
    assembler = Assembler("source")
    transactions: list[Read] = []
    changes: list[Change] = []
    for payload in payloads:
        piece = assembler.feed(decode(payload), len(payload))
        if piece is None:
            continue
        changes += piece.changes
        if piece.end is not None:
            if changes:
                transactions.append(Read(piece.transaction, piece.end, changes))
            changes = []
    assert not assembler.open
    return transactions


def _through_pgoutput(database: Database) -> list[Read]:
    with open_source(database) as connection:
        peeked = connection.execute(
            "SELECT data FROM pg_logical_slot_peek_binary_changes('golden_pgoutput', NULL, NULL, "
            "'proto_version', '1', 'publication_names', 'golden')"
        )
        return assembled(PgoutputDecoder(generated=lambda table: {"twice"}).decode, [bytes(row[0]) for row in peeked])


def _through_wal2json(database: Database) -> list[Read]:
    with open_source(database) as connection:
        catalog = Catalog(connection)
        tables = connection.execute("SELECT schemaname, tablename FROM pg_tables WHERE schemaname !~ '^pg_|information_schema'")
        chosen = options([TableName(*row) for row in tables], numbers_are_strings=False)
        arguments = [text for option in chosen.items() for text in option]
        marks = sql.SQL(", ").join(sql.Placeholder() * len(arguments))
        query = sql.SQL("SELECT data FROM pg_logical_slot_peek_changes('golden_wal2json', NULL, NULL, {})").format(marks)
        payloads = [row[0].encode() for row in connection.execute(query, arguments)]
        decoder = Wal2jsonDecoder(catalog.table, catalog.reread, lambda: LSN(0), numbers_are_strings=False)
        return assembled(decoder.decode, payloads)


class Catalog:
    """What a wal2json session asks the source."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.table = cache(self._table)

    def _table(self, name: TableName) -> CatalogTable | None:
        found = self._connection.execute(
            "SELECT c.oid::int, coalesce(pg_partition_root(c.oid)::oid::int, c.oid::int), c.relreplident::text FROM pg_class c "
            "JOIN pg_namespace n ON n.oid = relnamespace WHERE nspname = %s AND relname = %s",
            [name.schema, name.name],
        ).fetchone()
        if found is None:
            return None
        oid, root, identity = found
        rows = self._connection.execute(
            "SELECT attname, atttypid::int8, attgenerated::text <> '', "
            "EXISTS (SELECT FROM pg_index WHERE indrelid = attrelid AND indisprimary AND attnum = ANY(indkey::int2[])), "
            "EXISTS (SELECT FROM pg_index WHERE indrelid = attrelid AND indisreplident AND attnum = ANY(indkey::int2[])) "
            "FROM pg_attribute WHERE attrelid = %s AND attnum > 0 AND NOT attisdropped ORDER BY attnum",
            [root],
        ).fetchall()
        table = TableName("public", "parted") if root != oid else name
        columns = tuple(
            Column(column, type_oid, {"d": primary, "i": index, "f": True}[identity])
            for column, type_oid, generated, primary, index in rows
            if not generated
        )
        return CatalogTable(
            Relation(table, columns, Identity(identity)),
            key=tuple(row[0] for row in rows if row[3]),
            generated=frozenset(row[0] for row in rows if row[2]),
        )

    def reread(self, relation: Relation, key: Row, columns: Sequence[int]) -> Sequence[Value]:
        found = self._connection.execute(
            sql.SQL("SELECT {} FROM {} WHERE {}").format(
                sql.SQL(", ").join(sql.Identifier(relation.names[i]) + sql.SQL("::text") for i in columns),
                sql.Identifier(relation.table.schema, relation.table.name),
                sql.SQL(" AND ").join(
                    sql.Identifier(name) + sql.SQL(" = ") + sql.Literal(value)
                    for name, value in zip(relation.names, key, strict=True)
                    if value is not UNCHANGED
                ),
            )
        ).fetchone()
        return found or [None] * len(columns)


def _written(connection: Connection, table: str, columns: Sequence[str]) -> dict[str, tuple[str | None, ...]]:
    """The rows of a table by id, in the text that the server sends for them."""
    chosen = sql.SQL(", ").join(map(sql.Identifier, columns))
    query = sql.SQL("SELECT {} FROM {}").format(chosen, sql.Identifier(table))
    result = connection.pgconn.exec_(query.as_bytes(connection))
    values = [
        tuple(None if (v := result.get_value(i, k)) is None else v.decode() for k in range(result.nfields))
        for i in range(result.ntuples)
    ]
    return {str(row[columns.index("id")]): row for row in values}


def _kept(reads: Sequence[Read], table: str) -> tuple[Relation, dict[str, Row]]:
    """The rows of a table by id that the transactions leave, and the last version of the table."""
    rows: dict[str, dict[str, Value]] = {}
    last: Relation | None = None
    for kind, relation, old, new in (change for read in reads for change in read.changes):
        if relation.table != TableName("public", table):
            continue
        last = relation
        at = relation.names.index("id")
        if kind is Kind.DELETE:
            assert old is not None
            del rows[str(old[at])]
        elif new is not None:
            rows.setdefault(str(new[at]), {}).update(_told(relation, new) or {})
    assert last is not None
    return last, {key: tuple(row.get(name) for name in last.names) for key, row in rows.items()}


def _columns(reads: Sequence[Read]) -> list[tuple[TableName, Identity, list[tuple[str, int, bool]]]]:
    """The versions of the tables, in the order in which they appear; without the table whose versions are seen late."""
    versions = {c[1]: None for read in reads for c in read.changes if c[1].table.name != "altered"}
    return [
        (r.table, r.identity, [(c.name, c.type_oid if c.type_oid < USER_OID else 0, c.identity) for c in r.columns])
        for r in versions
    ]


def _check_values(database: Database, reads: Sequence[Read], sections: Sequence[str]) -> None:
    with open_source(database) as connection:
        for table in WHOLE_TABLES:
            if table == "documents" and "xml" not in sections:
                continue
            relation, rows = _kept(reads, table)
            assert rows == _written(connection, table, relation.names), table


@pytest.fixture
def replayed15(source15: Database) -> tuple[Database, list[str]]:
    return source15, _replay(source15)


@pytest.fixture
def replayed18(source18: Database) -> tuple[Database, list[str]]:
    return source18, _replay(source18)


def test_pgoutput_and_wal2json_tell_the_same_transactions(replayed15: tuple[Database, list[str]]) -> None:
    database, _ = replayed15
    pgoutput, wal2json = _through_pgoutput(database), _through_wal2json(database)
    assert [r.transaction for r in wal2json] == [r.transaction for r in pgoutput]
    assert [r.end for r in wal2json] == [r.end for r in pgoutput]
    for one, other in zip(pgoutput, wal2json, strict=True):
        assert other.told() == one.told()
    assert _columns(wal2json) == _columns(pgoutput)


def test_values_of_pgoutput_are_the_text_that_the_server_writes(replayed15: tuple[Database, list[str]]) -> None:
    database, sections = replayed15
    _check_values(database, _through_pgoutput(database), sections)


def test_values_of_wal2json_are_the_text_that_the_server_writes(replayed15: tuple[Database, list[str]]) -> None:
    database, sections = replayed15
    _check_values(database, _through_wal2json(database), sections)


def test_values_of_pgoutput_on_18_are_the_text_that_the_server_writes(replayed18: tuple[Database, list[str]]) -> None:
    database, sections = replayed18
    _check_values(database, _through_pgoutput(database), sections)


def test_15_and_18_tell_the_same_transactions(
    replayed15: tuple[Database, list[str]], replayed18: tuple[Database, list[str]]
) -> None:
    (old, _), (new, sections) = replayed15, replayed18
    ran = set(sections)
    from_15 = [r.told() for r in _through_pgoutput(old)]
    from_18 = [r.told() for r in _through_pgoutput(new)]
    if "xml" not in ran:
        from_15 = [told for told in from_15 if told[0][1].name != "documents"]
    assert from_18 == from_15
