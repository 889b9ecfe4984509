"""Large transactions into MariaDB and SQLite, each compared in the same run with the driver's own executemany of the same rows.

One INSERT and one UPDATE of many rows, each one transaction, in three ways: by streamer, from the commit on the source until the
last row is seen on the target; by its sink alone, with the changes in memory; and by the driver, with the rows in memory, from the
first statement to the end of the commit. The trap: the first shares the processors with PostgreSQL, and gets no more than that
decodes. And PyMySQL makes INSERTs of many rows out of executemany, but one UPDATE a row.
"""

from __future__ import annotations

import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pymysql

from streamer.assembly import make_sink
from streamer.config import Config
from streamer.model import LSN, Change, Column, EdgeName, Group, Identity, Kind, Origin, Relation, TableName
from tests.bench.contenders import Daemon
from tests.bench.databases import moment
from tests.mysql_servers import MysqlServer, server_binary
from tests.servers import Database, PostgresServer
from tests.waiting import wait_for

SETTINGS = {
    "innodb-buffer-pool-size": "1G",
    "innodb-log-file-size": "1G",
    "innodb-flush-log-at-trx-commit": "1",
}
UPDATE = "UPDATE accounts SET bid = {0}, abalance = {0}, filler = {0} WHERE aid = {0}"
INSERT = "INSERT INTO accounts (aid, bid, abalance, filler) VALUES ({0}, {0}, {0}, {0})"
INSERT_ROWS = "INSERT INTO accounts SELECT n, 1, 0, 'account ' || n FROM generate_series(1, {}) n"
TYPES = {"aid": 23, "bid": 23, "abalance": 23, "filler": 1042}
EDGE = EdgeName("bench", "a", "m")
GROUP_ROWS = 30_000  # about what 8 MB hold
PRAGMAS = ("journal_mode = WAL", "synchronous = FULL", "cache_size = -65536")
Rows = list[tuple[object, ...]]


@dataclass(frozen=True, slots=True)
class Engine:
    """A target: its name, what is to be reached, how a node names it, the driver's mark for a parameter, and its connections."""

    name: str
    goal: str
    url: str
    mark: str
    connect: Callable[[], Any]

    @contextmanager
    def cursor(self) -> Iterator[Any]:
        """A cursor of a new connection; the caller commits."""
        with closing(self.connect()) as connection, closing(connection.cursor()) as cursor:
            yield cursor


@dataclass(frozen=True, slots=True)
class Result:
    """What one job came to, in rows/s."""

    engine: Engine
    job: str
    run: int
    streamer: float
    sink: float
    driver: float


def measure(source: PostgresServer, rows: int, runs: int) -> Iterator[Result]:
    """Give the results for every engine that is installed."""
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="streamer-bench-")))
        engines = [_sqlite(directory / "bench.sqlite")]
        if (binary := server_binary()) is not None:
            server = stack.enter_context(closing(MysqlServer(binary, SETTINGS)))
            server.start()
            engines.insert(0, _mariadb(server))
        for run in range(1, runs + 1):
            for engine in engines:
                yield from _round(source, engine, rows, run)


def _mariadb(server: MysqlServer) -> Engine:
    server.create_database("bench")

    def connect() -> Any:  # noqa: ANN401  # a connection of either driver
        return pymysql.connect(
            host="127.0.0.1", port=server.port, user="root", database="bench", charset="utf8mb4", ssl_disabled=True
        )

    return Engine("MariaDB", "streamer ≥ 3", server.url("bench"), "%s", connect)


def _sqlite(path: Path) -> Engine:
    def connect() -> sqlite3.Connection:
        connection = sqlite3.connect(path, timeout=10)
        for pragma in PRAGMAS:
            connection.execute(f"PRAGMA {pragma}")
        return connection

    return Engine("SQLite", "sink ≥ 0.6", f"sqlite:///{path}", "?", connect)


