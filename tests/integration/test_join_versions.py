"""Nodes that join while others write to the same rows: what was copied keeps its version, so that all agree who was later.

Where the order matters, nothing is left to chance: edges from b stand still while a's tables are copied, so that what b did before
is on its way to both.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from datetime import datetime, timedelta

import pytest

from streamer.admin.setup import setup
from streamer.config import Config
from streamer.copytext import format_rows
from streamer.model import LSN, EdgeName, SlotIdentity, TableName, Version
from streamer.ports import CopyTable, RowVersion, Start
from streamer.report import State
from streamer.sinks.postgres_copy import TableLoader
from streamer.sinks.postgres_session import TargetSession
from tests.configs import checked
from tests.conftest import Databases
from tests.integration.applications import Application, Statement, more, writing
from tests.integration.streams import four_nodes, running
from tests.servers import Database, PostgresServer, Row
from tests.waiting import wait_for, wait_for_equal

TABLES = ("items", "sums", "emptied")
OLD_ROWS = 30
HOT = 200
"""Keys that everybody writes: few enough to meet, and enough for some not to be written again after the copy."""


@pytest.fixture
def nodes(databases: Databases, pg15: PostgresServer, pg18: PostgresServer) -> dict[str, Database]:
    return four_nodes(databases, pg15, pg18, TABLES)


def configured(nodes: Mapping[str, Database], sources: str, targets: str = "") -> Config:
    """The sync over these nodes, with all that it needs installed on them."""
    sync = {
        "sources": list(sources),
        "targets": list(targets),
        "tables": ["public.*"],
        "table": {"public.sums": {"delta": ["n"]}},
    }
    config = checked({"nodes": {name: {"url": nodes[name].url} for name in sources + targets}, "syncs": {"s": sync}})
    setup(config, None, lambda line: None, fix=True)
    return config


def contents(database: Database) -> dict[str, list[Row]]:
    return {table: database.query(f"SELECT * FROM {table} ORDER BY id") for table in TABLES}


def wait_until_equal(nodes: Mapping[str, Database], names: str) -> dict[str, dict[int, tuple[str, int]]]:
    """Wait until all hold the same rows, and return them."""

    def differing() -> dict[str, str]:
        first, *others = [contents(nodes[name]) for name in names]
        return {
            f"{table} on {name}": f"lacks {sorted(set(first[table]) - set(rows[table]))}, "
            f"has {sorted(set(rows[table]) - set(first[table]))}"
            for name, rows in zip(names[1:], others, strict=True)
            for table in TABLES
            if rows[table] != first[table]
        }

    wait_for_equal(differing, dict[str, str](), "all nodes to be equal", 120)
    return {table: {i: (writer, n) for i, writer, n in rows} for table, rows in contents(nodes[names[0]]).items()}


def begin(source: Database, target: Database, edge: EdgeName) -> None:
    """Begin the edge where the source's WAL ends, without running it; of b, where its slot stands."""
    position = "s.confirmed_flush_lsn" if edge.source == "b" else "pg_current_wal_lsn()"
    query = (
        f"SELECT c.system_identifier::text, s.slot_name, {position}::text FROM pg_control_system() AS c, pg_replication_slots AS s "
        "WHERE s.database = current_database()"
    )
    ((identifier, slot, position),) = source.query(query)
    session = TargetSession(edge, target.url)
    session.open()
    try:
        TableLoader(session, masters=5.0).begin(SlotIdentity(identifier, source.name, slot), LSN.parse(position))
    finally:
        session.close()


