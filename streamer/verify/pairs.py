"""Which tables of an edge are compared, and how each side of them is read.

Between two PostgreSQL servers both hash their own rows. Where the target is another engine, or a function of the user's makes the
rows, they are streamed, and hashed here. A table is cut into ranges of its key where both sides have an index over it and its
first column is of a type that all engines order alike; else, and if it is partitioned, it is read as a whole, in buckets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import psycopg

from streamer.config import Config
from streamer.errors import UsageError
from streamer.model import Column, EdgeName, Identity, Relation, TableName
from streamer.session import Connection, connect_error, reported
from streamer.sinks import mysql_ddl, mysql_session
from streamer.verify.comparison import Pair
from streamer.verify.foreign_pairs import MysqlTarget, SqliteTarget
from streamer.verify.plan import Plan, find
from streamer.verify.postgres_pairs import PostgresTarget
from streamer.verify.postgres_rows import open_session
from streamer.verify.sqlite_rows import open_file


@dataclass(frozen=True, slots=True)
class Compared:
    """A table of an edge, and how it is compared."""

    table: TableName
    #: the key's columns, as they are called on the target; none if nothing tells rows apart
    key: tuple[str, ...]
    pair: Pair
    #: as the target's sink is given the rows
    relation: Relation


class _Target(Protocol):
    """The other end of an edge. Raises SchemaError for a table that is missing there, or lacks a column."""

    def compared(self, plan: Plan) -> Pair:
        """Return how a table is compared."""


@contextmanager
def opened(
    config: Config, edge: EdgeName, selects: Callable[[TableName], bool]
) -> Iterator[list[tuple[TableName, Callable[[], Compared]]]]:
    """Connect to both ends of an edge, and give its tables; each is looked at when it is called for, and may raise StreamerError.

    Raises UsageError for a target that has no rows to compare, ConnectError, ConfigError.
    """
    with ExitStack() as stack:
        node = config.nodes[edge.source]
        source = stack.enter_context(open_session(edge.source, node.url))
        if config.nodes[edge.target].kind == "jsonl":
            raise UsageError(
                f'node "{edge.target}" holds events, not rows: there is nothing to compare', "name another one with --target"
            )
        with reported(edge.source):
            plans = list(find(config, edge, source, selects))
        with _reported(edge, source):
            target = _connect(config, edge, source, plans, stack)
        if any(plan.where for plan in plans):
            with reported(edge.source):
                source.execute("RESET search_path")  # a condition may call functions of the user's

        yield [(plan.table.table, partial(_compared, edge, source, target, plan)) for plan in plans]


@contextmanager
def _reported(edge: EdgeName, source: Connection) -> Iterator[None]:
    """Turn any database error inside into a ConnectError that names the end of the edge from which it came."""
    try:
        yield
    except psycopg.Error as error:
        raise connect_error(edge.source if source.broken else edge.target, error) from error


def _compared(edge: EdgeName, source: Connection, target: _Target, plan: Plan) -> Compared:
    with _reported(edge, source):
        pair = target.compared(plan)
    columns = (Column(n, c.type_oid, c.name in plan.key) for n, c in zip(plan.names, plan.columns, strict=True))
    relation = Relation(plan.target, tuple(columns), Identity.INDEX if plan.key else Identity.NOTHING)
    return Compared(plan.table.table, tuple(map(plan.called, plan.key)), pair, relation)


def _connect(config: Config, edge: EdgeName, source: Connection, plans: Sequence[Plan], stack: ExitStack) -> _Target:
    node, sync = config.nodes[edge.target], config.syncs[edge.sync]
    if node.kind == "mysql":
        mysql = stack.enter_context(closing(mysql_session.connect(edge.target, node.mysql)))
        names = mysql_ddl.Names(node.mysql.database, node.schemas)
        return MysqlTarget(edge, source, sync.unrepresentable_for, mysql, names, node.mysql)
    if node.kind == "sqlite":
        file = stack.enter_context(closing(open_file(edge.target, node.path)))
        return SqliteTarget(edge, source, sync.unrepresentable_for, file)
    other = stack.enter_context(open_session(edge.target, node.url))
    return PostgresTarget(edge, source, other, {plan.target for plan in plans})