def _round(source: PostgresServer, engine: Engine, rows: int, run: int) -> Iterator[Result]:
    """Both jobs in all three ways, on the same table of the same target, emptied in between."""
    database = source.create_database("foreign")
    nodes = {"a": database.url, "m": engine.url}
    try:
        database.execute("CREATE TABLE accounts (aid int PRIMARY KEY, bid int, abalance int, filler char(84))")
        with closing(Daemon(nodes, {"sources": ["a"], "targets": ["m"]})) as daemon:
            daemon.start()
            wait_for(lambda: slot_is_read(database), "the stream to begin")
            last = f"FROM accounts WHERE aid = {rows}"
            streamed = (
                _streamed(database, engine, daemon, INSERT_ROWS.format(rows), f"SELECT count(*) {last}", 1),
                _streamed(database, engine, daemon, "UPDATE accounts SET abalance = 7", f"SELECT abalance {last}", 7),
            )
            daemon.stop()
            _empty(engine)
            sunk = tuple(_sunk(nodes, kind, rows) for kind in (Kind.INSERT, Kind.UPDATE))
            _empty(engine)
        data: Rows = [(n, 1, 7, f"account {n}".ljust(84)) for n in range(1, rows + 1)]
        driven = (
            _driven(engine, INSERT, data),
            _driven(engine, UPDATE, [(2, 8, filler, n) for n, _, _, filler in data]),
        )
        with engine.cursor() as cursor:
            cursor.execute("DROP TABLE accounts")
        for job, *seconds in zip(("INSERT", "UPDATE"), streamed, sunk, driven, strict=True):
            yield Result(engine, job, run, *(rows / took for took in seconds))
    finally:
        database.drop()


def _empty(engine: Engine) -> None:
    with engine.cursor() as cursor:
        cursor.execute("DELETE FROM accounts")
        cursor.connection.commit()


def _sunk(nodes: Mapping[str, str], kind: Kind, rows: int) -> float:
    """Seconds that the sink takes for as many changes as one transaction of the job has, in groups as an edge makes them."""
    roles = {"sources": ["a"], "targets": ["m"], "tables": ["*"]}
    urls = {name: {"url": url} for name, url in nodes.items()}
    sink = make_sink(Config.model_validate({"nodes": urls, "syncs": {"bench": roles}}), EDGE)
    columns = tuple(Column(name, oid, name == "aid") for name, oid in TYPES.items())
    relation = Relation(TableName("public", "accounts"), columns, Identity.DEFAULT)
    changes: list[Change] = [(kind, relation, None, (str(n), "1", "7", f"account {n}".ljust(84))) for n in range(1, rows + 1)]
    try:
        progress = sink.open()
        assert progress is not None
        position = LSN(progress.position + 1)
        origin = Origin("a", position, datetime.now(UTC))
        parts = [changes[start : start + GROUP_ROWS] for start in range(0, rows, GROUP_ROWS)]
        groups = [Group(origin, part, position, part is parts[-1], 1) for part in parts]
        start = time.perf_counter()
        for group in groups:
            sink.write([group], lambda: False)
        return time.perf_counter() - start
    finally:
        sink.close()


def slot_is_read(database: Database) -> bool:
    """Whether the daemon streams from this database."""
    return database.query("SELECT 1 FROM pg_replication_slots WHERE active AND database = current_database()") == [(1,)]


def _streamed(database: Database, engine: Engine, daemon: Daemon, statement: str, look: str, expected: int) -> float:
    """Seconds from the commit of the statement to its last row on the target."""
    with engine.cursor() as cursor:  # of one connection: to make one costs as much as hundreds of rows

        def has_come() -> bool:
            cursor.connection.rollback()  # what was seen is of another time
            cursor.execute(look)
            return bool(cursor.fetchone()[0] == expected)

        database.execute("CHECKPOINT")
        database.execute(statement)
        start = time.perf_counter()
        return moment(daemon, has_come, look) - start


def _driven(engine: Engine, statement: str, rows: Sequence[tuple[object, ...]]) -> float:
    """Seconds that the driver's executemany takes, with the commit."""
    with engine.cursor() as cursor:
        start = time.perf_counter()
        cursor.executemany(statement.format(engine.mark), rows)
        cursor.connection.commit()
        return time.perf_counter() - start


def table(results: Sequence[Result]) -> str:
    """The results in Markdown: medians over the runs, in rows/s, and in parentheses what they come to against the driver."""
    lines = ["| one transaction | streamer | its sink alone | executemany | goal |", "| --- | --- | --- | --- | --- |"]
    for engine, job in dict.fromkeys((r.engine, r.job) for r in results):
        own = [r for r in results if (r.engine, r.job) == (engine, job)]
        rates = zip(*((r.streamer, r.sink, r.driver) for r in own), strict=True)
        streamer, sink, driver = map(statistics.median, rates)
        compared = [f"{rate:,.0f} ({rate / driver:.2f})" for rate in (streamer, sink)]
        lines.append(f"| {job} into {engine.name} | {compared[0]} | {compared[1]} | {driver:,.0f} | {engine.goal} |")
    return "\n".join(lines)


def document(results: Sequence[Result]) -> list[dict[str, object]]:
    """Every single figure, for JSON."""
    return [
        {"engine": r.engine.name, "job": r.job, "run": r.run, "streamer": r.streamer, "sink": r.sink, "driver": r.driver}
        for r in results
    ]