@pytest.mark.parametrize("who", ["c", "d"])
def test_an_older_change_that_is_still_on_its_way_does_not_win_against_a_copied_row(nodes: dict[str, Database], who: str) -> None:
    for table in TABLES:
        nodes["a"].execute(f"INSERT INTO {table} SELECT i, 'old', 0 FROM generate_series(1, {OLD_ROWS}) i")
    with running(configured(nodes, "ab")):
        wait_until_equal(nodes, "ab")
        nodes["b"].execute("UPDATE items SET n = 1 WHERE id = 30")  # what a then has of b is not older than this
        wait_until_equal(nodes, "ab")
    older, later = nodes["b"].execute, nodes["a"].execute
    older("UPDATE items SET writer = 'b' WHERE id IN (1, 2)")
    older("DELETE FROM items WHERE id = 3")
    older("INSERT INTO items VALUES (101, 'b', 0), (102, 'b', 0)")
    older("UPDATE sums SET n = n + 1, writer = 'b' WHERE id IN (1, 2)")
    older("UPDATE sums SET n = n + 1 WHERE id = 3")
    older("INSERT INTO emptied VALUES (101, 'b', 0)")
    later("UPDATE items SET writer = 'a' WHERE id IN (1, 3)")
    later("DELETE FROM items WHERE id = 2")
    later("INSERT INTO items VALUES (101, 'a', 0), (102, 'a', 0)")
    later("DELETE FROM items WHERE id = 102")
    later("UPDATE items SET writer = 'a' WHERE id IN (4, 5)")
    later("DELETE FROM items WHERE id IN (6, 7)")
    later("UPDATE sums SET writer = 'a' WHERE id = 1")
    later("UPDATE sums SET n = n + 10 WHERE id IN (1, 2)")
    later("DELETE FROM sums WHERE id = 3")
    later("TRUNCATE emptied")
    nodes["b"].execute("UPDATE items SET writer = 'b' WHERE id IN (4, 6)")  # later still
    config = configured(nodes, "abc") if who == "c" else configured(nodes, "ab", "d")
    begin(nodes["a"], nodes[who], EdgeName("s", "a", who))
    begin(nodes["b"], nodes[who], EdgeName("s", "b", who))
    if who == "c":
        begin(nodes["c"], nodes["a"], EdgeName("s", "c", "a"))
    with running(config, source="a", wait=False):
        wait_for(lambda: contents(nodes[who])["items"], "the copy")
    with running(config) as streams:
        nodes["a"].execute("INSERT INTO items VALUES (1001, 'a', 0)")
        nodes["b"].execute("INSERT INTO items VALUES (1002, 'b', 0)")
        wait_for(lambda: {1001, 1002} <= {row[0] for row in contents(nodes[who])["items"]}, "the last changes")
        rows = wait_until_equal(nodes, f"ab{who}")
        assert streams.problems == []
    items = rows["items"]
    assert [items.get(i, ("", 0))[0] for i in range(1, 8)] == ["a", "", "a", "b", "a", "b", ""]
    assert (items[101][0], 102 in items) == ("a", False)
    assert (rows["sums"][1], rows["sums"][2], 3 in rows["sums"]) == (("a", 11), ("b", 11), False)
    assert rows["emptied"] == {}


def test_of_a_row_that_was_written_here_and_there_the_later_one_stays(nodes: dict[str, Database]) -> None:
    configured(nodes, "ab")
    b, edge, items = nodes["b"], EdgeName("s", "a", "b"), TableName("public", "items")
    b.execute("INSERT INTO items SELECT i, 'here', 0 FROM generate_series(1, 7) AS i")
    b.execute("DELETE FROM items WHERE id IN (5, 6, 7)")
    ((written,),) = b.query("SELECT pg_xact_commit_timestamp(xmin) FROM items WHERE id = 1")
    ((now,),) = b.query("SELECT clock_timestamp()")
    before = written - timedelta(seconds=1)
    there = [(1, now, False), (2, before, False), (3, now, True), (4, before, True)]
    there += [(5, now, False), (6, before, False), (8, now, True)]
    asked: list[tuple[list[str], datetime | None]] = []

    def versions(key: Sequence[str], floor: datetime, here: datetime | None) -> Iterator[RowVersion]:
        asked.append((list(key), here))
        return (RowVersion((str(i),), Version(time, "c"), deleted) for i, time, deleted in there)

    session = TargetSession(edge, b.url)
    session.open()
    try:
        loader = TableLoader(session, masters=5.0)
        loader.begin(SlotIdentity("1", "joined_a", "streamer_s_a"), LSN(100))
        rows = format_rows([(str(i), "copied", "1") for i in (1, 2, 5, 6, 7)])
        table = CopyTable(items, ("id", "writer", "n"), (23, 25, 23), 5)
        loader.load(table, Start(LSN(150), now, replace=False, versions=versions), [rows])
    finally:
        session.close()
    assert asked == [(["id"], written)]
    assert b.query("SELECT id, writer FROM items ORDER BY id") == [(1, "copied"), (2, "here"), (4, "here"), (5, "copied")]
    kept = (
        "SELECT t.id, c.origin, c.commit_time FROM items AS t JOIN streamer.copied AS c ON c.xid = t.xmin AND c.id = {} ORDER BY 1"
    )
    id_ = """md5('["public","items","' || t.id || '"]')::uuid AND NOT c.buried"""
    assert b.query(kept.format(id_)) == [(1, "c", now), (5, "c", now)]
    buried = "SELECT t.key, c.commit_time FROM streamer.tombstone AS t JOIN streamer.copied AS c ON c.xid = t.xmin AND c.id = t.id"
    assert b.query(f"{buried} AND c.buried ORDER BY 1") == [('["3"]', now), ('["4"]', before), ('["8"]', now)]


