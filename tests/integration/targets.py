"""The targets that the contract suite runs over: each makes sinks, tables, and shows from outside what is in them.

Definitions are those of PostgreSQL; a target makes its table from one, and shows values as PostgreSQL's text, so that a
test says the same for all. A generated column's expression stands where its default would.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Protocol

import pytest
from psycopg import sql

from streamer import statements
from streamer.errors import StreamerError, TakenError
from streamer.model import LSN, EdgeName, Group, SlotIdentity, TableDefinition, TableName
from streamer.node_config import MysqlAddress
from streamer.ports import Progress, Question, Sink, Written
from streamer.shape_config import Shape
from streamer.sinks import sqlite_ddl
from streamer.sinks.jsonl import JsonlSink
from streamer.sinks.jsonl_output import FileOutput
from streamer.sinks.jsonl_progress import ProgressFile, read
from streamer.sinks.mysql import MysqlSink
from streamer.sinks.mysql_ddl import Names, create_table
from streamer.sinks.mysql_ddl import quote as quote_mysql
from streamer.sinks.mysql_types import Engine
from streamer.sinks.postgres import PostgresSink
from streamer.sinks.quarantine import OnError, stops
from streamer.sinks.shaped import ShapedSink, Shapes
from streamer.sinks.sqlite import SqliteSink
from tests.changes import write
from tests.events import Tables, events
from tests.memory import MemoryDatabase, MemorySink, MemoryTable
from tests.mysql_servers import MysqlDatabase
from tests.servers import Database
from tests.waiting import wait_for

EDGE = EdgeName("shop", "a", "b")
SLOT = SlotIdentity("7123", "shop", "streamer_shop_a")
BEGIN = LSN(100)
Rows = list[tuple[str | None, ...]]
_HELD = "SELECT kind, row_key, new_row, error FROM {} ORDER BY id"


class Target(Protocol):
    """A database that sinks write to."""

    def sink(self, on_error: OnError = stops) -> Sink:
        """A new sink of `EDGE`, not yet open."""

    def create(self, definition: TableDefinition, *unique: str) -> None:
        """Make the table, with unique columns besides the key."""

    def rows(self, definition: TableDefinition) -> Rows:
        """The committed rows, sorted, as any other program sees them."""

    def position(self) -> LSN | None:
        """The committed position of `EDGE`, as any other program sees it."""

    def held(self) -> Rows:
        """The changes in quarantine, in order, as any other program sees them: kind, key, new row, error."""

    def let_go(self) -> None:
        """Take all changes out of quarantine, as a command does."""


class MemoryTarget:
    def __init__(self) -> None:
        self.database = MemoryDatabase()

    def sink(self, on_error: OnError = stops) -> Sink:
        return MemorySink(EDGE, self.database)

    def create(self, definition: TableDefinition, *unique: str) -> None:
        self.database.tables[definition.table] = MemoryTable(
            _names(definition),
            definition.primary_key,
            tuple((u,) for u in unique),
            {c.name: lambda row: str(2 * int(row["a"] or 0)) for c in definition.columns if c.generated},
        )

    def rows(self, definition: TableDefinition) -> Rows:
        rows = self.database.tables[definition.table].rows
        return _sorted([tuple(row[name] for name in _names(definition)) for row in rows])

    def position(self) -> LSN | None:
        progress = self.database.progress.get(EDGE)
        return progress.position if progress else None

    def held(self) -> Rows:
        return []

    def let_go(self) -> None:
        """Do nothing: there is no quarantine."""


class SqliteTarget:
    def __init__(self, path: Path) -> None:
        self.path = path
        path.touch()

    def sink(self, on_error: OnError = stops) -> Sink:
        return SqliteSink(EDGE, self.path, busy_timeout=0.1, on_error=on_error)

    def create(self, definition: TableDefinition, *unique: str) -> None:
        table = sqlite_ddl.quote(sqlite_ddl.target_name(definition.table))
        with closing(sqlite3.connect(self.path, isolation_level=None)) as connection:
            connection.execute(sqlite_ddl.create_table(definition))
            for name in unique:
                connection.execute(f"CREATE UNIQUE INDEX {sqlite_ddl.quote('by ' + name)} ON {table} ({name})")
            for column in (c for c in definition.columns if c.generated):
                kind = sqlite_ddl.declared_type(column.type_oid)
                connection.execute(f"ALTER TABLE {table} ADD COLUMN {column.name} {kind} AS ({column.default})")

    def rows(self, definition: TableDefinition) -> Rows:
        names = ", ".join(map(sqlite_ddl.quote, _names(definition)))
        with closing(sqlite3.connect(self.path)) as connection:
            rows = connection.execute(
                f"SELECT {names} FROM {sqlite_ddl.quote(sqlite_ddl.target_name(definition.table))}"
            ).fetchall()
        oids = [c.type_oid for c in definition.columns]
        return _sorted([tuple(map(_as_postgres, row, oids)) for row in rows])

    def position(self) -> LSN | None:
        with closing(sqlite3.connect(self.path)) as connection:
            row = connection.execute("SELECT position FROM streamer_progress").fetchone()
        return LSN.parse(row[0]) if row else None

    def held(self) -> Rows:
        with closing(sqlite3.connect(self.path)) as connection:
            return connection.execute(_HELD.format("streamer_quarantine")).fetchall()

    def let_go(self) -> None:
        with closing(sqlite3.connect(self.path, isolation_level=None)) as connection:
            connection.execute("DELETE FROM streamer_quarantine")


class JsonlTarget:
    """Files of events. They hold no rows: those are what a consumer makes of them."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def sink(self, on_error: OnError = stops) -> Sink:
        return JsonlSink(EDGE, FileOutput(EDGE.target, self.path, limit=1 << 16), ProgressFile(EDGE, self._progress))

    @property
    def _progress(self) -> Path:
        return self.path.with_name(f"{self.path.name}.progress")

    def create(self, definition: TableDefinition, *unique: str) -> None:
        """Do nothing: there are no tables."""

    def rows(self, definition: TableDefinition) -> Rows:
        rows = Tables(events(self.path)).rows(definition.table.schema, definition.table.name)
        return _sorted([tuple(row.get(name) for name in _names(definition)) for row in rows])

    def position(self) -> LSN | None:
        record = read(EDGE.target, self._progress)
        return record.position if record else None

    def held(self) -> Rows:
        return []

    def let_go(self) -> None:
        """Do nothing: there is no quarantine."""


