"""A database that several nodes write, and the edge into it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from streamer import statements
from streamer.model import LSN, Change, Group, Identity, Origin, Relation, Seen, TableDefinition
from streamer.ports import Sink, Written
from streamer.session import connect
from streamer.sinks import postgres_triggers
from streamer.sinks.conflict import Rules
from streamer.sinks.postgres import PostgresSink
from streamer.sinks.postgres_table import quote, quoted, read_target
from streamer.sinks.postgres_transactions import MultiMaster
from tests.changes import relation, table
from tests.integration.targets import BEGIN, EDGE, SLOT
from tests.servers import Database
from tests.waiting import wait_for

T = table(id="integer", name="text", n="integer")
LATEST = Rules("latest")
START = datetime.now(UTC) - timedelta(hours=1)


def at(seconds: float) -> datetime:
    """A moment of the hour that has passed."""
    return START + timedelta(seconds=seconds)


class Node:
    """The database b, and what arrives there."""

    def __init__(self, database: Database, rules: Rules = LATEST) -> None:
        self.database = database
        self.url = database.url
        self.rules = rules
        self._position = int(BEGIN)
        database.execute(statements.load("postgres/install.sql"))

    def create(self, definition: TableDefinition, *more: str) -> Relation:
        columns = [f'"{c.name}" {c.type_name}' for c in definition.columns]
        key = ", ".join(map(quote, definition.primary_key))
        self.database.execute(f"CREATE TABLE {quoted(definition.table)} ({', '.join([*columns, f'PRIMARY KEY ({key})', *more])})")
        with connect("b", self.database.url, application="test") as connection:
            merged = self.rules.delta | self.rules.max | self.rules.min
            postgres_triggers.ensure(connection, read_target(connection, "b", definition.table), merged)
        return relation(definition, Identity.FULL if merged else Identity.DEFAULT)

    def become_plain(self) -> None:
        """Write with a role that has no right to replication origins."""
        database = self.database
        if not database.query("SELECT 1 FROM pg_roles WHERE rolname = 'plain'"):
            database.execute("CREATE ROLE plain LOGIN PASSWORD 'plain'")
        for what in ("SCHEMA streamer, public", "ALL TABLES IN SCHEMA streamer, public", "ALL SEQUENCES IN SCHEMA streamer"):
            database.execute(f"GRANT ALL ON {what} TO plain")
        database.execute(f"GRANT TEMPORARY ON DATABASE {database.name} TO plain")
        self.url = database.server.url(database.name, user="plain", password="plain")

    @contextmanager
    def edge(self) -> Iterator[Sink]:
        settings = MultiMaster(lambda table: self.rules, lambda name: pytest.fail(name), 5.0, 30, 7, self.rules.policy == "latest")
        self._wait_for_last_session()
        sink = PostgresSink(EDGE, self.url, masters=settings)
        try:
            if sink.open() is None:
                sink.begin(SLOT, BEGIN)
            yield sink
        finally:
            sink.close()

    def _wait_for_last_session(self) -> None:
        """A session that has been closed has its lock for a moment still."""
        ours = "database = (SELECT oid FROM pg_database WHERE datname = current_database())"
        locks = f"SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND {ours}"
        wait_for(lambda: self.database.query(locks) == [(0,)], "the last session's lock to be given back")

    def progress(self) -> tuple[LSN, Seen]:
        """What a new session is told."""
        self._wait_for_last_session()
        with closing(PostgresSink(EDGE, self.url)) as sink:
            progress = sink.open()
            assert progress is not None
            return progress.position, progress.seen

    def transaction(self, *changes: Change, time: datetime, node: str = "a", complete: bool = True, **seen: datetime) -> Group:
        self._position += 10
        origin = Origin(node, LSN(self._position - 1), time, seen)
        return Group(origin, changes, LSN(self._position), complete, transactions=1)

    def apply(self, *groups: Group) -> list[Written]:
        with self.edge() as sink:
            return list(sink.write(groups, lambda: False))

    def rows(self) -> list[tuple[Any, ...]]:
        return self.database.query("SELECT * FROM public.t ORDER BY id")

    def conflicts(self) -> list[tuple[str, str, str | None]]:
        return self.database.query("SELECT kind, key, winner FROM streamer.conflict ORDER BY id")

    def versions(self) -> dict[int, tuple[datetime | None, str | None]]:
        query = (
            "SELECT t.id, v.timestamp, o.roname FROM public.t AS t, pg_xact_commit_timestamp_origin(t.xmin) AS v "
            "LEFT JOIN pg_replication_origin AS o ON o.roident = v.roident"
        )
        return {i: (time, name) for i, time, name in self.database.query(query)}
