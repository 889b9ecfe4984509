"""Every type there and back: random rows of a PostgreSQL server through a sink into another engine, read there, and taken back by
PostgreSQL, which must print what it printed before.

The seed of the random rows is printed. Values travel both ways that a sink has: as a copy, and as changes.
"""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import date, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest

from streamer import statements
from streamer.capture.catalog import SourceTable, read_tables
from streamer.copytext import format_rows, parse
from streamer.model import LSN, EdgeName, Relation, SlotIdentity, TableDefinition, TableName
from streamer.node_config import MysqlAddress
from streamer.ports import CopyTable, Sink, Start
from streamer.session import Connection, connect
from streamer.sinks import mysql_ddl, mysql_types, sqlite_ddl
from streamer.sinks.mysql import MysqlSink
from streamer.sinks.sqlite import SqliteSink
from tests import every_type
from tests.changes import group, insert, update, write
from tests.mysql_servers import MysqlDatabase
from tests.servers import Database

EDGE = EdgeName("types", "a", "b")
SLOT = SlotIdentity("7123", "source", "streamer_types_a")
ROWS = 60
Printed = tuple[str | None, ...]


@contextmanager
def session(database: Database) -> Iterator[Connection]:
    """A session that prints values as streamer's sessions do."""
    with closing(connect("a", database.url, application="test")) as connection:
        yield connection