class MysqlTarget:
    """With `local_infile` off, rows go in INSERTs instead of files."""

    def __init__(self, database: MysqlDatabase, *, local_infile: bool = True) -> None:
        self.database = database
        self._names = Names(database.name)
        database.execute(f"SET GLOBAL local_infile = {int(local_infile)}")
        for statement in statements.load("mysql/install.sql").split(";\n"):
            if statement.strip():
                database.execute(statement)

    def sink(self, on_error: OnError = stops) -> Sink:
        return MysqlSink(EDGE, MysqlAddress.parse(self.database.url), on_error=on_error)

    def create(self, definition: TableDefinition, *unique: str) -> None:
        ((version,),) = self.database.query("SELECT version()")
        for statement in create_table(definition, Engine.of(version), self._names):
            self.database.execute(statement)
        table = self._names.sql(definition.table)
        for name in unique:
            length = "" if definition.columns[_names(definition).index(name)].type_oid in (20, 23) else "(500)"
            self.database.execute(f"CREATE UNIQUE INDEX {quote_mysql('by ' + name)} ON {table} ({name}{length})")
        for column in (c for c in definition.columns if c.generated):
            self.database.execute(f"ALTER TABLE {table} ADD COLUMN {column.name} {column.type_name} AS ({column.default})")

    def rows(self, definition: TableDefinition) -> Rows:
        names = ", ".join(map(quote_mysql, _names(definition)))
        rows = self.database.query(f"SELECT {names} FROM {self._names.sql(definition.table)}")
        oids = [c.type_oid for c in definition.columns]
        return _sorted([tuple(map(_as_postgres, row, oids)) for row in rows])

    def position(self) -> LSN | None:
        rows = self.database.query("SELECT position FROM streamer_progress")
        return LSN.parse(rows[0][0]) if rows else None

    def held(self) -> Rows:
        return self.database.query(_HELD.format("streamer_quarantine"))

    def let_go(self) -> None:
        self.database.execute("DELETE FROM streamer_quarantine")


