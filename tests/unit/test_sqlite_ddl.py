"""Tables of an SQLite target: names, types, keys."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing

import pytest

from streamer.errors import SchemaError
from streamer.model import ColumnDefinition, TableDefinition, TableName
from streamer.sinks.sqlite_ddl import create_table, inspect, missing_column, quote, refuse_clashes, target_name

T = TableName("public", "t")


@pytest.fixture
def connection() -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        yield connection


def column(name: str, oid: int, *, not_null: bool = False, generated: bool = False) -> ColumnDefinition:
    return ColumnDefinition(name, "?", oid, not_null, None, "", generated)


def test_types_keep_every_value() -> None:
    oids = {
        "i2": 21,
        "i4": 23,
        "i8": 20,
        "o": 26,
        "b": 16,
        "f4": 700,
        "f8": 701,
        "y": 17,
        "n": 1700,
        "t": 25,
        "j": 3802,
        "x": 99999,
    }
    definition = TableDefinition(T, tuple(column(name, oid) for name, oid in oids.items()), ())
    assert create_table(definition).splitlines()[1:-1] == [
        '    "i2" INTEGER,',
        '    "i4" INTEGER,',
        '    "i8" INTEGER,',
        '    "o" INTEGER,',
        '    "b" INTEGER,',
        '    "f4" ANY,',
        '    "f8" ANY,',
        '    "y" BLOB,',
        '    "n" TEXT,',
        '    "t" TEXT,',
        '    "j" TEXT,',
        '    "x" TEXT',
    ]


def test_key_and_not_null_are_kept_and_generated_columns_left_out(connection: sqlite3.Connection) -> None:
    columns = (column("a", 25), column("b", 23, not_null=True), column("g", 23, generated=True), column("c", 25))
    connection.execute(create_table(TableDefinition(T, columns, ("a", "b"))))
    connection.execute("INSERT INTO t VALUES ('x', 1, NULL)")
    for row in ("('x', 1, 'again')", "(NULL, 1, '')", "('y', NULL, '')"):
        with pytest.raises(sqlite3.IntegrityError):
            connection.execute(f"INSERT INTO t VALUES {row}")
    found = inspect(connection, T)
    assert found is not None
    assert (found.columns, found.generated, found.rowid) == (frozenset("abc"), frozenset(), "rowid")
    assert (found.keys, found.not_null) == ((frozenset("ab"), frozenset("ab")), frozenset("ab"))
    assert (found.types, found.strict) == ({"a": "TEXT", "b": "INTEGER", "c": "TEXT"}, True)


def test_tables_that_are_not_strict_are_told_from_those_that_are(connection: sqlite3.Connection) -> None:
    definition = TableDefinition(TableName("s.x", 't"'), (column("f", 701),), ())
    connection.execute(create_table(definition, strict=False))
    found = inspect(connection, definition.table)
    assert found is not None
    assert (found.types, found.strict) == ({"f": "REAL"}, False)
    connection.execute(f"DROP TABLE {quote(target_name(definition.table))}")
    connection.execute(create_table(definition, strict=True))
    found = inspect(connection, definition.table)
    assert found is not None
    assert (found.types, found.strict) == ({"f": "ANY"}, True)


def test_unique_indexes_and_constant_defaults_are_kept(connection: sqlite3.Connection) -> None:
    def with_default(name: str, oid: int, default: str) -> ColumnDefinition:
        return ColumnDefinition(name, "?", oid, False, default, "", False)

    columns = (
        column("id", 23),
        with_default("a", 25, "'it''s'::text"),
        with_default("b", 16, "true"),
        with_default("c", 17, "'\\x00ff'::bytea"),
        with_default("d", 701, "'1.5'::double precision"),
        with_default("e", 1700, "0.10"),
        with_default("f", 1184, "now()"),
        with_default("g", 20, "nextval('s'::regclass)"),
    )
    connection.execute(create_table(TableDefinition(T, columns, ("id",), (("a", "b"), ("id",), ("a", "gone")))))
    connection.execute("INSERT INTO t (id) VALUES (1)")
    assert connection.execute("SELECT * FROM t").fetchall() == [(1, "it's", 1, b"\0\xff", 1.5, "0.10", None, None)]
    with pytest.raises(sqlite3.IntegrityError, match=r"UNIQUE constraint failed: t\.a, t\.b"):
        connection.execute("INSERT INTO t (id) VALUES (2)")


def test_a_key_with_a_generated_column_is_not_made() -> None:
    definition = TableDefinition(T, (column("a", 25), column("g", 23, generated=True)), ("g",))
    assert "PRIMARY KEY" not in create_table(definition)


def test_a_bigint_key_takes_its_whole_range(connection: sqlite3.Connection) -> None:
    connection.execute(create_table(TableDefinition(T, (column("id", 20, not_null=True),), ("id",))))
    ends = ("-9223372036854775808", "0", "9223372036854775807")
    connection.executemany("INSERT INTO t VALUES (?)", [(end,) for end in ends])
    assert [str(row[0]) for row in connection.execute("SELECT id FROM t ORDER BY id")] == list(ends)


def test_only_what_is_unique_and_never_null_is_a_key(connection: sqlite3.Connection) -> None:
    connection.execute(
        "CREATE TABLE t (id INTEGER PRIMARY KEY, a TEXT NOT NULL, b TEXT, C TEXT NOT NULL, rowid TEXT, g AS (a || c) STORED)"
    )
    connection.execute("CREATE UNIQUE INDEX i1 ON t (a, c)")
    connection.execute("CREATE UNIQUE INDEX i2 ON t (a, b)")
    connection.execute("CREATE UNIQUE INDEX i3 ON t (a) WHERE b IS NULL")
    connection.execute("CREATE UNIQUE INDEX i4 ON t (lower(a))")
    connection.execute("CREATE INDEX i5 ON t (c)")
    found = inspect(connection, T)
    assert found is not None
    assert found.keys == (frozenset({"id"}), frozenset({"a", "c"}))
    assert (found.generated, found.rowid) == (frozenset("g"), "_rowid_")


def test_a_text_key_that_may_be_null_is_none(connection: sqlite3.Connection) -> None:
    connection.execute("CREATE TABLE t (id TEXT PRIMARY KEY)")
    found = inspect(connection, T)
    assert found is not None
    assert found.keys == ()


def test_a_table_that_is_not_there_is_none(connection: sqlite3.Connection) -> None:
    assert inspect(connection, T) is None


def test_only_public_tables_go_by_their_plain_name() -> None:
    assert [target_name(t) for t in (T, TableName("sales", "t"), TableName("a.b", 'c"d'))] == ["t", "sales.t", 'a.b.c"d']


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ([T, TableName("public", "T")], '"public.t" and "public.T" would share a name'),
        ([TableName("s", "t"), TableName("public", "s.t")], '"s.t" and "public.s.t" would share'),
        ([TableName("public", "Streamer_Copy")], "reserved"),
        ([TableName("public", "sqlite_x")], "reserved"),
    ],
)
def test_tables_that_would_share_a_name_are_refused(tables: list[TableName], message: str) -> None:
    with pytest.raises(SchemaError, match=message):
        refuse_clashes(tables)


def test_tables_whose_names_differ_are_not_refused() -> None:
    refuse_clashes([T, T, TableName("s", "t"), TableName("public", "Ä"), TableName("public", "ä")])


def test_a_table_without_columns_that_travel_is_refused_by_its_name() -> None:
    with pytest.raises(SchemaError, match=r'table "public\.t" has no column whose values travel, and SQLite has no tables'):
        create_table(TableDefinition(T, (column("g", 23, generated=True),), ()))


def test_columns_that_would_share_a_name_are_refused() -> None:
    with pytest.raises(SchemaError, match=r'columns "id" and "Id" of table "public\.t" would share a name in SQLite'):
        create_table(TableDefinition(T, (column("id", 23), column("Id", 23)), ()))


def test_the_remedy_for_a_missing_column_works(connection: sqlite3.Connection) -> None:
    connection.execute('CREATE TABLE "s.t" (id INTEGER)')
    remedy = missing_column(TableName("s", "t"), 'odd "one"', 17).hint
    connection.execute(remedy.removeprefix("there: "))
    assert connection.execute('PRAGMA table_info("s.t")').fetchall()[1][1:3] == ('odd "one"', "BLOB")
