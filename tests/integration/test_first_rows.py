"""Applications that write to a node before it has the rows of the others: they get what the others had, once, and lose nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest

from streamer.admin.setup import setup
from streamer.admin.tables import tables
from streamer.admin.teardown import teardown
from streamer.config import Config
from streamer.report import State
from tests.configs import checked
from tests.conftest import Databases
from tests.integration.streams import four_nodes, running
from tests.servers import Database, PostgresServer, Row
from tests.waiting import wait_for, wait_for_equal

MADE = """
CREATE TABLE log (line text);
CREATE TABLE sums (id int PRIMARY KEY, writer text, n int, top int, least int);
ALTER TABLE sums REPLICA IDENTITY FULL
"""
NOTED = "SELECT source, table_name, by_copy FROM streamer.first_rows ORDER BY 1, 2"


@pytest.fixture
def nodes(databases: Databases, pg15: PostgresServer, pg18: PostgresServer) -> dict[str, Database]:
    made = four_nodes(databases, pg15, pg18, ["items"])
    for database in made.values():
        database.execute(MADE)
    return made


def prepared(nodes: Mapping[str, Database], sources: str) -> Config:
    """The sync of these sources, set up."""
    sync = {
        "sources": list(sources),
        "tables": ["public.*"],
        "table": {"public.sums": {"delta": ["n"], "max": ["top"], "min": ["least"]}},
    }
    config = checked({"nodes": {name: {"url": nodes[name].url} for name in sources}, "syncs": {"s": sync}})
    setup(config, None, lambda line: None, fix=True)
    return config


def wait_until_equal(nodes: Mapping[str, Database], names: str) -> dict[str, list[Row]]:
    """Wait until all have the same rows, each as often; return them."""

    def rows(name: str) -> dict[str, list[Row]]:
        return {table: sorted(nodes[name].query(f"SELECT * FROM {table}")) for table in ("items", "log", "sums")}

    def differing() -> dict[str, dict[str, list[Row]]]:
        found = {name: rows(name) for name in names}
        return found if any(of != found[names[0]] for of in found.values()) else {}

    wait_for_equal(differing, dict[str, dict[str, list[Row]]](), "all nodes to be equal")
    return rows(names[0])


def with_people(nodes: Mapping[str, Database], columns: str) -> tuple[Callable[[str], None], Callable[[str], None]]:
    """Make another table on a and b; return how to execute there."""
    a, b = nodes["a"].execute, nodes["b"].execute
    for execute in (a, b):
        execute(f"CREATE TABLE people ({columns})")
        execute("ALTER TABLE people REPLICA IDENTITY FULL")
    return a, b


def fill(database: Database) -> None:
    database.execute("INSERT INTO items VALUES (1, 'a', 0), (2, 'a', 0)")
    database.execute("INSERT INTO log VALUES ('a'), ('a')")
    database.execute("INSERT INTO sums VALUES (1, 'a', 5, 5, 5), (2, 'a', NULL, NULL, NULL), (3, 'a', 5, 5, 5), (4, 'a', 5, 5, 5)")


def write(database: Database) -> None:
    """An application that takes a row for new."""
    database.execute("INSERT INTO items VALUES (2, 'late', 0), (3, 'late', 0)")
    database.execute("INSERT INTO log VALUES ('late')")
    database.execute(
        "INSERT INTO sums VALUES (1, 'late', 0, 7, 7), (2, 'late', 2, 2, 2), (3, 'late', 1, NULL, NULL), (4, 'late', 1, 1, 1)"
    )
    database.execute("UPDATE sums SET n = n + 1 WHERE id = 1")
    database.execute("DELETE FROM sums WHERE id = 4")


WRITTEN = {
    "items": [(1, "a", 0), (2, "late", 0), (3, "late", 0)],
    "log": [("a",), ("a",), ("late",)],
    "sums": [(1, "late", 6, 7, 5), (2, "late", 2, 2, 2), (3, "late", 6, 5, 5)],
}


def test_rows_of_applications_that_came_before_the_copy_do_not_keep_it_away(nodes: dict[str, Database]) -> None:
    fill(nodes["a"])
    config = prepared(nodes, "ab")
    assert nodes["b"].query(NOTED) == [("a", table, True) for table in ("items", "log", "sums")]
    write(nodes["b"])
    setup(config, None, lambda line: None)
    listed, _ = tables(config, "s")
    assert all(table.targets["b"].startswith("copy, then ") for table in listed if table.source == "a")
    with running(config):
        assert wait_until_equal(nodes, "ab") == WRITTEN
    assert nodes["b"].query(NOTED) == []


def test_a_third_node_that_is_written_to_before_it_has_its_rows_gets_all_of_them_once(nodes: dict[str, Database]) -> None:
    fill(nodes["a"])
    with running(prepared(nodes, "ab")):
        wait_until_equal(nodes, "ab")
    config = prepared(nodes, "abc")
    write(nodes["c"])
    with running(config, source="c", wait=False) as streams:  # what it tells must not come back to it with the copy
        wait_for(lambda: "waits for the rows of table" in streams.edges["c->a"].obstacle, "c to wait for its rows")
        wait_for(lambda: "waits for the rows of table" in streams.edges["c->b"].obstacle, "c to wait for its rows")
        assert [stream.state for stream in streams.reports] == [State.COPYING]
    with running(config) as streams:
        assert wait_until_equal(nodes, "abc") == WRITTEN
        assert streams.problems == []
    assert nodes["c"].query(NOTED) == []


def test_tables_that_were_empty_everywhere_come_with_the_streams_whoever_is_first(nodes: dict[str, Database]) -> None:
    """The first to look found rows on one side only, and copied what the other side's stream brought as well."""
    nodes["a"].execute("INSERT INTO items VALUES (1, 'a', 0)")  # its copy tells that b has seen what a did
    config = prepared(nodes, "ab")
    assert nodes["b"].query(NOTED) == [("a", "items", True), ("a", "log", False), ("a", "sums", False)]
    assert nodes["a"].query(NOTED) == [("b", "log", False), ("b", "sums", False)]
    nodes["a"].execute("INSERT INTO log VALUES ('a')")
    nodes["a"].execute("INSERT INTO sums VALUES (1, 'a', 5, 5, 5)")
    with nodes["b"].connect() as application:
        application.execute("BEGIN")
        application.execute("LOCK TABLE log, sums IN SHARE ROW EXCLUSIVE MODE")  # what a has written to them stays away
        with running(config, wait=False) as streams:
            wait_for(lambda: nodes["b"].query("SELECT 1 FROM items"), "the copy")
            application.execute("INSERT INTO log VALUES ('b')")
            application.execute("INSERT INTO sums VALUES (1, 'b', 3, 3, 3)")
            application.execute("COMMIT")
            rows = wait_until_equal(nodes, "ab")
            assert streams.problems == []
    assert rows["log"] == [("a",), ("b",)]
    assert rows["sums"] == [(1, "b", 8, 5, 3)]