class PostgresTarget:
    def __init__(self, database: Database) -> None:
        self.database = database
        database.execute(statements.load("postgres/install.sql"))

    def sink(self, on_error: OnError = stops) -> Sink:
        return PostgresSink(EDGE, self.database.url, on_error=on_error)

    def create(self, definition: TableDefinition, *unique: str) -> None:
        columns = [
            sql.SQL("{} {}{}{}").format(
                sql.Identifier(c.name),
                sql.SQL(c.type_name),
                sql.SQL(" NOT NULL" if c.not_null else ""),
                sql.SQL(f" GENERATED ALWAYS AS ({c.default}) STORED" if c.generated else ""),
            )
            for c in definition.columns
        ]
        columns += [sql.SQL("UNIQUE ({})").format(sql.Identifier(u)) for u in unique]
        if definition.primary_key:
            columns.append(sql.SQL("PRIMARY KEY ({})").format(_identifiers(definition.primary_key)))
        schema = definition.table.schema
        if not self.database.query("SELECT 1 FROM pg_namespace WHERE nspname = %s", [schema]):  # 8.4 has no IF NOT EXISTS
            self.database.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(schema)))
        self.database.execute(sql.SQL("CREATE TABLE {} ({})").format(_qualified(definition.table), sql.SQL(", ").join(columns)))

    def rows(self, definition: TableDefinition) -> Rows:
        columns = sql.SQL(", ").join(sql.SQL("{}::text").format(sql.Identifier(n)) for n in _names(definition))
        rows = self.database.query(sql.SQL("SELECT {} FROM {}").format(columns, _qualified(definition.table)))
        booleans = {"true": "t", "false": "f"}  # the cast writes them out, the output function does not
        oids = [c.type_oid for c in definition.columns]
        return _sorted(
            [tuple(booleans[v] if oid == sqlite_ddl.BOOL and v else v for v, oid in zip(row, oids, strict=True)) for row in rows]
        )

    def position(self) -> LSN | None:
        rows = self.database.query("SELECT position FROM streamer.progress")
        return LSN.parse(rows[0][0]) if rows else None

    def held(self) -> Rows:
        return self.database.query(_HELD.format("streamer.quarantine"))

    def let_go(self) -> None:
        self.database.execute("DELETE FROM streamer.quarantine")


class ShapedTarget:
    """Another target behind a sink that gives every table the shape that it has, with a condition that every row fulfils."""

    def __init__(self, target: Target) -> None:
        self._target = target

    def sink(self, on_error: OnError = stops) -> Sink:
        return ShapedSink(self._target.sink(on_error), Shapes(_SameShapes(), {}, dict, _Yes()))

    def create(self, definition: TableDefinition, *unique: str) -> None:
        self._target.create(definition, *unique)

    def rows(self, definition: TableDefinition) -> Rows:
        return self._target.rows(definition)

    def position(self) -> LSN | None:
        return self._target.position()

    def held(self) -> Rows:
        return self._target.held()

    def let_go(self) -> None:
        self._target.let_go()


class _SameShapes(dict[TableName, Shape]):
    def get(self, table: TableName, default: object = None) -> Shape:
        return Shape(table, table, None, {}, "true", "")

    def __contains__(self, table: object) -> bool:
        return False  # none is called otherwise


