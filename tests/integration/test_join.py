"""Nodes that join a sync with several sources while applications write: one copy, nothing lost, nothing doubled, all equal.

Every application here writes rows of its own range of keys, so no conflict needs resolving: what differs at the end was lost or
came back. They insert, update and delete without a pause, from before the node joins until it has caught up.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime

import pytest

from streamer.admin.setup import setup
from streamer.config import Config
from streamer.copytext import format_rows
from streamer.model import LSN, EdgeName, SlotIdentity, TableName
from streamer.ports import CopyTable, Start
from streamer.session import connect
from streamer.sinks.postgres_copy import TableLoader
from streamer.sinks.postgres_session import TargetSession
from streamer.sinks.postgres_table import read_target
from streamer.sinks.postgres_triggers import ensure
from streamer.versions import OLDEST
from tests.configs import checked
from tests.conftest import Databases
from tests.integration.applications import Application, Statement, more, writing
from tests.integration.streams import four_nodes, running
from tests.servers import Database, PostgresServer, Row
from tests.waiting import wait_for_equal

TABLES = ("items", "quiet", "unused")
OLD_ROWS = 3000
RANGE = 1_000_000


@pytest.fixture
def nodes(databases: Databases, pg15: PostgresServer, pg18: PostgresServer) -> dict[str, Database]:
    return four_nodes(databases, pg15, pg18, TABLES)


def fill(database: Database) -> None:
    for table in ("items", "quiet"):
        database.execute(f"INSERT INTO {table} SELECT i, 'old', 0 FROM generate_series(1, {OLD_ROWS}) i")


def configured(nodes: Mapping[str, Database], sources: Sequence[str], targets: Sequence[str] = (), triggers: str = "") -> Config:
    """The sync over these nodes, with all that it needs installed on them; of some of them `triggers` capture the changes."""
    taking_part = {
        name: {"url": nodes[name].url, "capture": "trigger" if name in triggers else "auto"} for name in (*sources, *targets)
    }
    sync = {"sources": list(sources), "targets": list(targets), "tables": ["public.*"]}
    config = checked({"nodes": taking_part, "syncs": {"s": sync}})
    setup(config, None, lambda line: None)
    for name in taking_part:
        with connect(name, nodes[name].url, application="test") as connection:
            for table in TABLES:
                ensure(connection, read_target(connection, name, TableName("public", table)), ())
    return config


class Writer(Application):
    """It changes rows of its own."""

    def __init__(self, name: str, database: Database) -> None:
        super().__init__(name, database)
        self._next = (1 + "abcd".index(name)) * RANGE
        self.mine: list[int] = []
        self._dice = random.Random(name)

    def next(self) -> list[Statement]:
        return [self._statement() for _ in range(self._dice.randint(1, 3))]

    def _statement(self) -> Statement:
        what = self._dice.random()
        if what < 0.5 or not self.mine:
            self._next += 1
            self.mine.append(self._next)
            return "INSERT INTO items VALUES (%s, %s, 0)", [self._next, self.name]
        if what < 0.85:
            return "UPDATE items SET n = n + 1 WHERE id = %s", [self._dice.choice(self.mine)]
        return "DELETE FROM items WHERE id = %s", [self.mine.pop(self._dice.randrange(len(self.mine)))]


def writers_on(nodes: Mapping[str, Database], names: str) -> list[Writer]:
    return [Writer(name, nodes[name]) for name in names]


def contents(database: Database) -> dict[str, list[Row]]:
    return {table: database.query(f"SELECT * FROM {table} ORDER BY id") for table in TABLES}


def wait_until_equal(nodes: Mapping[str, Database], names: str, also: Mapping[str, int] | None = None) -> None:
    """Wait until all hold the same rows; `also` says how many some tables must have."""

    def differing() -> dict[str, str]:
        """By table, how the nodes differ from the first."""
        first, *others = [contents(nodes[name]) for name in names]
        return {
            f"{table} on {name}": f"lacks {sorted(set(first[table]) - set(rows[table]))[:5]}, "
            f"has {sorted(set(rows[table]) - set(first[table]))[:5]}"
            for name, rows in zip(names[1:], others, strict=True)
            for table in TABLES
            if rows[table] != first[table]
        }

    wait_for_equal(differing, dict[str, str](), "all nodes to be equal", 60)
    rows = contents(nodes[names[0]])
    for table, count in (also or {}).items():
        assert len(rows[table]) == count


def copies(database: Database) -> list[Row]:
    """Which tables were copied into the database, and how often."""
    return database.query("SELECT table_name, count(*) FROM streamer.copy WHERE rows IS NOT NULL GROUP BY 1 ORDER BY 1")


@pytest.mark.parametrize("triggers", ["", "ac"], ids=["WAL", "WAL and triggers"])
def test_a_third_source_joins_while_the_others_write(nodes: dict[str, Database], triggers: str) -> None:
    fill(nodes["a"])
    with ExitStack() as applications:
        with running(configured(nodes, "ab", triggers=triggers)):
            writers = applications.enter_context(writing(writers_on(nodes, "ab")))
            more(writers)
        more(writers)  # the edges have something to catch up on when the third one comes
        with running(configured(nodes, "abc", triggers=triggers)) as streams:
            with writing(writers_on(nodes, "c")) as third:
                more([*writers, *third])
            for writer in writers:
                writer.stop()
            wait_until_equal(nodes, "abc", {"quiet": OLD_ROWS})
            assert streams.problems == []
    assert copies(nodes["c"]) == [("items", 1), ("quiet", 1)]
    # of a row that came and went again triggers tell the end
    missing = {name: edge.counters.missing for name, edge in streams.edges.items() if name[0] not in triggers}
    assert set(missing.values()) == {0}


@pytest.mark.parametrize("sources", ["ab", "abc"])
def test_applications_may_write_on_all_sources_from_the_first_moment(nodes: dict[str, Database], sources: str) -> None:
    config = configured(nodes, sources)
    with writing(writers_on(nodes, sources)) as writers, running(config) as streams:
        more(writers)
        for writer in writers:
            writer.stop()
        wait_until_equal(nodes, sources)
        assert streams.problems == []
    ours = nodes["a"].query("SELECT writer, count(*) FROM items GROUP BY 1 ORDER BY 1")
    assert ours == [(w.name, len(w.mine)) for w in writers]


def test_the_rows_of_one_source_reach_all_others_however_they_begin(nodes: dict[str, Database]) -> None:
    fill(nodes["b"])
    with running(configured(nodes, "abc", "d")), writing(writers_on(nodes, "abc")) as writers:
        more(writers)
        for writer in writers:
            writer.stop()
        wait_until_equal(nodes, "abcd", {"quiet": OLD_ROWS})
    assert [copies(nodes[name]) for name in "acd"] == [[("items", 1), ("quiet", 1)]] * 3


def test_a_target_is_added_to_a_mesh_while_its_sources_write(nodes: dict[str, Database]) -> None:
    fill(nodes["a"])
    with ExitStack() as applications:
        with running(configured(nodes, "ab")):
            writers = applications.enter_context(writing(writers_on(nodes, "ab")))
            more(writers)
        more(writers)
        with running(configured(nodes, "ab", "d")) as streams:
            more(writers)
            for writer in writers:
                writer.stop()
            wait_until_equal(nodes, "abd", {"quiet": OLD_ROWS})
            assert streams.problems == []
    assert copies(nodes["d"]) == [("items", 1), ("quiet", 1)]


@pytest.mark.parametrize("triggers", ["", "ac"], ids=["WAL", "WAL and triggers"])
def test_what_was_on_its_way_between_two_sources_reaches_the_third_one_that_joins(
    nodes: dict[str, Database], triggers: str
) -> None:
    fill(nodes["a"])
    with running(configured(nodes, "ab", triggers=triggers)):
        wait_until_equal(nodes, "ab")
    with nodes["a"].connect() as locking:
        nodes["b"].execute("UPDATE items SET n = n + 1, writer = 'b' WHERE id % 3 = 0")
        nodes["b"].execute("DELETE FROM items WHERE id % 100 = 1")
        nodes["b"].execute("INSERT INTO items VALUES (4000, 'b', 0)")
        config = configured(nodes, "abc", triggers=triggers)
        locking.execute("BEGIN")
        locking.execute("LOCK TABLE streamer.progress IN SHARE MODE")  # a takes nothing from b any more, but can be copied
        with running(config, wait=False) as streams:
            wait_for_equal(lambda: copies(nodes["c"]), [("items", 1), ("quiet", 1)], "the tables to be copied")
            nodes["b"].execute("UPDATE items SET n = n + 1 WHERE id % 2 = 0")
            locking.execute("COMMIT")
            wait_until_equal(nodes, "abc", {"items": OLD_ROWS - OLD_ROWS // 100 + 1})
            assert streams.problems == []


def test_a_load_respects_what_the_target_has_done_meanwhile(nodes: dict[str, Database]) -> None:
    configured(nodes, "ab")
    edge, items = EdgeName("s", "a", "b"), TableName("public", "items")
    b, time = nodes["b"], datetime.now(UTC)
    session = TargetSession(edge, b.url)
    session.open()
    try:
        loader = TableLoader(session, masters=5.0)
        loader.begin(SlotIdentity("1", "join_a", "streamer_s_a"), LSN(100))
        b.execute("INSERT INTO items VALUES (1, 'here', 0), (2, 'here', 0), (3, 'here', 0)")
        b.execute("DELETE FROM items WHERE id = 3")
        ((known,),) = b.query("SELECT clock_timestamp()")  # the source has heard of that, and has inserted row 3 again since
        b.execute("DELETE FROM items WHERE id = 2")
        rows = format_rows([(str(i), "copied", "0") for i in range(1, 5)])
        table = CopyTable(items, ("id", "writer", "n"), (23, 25, 23), 4)
        assert loader.load(table, Start(LSN(150), time, replace=False, others={"c": LSN(70)}, seen=known), [rows]) == 4
    finally:
        session.close()
    assert b.query("SELECT id, writer FROM items ORDER BY id") == [(1, "here"), (3, "copied"), (4, "copied")]
    assert b.query("SELECT DISTINCT pg_xact_commit_timestamp(xmin) FROM items WHERE writer = 'copied'") == [(OLDEST,)]
    recorded = "SELECT source, position, rows FROM streamer.copy WHERE table_name = 'items' ORDER BY source"
    assert b.query(recorded) == [("a", "0/96", 4), ("c", "0/46", None)]
    assert b.query("SELECT origin, origin_time FROM streamer.copy WHERE source = 'a'") == [("a", time)]
