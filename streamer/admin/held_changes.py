"""The quarantine of one edge as commands work on it: its table, and how what is held is applied to the target after all.

Nothing is changed behind the back of a running daemon: a transaction here first locks what every transaction of the edge's writer
begins with, the progress row. On PostgreSQL it is tagged like one of the daemon's, so that readers of that node's WAL know where
the changes were made.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from functools import partial

import psycopg
import pymysql
from pymysql.constants import ER

from streamer.admin.nodes import explained
from streamer.assembly import replacements
from streamer.config import Config
from streamer.errors import StreamerError, TargetError
from streamer.model import Change, EdgeName
from streamer.node_config import Node
from streamer.ports import Written
from streamer.session import Connection
from streamer.sinks import mysql_apply, sqlite_apply
from streamer.sinks.group_apply import Applier as GroupApplier
from streamer.sinks.mysql_apply import MysqlTables
from streamer.sinks.mysql_bulk import Server
from streamer.sinks.mysql_ddl import Names
from streamer.sinks.mysql_session import code_of, failing
from streamer.sinks.mysql_session import connect as connect_mysql
from streamer.sinks.net import Unfoldable, fold
from streamer.sinks.postgres_apply import Applier, is_refusal
from streamer.sinks.postgres_care import quarantine_table
from streamer.sinks.postgres_pipeline import Pipeline
from streamer.sinks.postgres_session import EDGE, TargetSession
from streamer.sinks.postgres_writer import TableWriters
from streamer.sinks.quarantine_table import QuarantineTable, Stored
from streamer.sinks.sqlite import BUSY_TIMEOUT
from streamer.sinks.sqlite_apply import SqliteTables
from streamer.sinks.sqlite_file import DatabaseFile

_AGAIN = "then run the command again"
_TAG = f"UPDATE streamer.progress SET origin = %s, origin_position = %s, origin_time = %s, updated = now() WHERE {EDGE}"


@dataclass(frozen=True, slots=True)
class HeldChanges:
    """What is held of an edge."""

    table: QuarantineTable
    #: a transaction: it begins when the edge's writer has none, and is undone by an exception
    transaction: Callable[[], AbstractContextManager[object]]
    #: makes it one of changes that were made where this one was, before the first is applied; None if nobody reads them there
    tag: Callable[[Stored], object] | None
    #: applies changes: what they come to, or one after the other to see which is refused. Raises ApplyError for that, SchemaError
    apply: Callable[[Sequence[Change]], Written]


@contextmanager
def held_changes(config: Config, edge: EdgeName) -> Iterator[HeldChanges]:
    """Connect to the target of an edge, which is no jsonl node. Raises StreamerError, also for what the target says inside."""
    node = config.nodes[edge.target]
    openers = {"postgresql": _on_postgres, "mysql": _on_mysql, "sqlite": _in_file}
    with openers[node.kind](config, edge, node) as held:
        yield held


def _not_set_up(edge: EdgeName) -> StreamerError:
    return TargetError(f'node "{edge.target}" is not set up to keep a quarantine', "run: streamer setup")


# -- PostgreSQL --------------------------------------------------------------------------------------------------------------------


@contextmanager
def _on_postgres(config: Config, edge: EdgeName, node: Node) -> Iterator[HeldChanges]:
    with closing(TargetSession(edge, node.url).connect()) as connection:
        table = quarantine_table(edge, connection)
        tables = TableWriters(connection, edge.target)
        where = [edge.sync, edge.source, edge.target]
        try:
            try:
                table.count()
            except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName):
                raise _not_set_up(edge) from None
            connection.prepare_threshold = None  # see postgres_pipeline: transactions are rolled back here
            connection.execute("RESET synchronous_commit")  # who is told that it is done may rely on it
            yield HeldChanges(
                table,
                partial(_transaction_there, connection, where),
                lambda first: connection.execute(_TAG, [first.origin, first.position, first.commit_time, *where]),
                partial(_apply_there, Applier(Pipeline(connection), edge.target, tables.of), connection, tables),
            )
        except psycopg.Error as error:
            raise explained(edge.target, connection, error) from error


def _apply_there(applier: Applier, connection: Connection, tables: TableWriters, changes: Sequence[Change]) -> Written:
    try:
        with connection.transaction():
            return applier.apply(fold(changes, tables.key_of)).written()
    except Unfoldable:
        pass  # then one by one
    except psycopg.Error as error:
        if not is_refusal(error):
            raise
        applier.forget_stages()
    return applier.replay(changes).written()


@contextmanager
def _transaction_there(connection: Connection, where: Sequence[str]) -> Iterator[None]:
    with connection.transaction():
        connection.execute(f"SELECT 1 FROM streamer.progress WHERE {EDGE} FOR UPDATE", where)
        yield


# -- MySQL and SQLite --------------------------------------------------------------------------------------------------------------


@contextmanager
def _on_mysql(config: Config, edge: EdgeName, node: Node) -> Iterator[HeldChanges]:
    with failing(edge.target, node.mysql, _AGAIN), closing(connect_mysql(edge.target, node.mysql)) as connection:
        table = mysql_apply.quarantine_table(edge, connection)
        try:
            table.count()
        except pymysql.MySQLError as error:
            if code_of(error) == ER.NO_SUCH_TABLE:
                raise _not_set_up(edge) from None
            raise
        values, names = replacements(config, edge), Names(node.mysql.database, node.schemas)
        tables = MysqlTables(connection, Server.of(connection), edge.target, names, values)
        applier = GroupApplier(edge.target, tables.of, connection.run, mysql_apply.refusal, values)
        lock = "SELECT 1 FROM streamer_progress WHERE sync = %s AND source = %s AND target = %s FOR UPDATE"
        where = (edge.sync, edge.source, edge.target)

        def begin() -> None:
            connection.run("START TRANSACTION")
            connection.rows(lock, where)

        yield HeldChanges(table, partial(_transaction, begin, connection.run), None, applier.write)


@contextmanager
def _in_file(config: Config, edge: EdgeName, node: Node) -> Iterator[HeldChanges]:
    file = DatabaseFile(edge.target, node.path, BUSY_TIMEOUT)
    with file.errors(), closing(file.connect()) as connection:
        if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'streamer_quarantine'").fetchone():
            raise _not_set_up(edge)
        values = replacements(config, edge)
        tables = SqliteTables(connection, edge.target, values)
        applier = GroupApplier(edge.target, tables.of, connection.execute, sqlite_apply.refusal, values)
        begin = partial(connection.execute, "BEGIN IMMEDIATE")
        transaction = partial(_transaction, begin, partial(_unless_over, connection))
        yield HeldChanges(sqlite_apply.quarantine_table(edge, connection), transaction, None, applier.write)


@contextmanager
def _transaction(begin: Callable[[], object], run: Callable[[str], object]) -> Iterator[None]:
    begin()
    try:
        yield
    except BaseException:
        run("ROLLBACK")
        raise
    run("COMMIT")


def _unless_over(connection: sqlite3.Connection, statement: str) -> None:
    """A trigger may have rolled back the transaction itself."""
    if connection.in_transaction:
        connection.execute(statement)