def test_a_row_that_is_older_than_what_an_earlier_copy_knew_as_truncated_stays_away(nodes: dict[str, Database]) -> None:
    """The row was in a copy from b, to which a's TRUNCATE had not come yet; c, which had a's tables by then, kept it for ever."""
    configured(nodes, "abc")
    ((truncated,),) = nodes["c"].query("SELECT clock_timestamp()")
    before = truncated - timedelta(seconds=1)
    emptied = CopyTable(TableName("public", "emptied"), ("id", "writer", "n"), (23, 25, 23), 2)
    known = {
        "a": ([], [RowVersion((), Version(truncated, "a"), deleted=True)]),
        "b": (
            [("101", "b", "0"), ("102", "b", "0")],
            [
                RowVersion(("101",), Version(before, "b"), deleted=False),
                RowVersion(("102",), Version(truncated + timedelta(seconds=1), "b"), deleted=False),
                RowVersion((), Version(before, "b"), deleted=True),
            ],
        ),
    }
    for source, (rows, versions) in known.items():
        session = TargetSession(EdgeName("s", source, "c"), nodes["c"].url)
        session.open()
        try:
            loader = TableLoader(session, masters=5.0)
            loader.begin(SlotIdentity("1", f"joined_{source}", f"streamer_s_{source}"), LSN(100))
            start = Start(LSN(150), truncated, replace=False, versions=lambda *_, known=tuple(versions): known)
            loader.load(emptied, start, [format_rows(rows)] if rows else [])
        finally:
            session.close()
    assert nodes["c"].query("SELECT id FROM emptied") == [(102,)]
    known_of = "streamer.tombstone AS t JOIN streamer.copied AS c ON c.xid = t.xmin AND c.id = t.id AND c.buried"
    assert nodes["c"].query(f"SELECT t.deleted, c.origin, c.commit_time FROM {known_of}") == [(truncated, "a", truncated)]


def test_a_copy_does_not_wait_for_ever_for_a_source_on_which_nobody_writes(nodes: dict[str, Database]) -> None:
    """It waits until another edge has noted that it is past what the copy holds; that edge had nothing to note it with."""
    nodes["b"].execute("INSERT INTO items VALUES (1, 'b', 0)")
    settings = {"sources": ["a", "b"], "tables": ["public.items", "public.emptied"], "copy": "never"}
    urls = {name: {"url": nodes[name].url} for name in "abc"}
    config = checked({"nodes": urls, "syncs": {"s": settings}})
    setup(config, None, lambda line: None, fix=True)
    with running(config):
        nodes["b"].execute("INSERT INTO emptied VALUES (1, 'b', 0)")
        wait_for(lambda: nodes["a"].query("SELECT 1 FROM emptied"), "the edge to be past the beginning of items")
    config = checked({"nodes": urls, "syncs": {"s": settings | {"sources": ["a", "b", "c"], "copy": "if-empty"}}})
    setup(config, None, lambda line: None, fix=True)
    with running(config, source="b", wait=False), running(config, source="a", wait=False):
        wait_for(lambda: nodes["c"].query("SELECT 1 FROM items"), "the copy from b to c")
    allow = f"ALTER DATABASE {nodes['c'].name} ALLOW_CONNECTIONS {{}}"
    nodes["c"].server.execute(allow.format("false"))
    with running(config, wait=False, set_up=False) as streams:
        wait_for(lambda: streams.edges["b->a"].state is State.STREAMING, "b -> a to stream")
        nodes["c"].server.execute(allow.format("true"))
        streams.wait_until_streaming()
        assert nodes["a"].query("SELECT id FROM items") == [(1,)]


class Writer(Application):
    """It writes to rows that others write to as well."""

    def __init__(self, name: str, database: Database, seed: int) -> None:
        super().__init__(name, database)
        self._dice = random.Random(f"{name} {seed}")

    def next(self) -> list[Statement]:
        key, what = self._dice.randint(1, HOT), self._dice.random()
        if what < 0.35:
            return [("INSERT INTO items VALUES (%s, %s, 0) ON CONFLICT DO NOTHING", [key, self.name])]
        if what < 0.75:
            return [("UPDATE items SET writer = %s, n = %s WHERE id = %s", [self.name, self.transactions, key])]
        return [("DELETE FROM items WHERE id = %s", [key])]


def writers_on(nodes: Mapping[str, Database], names: str, seed: int) -> list[Writer]:
    return [Writer(name, nodes[name], seed) for name in names]


@pytest.mark.parametrize("joining_writes", [False, True])
@pytest.mark.parametrize("held_back", ["a", "b"])
def test_all_agree_about_rows_that_everybody_writes_while_a_node_joins(
    nodes: dict[str, Database], held_back: str, joining_writes: bool
) -> None:
    seed = random.randrange(1 << 30)
    print("seed", seed)
    with ExitStack() as everything:
        with running(configured(nodes, "ab")):
            writers = everything.enter_context(writing(writers_on(nodes, "ab", seed)))
            more(writers)
        config = configured(nodes, "abc")
        with nodes[held_back].connect() as locking:
            locking.execute("BEGIN")
            locking.execute("LOCK TABLE streamer.progress IN SHARE MODE")  # it is behind, and can be copied
            more(writers, 150)
            streams = everything.enter_context(running(config, wait=False))
            wait_for(lambda: nodes["c"].query("SELECT 1 FROM streamer.copy WHERE table_name = 'items'"), "the copy")
            if joining_writes:
                writers += everything.enter_context(writing(writers_on(nodes, "c", seed)))
                more(writers)
            locking.execute("COMMIT")
        for writer in writers:
            writer.stop()
        wait_until_equal(nodes, "abc")
        assert streams.problems == []