def fill(connection: Connection, makers: dict[str, every_type.Make], *, odd: bool) -> None:
    """Insert random rows, a row without values, and the odd values one by one."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    dice = random.Random(seed)
    rows: list[list[str | None]] = [[None for _ in makers]]
    rows += [[None if dice.random() < 0.1 else make(dice) for make in makers.values()] for _ in range(ROWS)]
    for name, values in every_type.ODD.items() if odd else ():
        rows += [[value if column == name else None for column in makers] for value in values]
    columns = ", ".join(makers)
    with connection.cursor().copy(f"COPY source (id, {columns}) FROM STDIN".encode()) as copy:
        copy.write(format_rows([[str(number), *row] for number, row in enumerate(rows)]))


def printed(connection: Connection, table: str) -> list[Printed]:
    """The rows as the server prints them."""
    with connection.cursor().copy(f"COPY (SELECT * FROM {table} ORDER BY id) TO STDOUT".encode()) as copy:
        return [row for block in copy for row in parse(bytes(block))]


def taken_back(connection: Connection, rows: Sequence[Printed]) -> list[Printed]:
    """What PostgreSQL prints of the rows when it has read them."""
    connection.execute("TRUNCATE back")
    with connection.cursor().copy(b"COPY back FROM STDIN") as copy:
        copy.write(format_rows(rows))
    return printed(connection, "back")


def described(connection: Connection) -> SourceTable:
    (table,) = read_tables(connection, lambda name: name == TableName("public", "source"))
    return table


def through(sink: Sink, table: SourceTable, rows: Sequence[Printed]) -> None:
    """Write half of the rows as a copy, the others as inserts, and write each a second time by an update."""
    relation, half = table.relation(), len(rows) // 2
    if sink.open() is None:
        sink.begin(SLOT, LSN(100))
    copied = CopyTable(table.table, relation.names, tuple(c.type_oid for c in relation.columns), rows=0, key=("id",))
    assert sink.load(copied, Start(LSN(150)), [format_rows(rows[:half])]) == half
    write(sink, group(*(insert(relation, *no_values(relation, row)) for row in rows[half:])))
    write(sink, group(*(update(relation, *row) for row in rows[half:]), to=300))
    for number, row in enumerate(rows[:half:7]):
        write(sink, group(update(relation, *no_values(relation, row)), update(relation, *row), to=400 + number))
    sink.close()


def no_values(relation: Relation, row: Printed) -> list[str | None]:
    return [value if column.identity else None for value, column in zip(row, relation.columns, strict=True)]


def same(before: Sequence[Printed], after: Sequence[Printed], names: Sequence[str]) -> None:
    """Compare value by value, so that a difference is short."""
    assert len(before) == len(after)
    differ = [
        (name, x, y)
        for one, other in zip(before, after, strict=True)
        for name, x, y in zip(names, one, other, strict=True)
        if x != y
    ]
    assert differ == []


# -- SQLite -----------------------------------------------------------------------------------------------------------------------


def from_sqlite(value: object) -> str | None:
    if isinstance(value, bytes):
        return f"\\x{value.hex()}"
    return None if value is None else repr(value) if isinstance(value, float) else str(value)


@pytest.mark.parametrize("strict", [True, False], ids=["strict", "not strict"])
@pytest.mark.parametrize("server", ["source15", "source18"])
def test_every_type_comes_back_from_sqlite_as_it_was(
    server: str, strict: bool, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    database: Database = request.getfixturevalue(server)
    makers = every_type.create(database, "source", "back")
    with session(database) as connection:
        fill(connection, makers, odd=True)
        before, table = printed(connection, "source"), described(connection)
        with closing(sqlite3.connect(tmp_path / "file", isolation_level=None)) as file:
            file.execute(sqlite_ddl.create_table(table.definition, strict=strict))
        through(SqliteSink(EDGE, tmp_path / "file"), table, before)
        with closing(sqlite3.connect(tmp_path / "file")) as file:
            found = [tuple(map(from_sqlite, row)) for row in file.execute("SELECT * FROM source ORDER BY id")]
        after = taken_back(connection, found)
    names = table.relation().names
    if not strict:  # a REAL column makes 0 of -0
        before = [tuple("0" if value == "-0" else value for value in row) for row in before]
    same(before, after, names)


# -- MariaDB ----------------------------------------------------------------------------------------------------------------------


def from_mysql(value: object) -> str | None:
    if isinstance(value, bytes):
        return f"\\x{value.hex()}"
    if isinstance(value, timedelta):
        seconds = value // timedelta(seconds=1)
        return f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}.{value.microseconds:06}"
    if isinstance(value, datetime | date):
        return str(value)
    if isinstance(value, Decimal):
        return f"{value:f}"
    return None if value is None else repr(value) if isinstance(value, float) else str(value)


def create_on(database: MysqlDatabase, definition: TableDefinition) -> None:
    """Make the tables of streamer and the one of the definition."""
    with closing(database.server.connect(database.name)) as connection, connection.cursor() as cursor:
        for statement in statements.load("mysql/install.sql").split(";\n"):
            if statement.strip():
                cursor.execute(statement)
        cursor.execute("SELECT version()")
        engine = mysql_types.Engine.of(str(cursor.fetchall()[0][0]))
        for statement in mysql_ddl.create_table(definition, engine, mysql_ddl.Names(database.name)):
            cursor.execute(statement)


@pytest.mark.parametrize("local_infile", [True, False], ids=["LOAD DATA", "INSERT"])
@pytest.mark.parametrize("server", ["source15", "source18"])
def test_every_type_comes_back_from_mariadb_as_it_was(
    server: str, local_infile: bool, request: pytest.FixtureRequest, mariadb: MysqlDatabase
) -> None:
    database: Database = request.getfixturevalue(server)
    makers = every_type.create(database, "source", "back")
    mariadb.execute(f"SET GLOBAL local_infile = {int(local_infile)}")
    try:
        with session(database) as connection:
            fill(connection, makers, odd=False)
            before, table = printed(connection, "source"), described(connection)
            create_on(mariadb, table.definition)
            through(MysqlSink(EDGE, MysqlAddress.parse(mariadb.url)), table, before)
            found = [tuple(map(from_mysql, row)) for row in mariadb.query("SELECT * FROM source ORDER BY id")]
            after = taken_back(connection, found)
    finally:
        mariadb.execute("SET GLOBAL local_infile = 1")
    same(before, after, table.relation().names)