def test_of_two_rows_with_one_unique_value_the_later_stays_on_a_node_that_joins_too(nodes: dict[str, Database]) -> None:
    """The copied one was left out, and the other one removed by its source: then there was none."""
    a, b = with_people(nodes, "id int PRIMARY KEY, mail text UNIQUE, name text")
    a("INSERT INTO people VALUES (1, 'x@', 'old'), (2, 'y@', 'old')")
    config = prepared(nodes, "ab")
    b("INSERT INTO people VALUES (101, 'x@', 'new'), (102, 'y@', 'new')")
    a("UPDATE people SET name = 'later' WHERE id = 1")
    with running(config) as streams:
        rows = [(1, "x@", "later"), (102, "y@", "new")]
        wait_for_equal(lambda: [nodes[n].query("SELECT * FROM people ORDER BY id") for n in "ab"], [rows, rows], "the later ones")
        assert streams.problems == []


def test_a_copied_row_whose_unique_value_a_later_row_holds_does_not_stop_the_copy(nodes: dict[str, Database]) -> None:
    a, b = with_people(nodes, "id int PRIMARY KEY, mail text UNIQUE, name text")
    a("INSERT INTO people SELECT i, i || '@', 'old' FROM generate_series(1, 7) AS i")
    config = prepared(nodes, "ab")
    b("INSERT INTO people VALUES (1, 'first@', 'b'), (3, 'third@', 'b'), (4, 'fourth@', 'b')")
    a("UPDATE people SET mail = 'x@', name = 'a' WHERE id = 1")
    a("UPDATE people SET mail = 'y@', name = 'a' WHERE id = 3")
    b("INSERT INTO people VALUES (101, 'x@', 'b'), (5, 'y@', 'b'), (6, '7@', 'b'), (7, '6@', 'b')")
    a("UPDATE people SET name = 'a' WHERE id IN (4, 5, 6, 7)")  # 5 lets go of y@
    with running(config) as streams:
        kept = [(2, "2@"), (3, "y@"), *((i, f"{i}@") for i in (4, 5, 6, 7)), (101, "x@")]
        look = "SELECT id, mail FROM people ORDER BY id"
        wait_for_equal(lambda: [nodes[n].query(look) for n in "ab"], [kept, kept], "the later of each two")
        assert streams.problems == []


def test_a_copied_row_that_has_lost_its_unique_value_is_removed_on_its_source_too(nodes: dict[str, Database]) -> None:
    """Its source judges by an earlier version of the row that holds the value, and removed that: here it was missing for good."""
    a, b = with_people(nodes, 'id int, "the % of" text, mail text UNIQUE, name text, PRIMARY KEY (id, "the % of")')
    a("INSERT INTO people VALUES (1, 'a', 'z@', 'old')")
    config = prepared(nodes, "ab")
    b("INSERT INTO people VALUES (101, 'b', 'x@', 'b'), (2, 'a', 'w@', 'b'), (102, 'b', 'y@', 'b')")
    a("INSERT INTO people VALUES (2, 'a', 'x@', 'a'), (3, 'a', 'y@', 'a')")
    b("UPDATE people SET name = 'later' WHERE id > 100")
    with running(config) as streams:
        rows = [(1, "a", "z@", "old")]
        wait_for_equal(lambda: [nodes[n].query("SELECT * FROM people") for n in "ab"], [rows, rows], "what nobody has lost")
        assert streams.problems == []


def test_what_is_noted_of_a_node_goes_with_it(nodes: dict[str, Database]) -> None:
    fill(nodes["a"])
    config = prepared(nodes, "ab")
    assert nodes["b"].query(NOTED)
    teardown(config, None, force=False, confirm=lambda lines: True, say=lambda line: None)
    assert nodes["b"].query("SELECT 1 FROM pg_tables WHERE schemaname = 'streamer'") == []