class _Yes:
    def answer(self, questions: Sequence[Question]) -> Sequence[Sequence[bool]]:
        return [[True] * len(question.rows) for question in questions]

    def cancel(self) -> None:
        """Nothing takes long here."""

    def close(self) -> None:
        """There is nothing to close."""


def _names(definition: TableDefinition) -> tuple[str, ...]:
    return tuple(c.name for c in definition.columns)


def _sorted(rows: Rows) -> Rows:
    return sorted(rows, key=lambda row: [(value is not None, value or "") for value in row])


def _identifiers(names: tuple[str, ...]) -> sql.Composed:
    return sql.SQL(", ").join(map(sql.Identifier, names))


def _qualified(table: TableName) -> sql.Identifier:
    return sql.Identifier(table.schema, table.name)


def _as_postgres(value: object, oid: int) -> str | None:
    """The value as PostgreSQL would write it."""
    if value is None:
        return None
    if oid == sqlite_ddl.BOOL:
        return {1: "t", 0: "f"}[int(str(value))]
    if isinstance(value, bytes):
        return f"\\x{value.hex()}"
    return repr(value).removesuffix(".0") if isinstance(value, float) else str(value)


TARGETS: dict[str, Callable[[pytest.FixtureRequest, Path], Target]] = {
    "memory": lambda request, directory: MemoryTarget(),
    "sqlite": lambda request, directory: SqliteTarget(directory / "target.sqlite"),
    "shaped": lambda request, directory: ShapedTarget(SqliteTarget(directory / "target.sqlite")),
    "jsonl": lambda request, directory: JsonlTarget(directory / "target.jsonl"),
    "mariadb": lambda request, directory: MysqlTarget(request.getfixturevalue("mariadb")),
    "mariadb-inserts": lambda request, directory: MysqlTarget(request.getfixturevalue("mariadb"), local_infile=False),
    "postgres15": lambda request, directory: PostgresTarget(request.getfixturevalue("target15")),
    "postgres18": lambda request, directory: PostgresTarget(request.getfixturevalue("target18")),
}

holds_infinity = pytest.mark.parametrize("target", [name for name in TARGETS if not name.startswith("mariadb")], indirect=True)
"""For tests of floats that are no numbers, which MySQL's floats cannot be."""
keeps_rows = pytest.mark.parametrize("target", [name for name in TARGETS if name != "jsonl"], indirect=True)
"""For tests of what only a target with tables can do: refuse a row, miss one, tell what is there. Files of events just grow."""
has_quarantine = pytest.mark.parametrize("target", [name for name in TARGETS if name not in ("jsonl", "memory")], indirect=True)
"""For tests of what targets hold back."""


@contextmanager
def opened(target: Target, on_error: OnError = stops) -> Iterator[Sink]:
    """A sink that is open, with its progress begun."""
    sink, progress = _open(target, on_error)
    try:
        if progress is None:
            sink.begin(SLOT, BEGIN)
        yield sink
    finally:
        sink.close()


def _open(target: Target, on_error: OnError) -> tuple[Sink, Progress | None]:
    """A new sink and what it finds, once the session of the one before has ended: its server may take a moment for that."""

    def tried() -> tuple[Sink, Progress | None] | None:
        sink = target.sink(on_error)
        try:
            return sink, sink.open()
        except StreamerError as error:
            sink.close()
            if not isinstance(error, TakenError):
                raise
            return None

    return wait_for(tried, "the end of the session that writes the edge")


def progress_of(target: Target) -> Progress:
    """What a new sink finds."""
    sink, progress = _open(target, stops)
    sink.close()
    assert progress is not None
    return progress


def written(target: Target, definition: TableDefinition, *groups: Group) -> tuple[Rows, Written]:
    """Write the groups; return the table's rows and what the last of them did."""
    with opened(target) as sink:
        done = [write(sink, g) for g in groups][-1]
    return target.rows(definition), done
