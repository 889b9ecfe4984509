"""`streamer verify` over real servers: what it finds, and that it finds nothing on equal sides, while both are written."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial

import pytest

from streamer.admin.verify import verify, wanted
from streamer.config import Config
from streamer.errors import UsageError
from streamer.verify import comparison
from streamer.verify.tables import Verdict, Verified, equal
from tests.configs import make_config
from tests.conftest import Databases, Pair
from tests.integration.streams import Running, running
from tests.integration.verifying import kinds, small_tables, verified
from tests.meanwhile import meanwhile
from tests.servers import Database, PostgresServer
from tests.waiting import wait_for, wait_for_equal


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small tables have several ranges, too."""
    monkeypatch.setattr(comparison, "PART_ROWS", 300)
    monkeypatch.setattr(comparison, "FINE_ROWS", 100)


def told(found: list[Verified]) -> dict[str, tuple[str, str]]:
    return {one.table: (one.verdict.value, one.problem) for one in found}


# -- what it finds ---------------------------------------------------------------------------------------------------------------

TABLES = (
    "CREATE TABLE t (id int PRIMARY KEY, n numeric, x text, f float8 DEFAULT 0.1, b bytea DEFAULT '\\x00ff')",
    "ALTER TABLE t ALTER x SET STORAGE EXTERNAL",
    "INSERT INTO t SELECT i, i * 1.0, repeat('x', 9000), random() FROM generate_series(1, 1000) i",
    "CREATE TABLE named (name text, of int, n numeric(10, 2), PRIMARY KEY (name, of))",
    "INSERT INTO named SELECT 'n' || i, i, i FROM generate_series(1, 500) i",
    "CREATE TABLE at (at timestamptz, id int, PRIMARY KEY (at, id))",
    "INSERT INTO at SELECT '2020-01-01'::timestamptz + i / 7 * interval '1 hour', i FROM generate_series(1, 1000) i",
    "CREATE TABLE keyless (a int, b text)",
    "ALTER TABLE keyless REPLICA IDENTITY FULL",
    "INSERT INTO keyless SELECT i % 50, 'b' FROM generate_series(1, 500) i",
    "CREATE TABLE parts (id int PRIMARY KEY, x text) PARTITION BY RANGE (id)",
    "CREATE TABLE part_1 PARTITION OF parts FOR VALUES FROM (0) TO (500)",
    "CREATE TABLE part_2 PARTITION OF parts FOR VALUES FROM (500) TO (1001)",
    "INSERT INTO parts SELECT i, 'x' FROM generate_series(1, 1000) i",
    "CREATE TABLE nothing (id int PRIMARY KEY)",
)


@pytest.fixture
def followed(pair: Pair) -> Iterator[tuple[Database, Database, Config, Running]]:
    """A source and its target, equal, and a daemon between them."""
    source, target = pair
    for statement in TABLES:
        source.execute(statement)
        if "CREATE TABLE part" in statement:
            target.execute(statement)
    config = make_config({"a": source.url, "b": target.url})
    with running(config) as streams:
        yield source, target, config, streams


def test_each_difference_is_found_and_nothing_else(followed: tuple[Database, Database, Config, Running]) -> None:
    source, target, config, streams = followed
    before = verified(config, streams)
    assert {one.table: (one.rows, one.verdict) for one in before} == {
        "public.t": (1000, Verdict.EQUAL),
        "public.named": (500, Verdict.EQUAL),
        "public.at": (1000, Verdict.EQUAL),
        "public.keyless": (500, Verdict.EQUAL),
        "public.parts": (1000, Verdict.EQUAL),
        "public.nothing": (0, Verdict.EQUAL),
    }
    assert next(one for one in before if one.table == "public.t").ranges == 4
    for statement in (
        "DELETE FROM t WHERE id = 1",
        "INSERT INTO t (id) VALUES (5000)",
        "UPDATE t SET x = overlay(x placing 'y' from 4567) WHERE id = 3",
        "UPDATE t SET x = NULL WHERE id = 4",
        "UPDATE t SET n = 5.00 WHERE id = 5",
        "UPDATE t SET b = '\\x00fe' WHERE id = 600",
        "UPDATE t SET f = f + 1e-15 WHERE id = 1000",
        "UPDATE named SET of = 777 WHERE of = 7",
        "DELETE FROM at WHERE id = 555",
        "DELETE FROM keyless WHERE ctid = (SELECT min(ctid) FROM keyless WHERE a = 9)",
        # a row of the first partition is in the second, as after a restore with partitions of another order
        "ALTER TABLE parts DETACH PARTITION part_2",
        "DELETE FROM part_1 WHERE id = 77",
        "INSERT INTO part_2 VALUES (77, 'x')",
        "ALTER TABLE part_2 ADD CONSTRAINT believed CHECK (id IS NOT NULL AND id >= 500 AND id < 1001) NOT VALID",
        "UPDATE pg_constraint SET convalidated = true WHERE conname = 'believed'",
        "ALTER TABLE parts ATTACH PARTITION part_2 FOR VALUES FROM (500) TO (1001)",
    ):
        target.execute(statement)
    source.execute("UPDATE t SET x = '' WHERE id = 2")
    wait_for_equal(lambda: target.query("SELECT x FROM t WHERE id = 2"), [("",)], "the update")
    target.execute("UPDATE t SET x = NULL WHERE id = 2")
    found = kinds(verified(config, streams))
    (hashed,) = [key for table, key in found if table == "public.keyless"]
    assert found == {
        ("public.t", "1"): "missing",
        ("public.t", "2"): "different",
        ("public.t", "3"): "different",
        ("public.t", "4"): "different",
        ("public.t", "5"): "different",
        ("public.t", "600"): "different",
        ("public.t", "1000"): "different",
        ("public.t", "5000"): "extra",
        ("public.named", "n7,7"): "missing",
        ("public.named", "n7,777"): "extra",
        ("public.at", "2020-01-04 07:00:00+00,555"): "missing",
        ("public.keyless", hashed): "different",
        ("public.parts", "77"): "different",
    }


def test_a_table_can_be_verified_alone_and_one_that_is_not_there_is_named(
    followed: tuple[Database, Database, Config, Running],
) -> None:
    _, target, config, streams = followed
    assert [one.table for one in verified(config, streams, "t")] == ["public.t"]
    with pytest.raises(UsageError, match=r'sync "shop" has no table "public\.gone"'):
        verified(config, streams, "gone")
    with pytest.raises(UsageError, match='has no target "c" that "a" feeds; it has b'):
        verified(config, streams, target="c")
    target.execute("DROP TABLE nothing")
    target.execute("ALTER TABLE at DROP COLUMN at CASCADE")
    found = told(verified(config, streams, "nothing", "at", "named"))
    assert found == {
        "public.at": ("failed", 'table "public.at" on "b" has no column "at"'),
        "public.named": ("equal", ""),
        "public.nothing": ("failed", 'node "b" has no table "public.nothing"'),
    }


def test_columns_of_other_types_hold_what_these_make_of_the_values(source15: Database, target18: Database) -> None:
    source15.execute("CREATE TABLE t (id int PRIMARY KEY, n numeric(9, 2), c char(5), j json, f real, e int)")
    target18.execute("CREATE TABLE t (id bigint PRIMARY KEY, n numeric(12, 4), c text, j jsonb, f float8, e text, more int)")
    source15.execute("""INSERT INTO t SELECT i, i, 'c', '{"b": 1,  "a": 2}', 0.1, i FROM generate_series(1, 1000) i""")
    config = make_config({"a": source15.url, "b": target18.url})
    with running(config) as streams:
        assert equal(verified(config, streams))
        target18.execute("UPDATE t SET n = n + 0.0001 WHERE id = 9")
        assert kinds(verified(config, streams)) == {("public.t", "9"): "different"}


def test_floats_are_compared_to_the_bit_whatever_the_versions(trigger_source: Database, target18: Database) -> None:
    trigger_source.execute("CREATE TABLE t (id int PRIMARY KEY, f float8, r real, a float8[], p point, b bytea[])")
    trigger_source.execute(
        "INSERT INTO t SELECT i, i / 3.0, i / 7.0, ARRAY[i / 3.0], point(i / 3.0, 0.1), ARRAY['a'::bytea] "
        "FROM generate_series(1, 100) i"
    )
    trigger_source.execute("INSERT INTO t VALUES (0, 'NaN', '-Infinity', NULL, NULL, NULL)")
    config = make_config({"a": trigger_source.url, "b": target18.url}, capture="trigger")
    with running(config) as streams:
        assert equal(verified(config, streams))
        for number, column in enumerate(("f = f + 1e-13", "r = r + 0.00001", "a[1] = a[1] + 1e-13", "p = p + point(0, 1e-15)")):
            target18.execute(f"UPDATE t SET {column} WHERE id = {number + 50}")
        assert kinds(verified(config, streams)) == {("public.t", str(number)): "different" for number in range(50, 54)}


# -- while both are written ------------------------------------------------------------------------------------------------------


@contextmanager
def written(*sources: Database, pause: float = 0.005) -> Iterator[None]:
    """Write rows of `t`, some of them all the time, while the context lasts; not faster than any edge can follow."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")

    def work(source: Database, number: int, stop: threading.Event) -> None:
        dice = random.Random(seed + number)
        with closing(source.connect()) as connection:
            while not stop.wait(pause):
                one, hot = dice.randint(1, 1500), dice.randint(1, 3)
                connection.execute(b"UPDATE t SET n = n + 1, x = md5(n::text) WHERE id = %s", [one])
                connection.execute(b"UPDATE t SET n = n + 1 WHERE id = %s", [hot])
                connection.execute(b"DELETE FROM t WHERE id = %s", [dice.randint(4, 1500)])
                connection.execute(b"INSERT INTO t SELECT %s, 0, '' WHERE NOT EXISTS (SELECT 1 FROM t WHERE id = %s)", [one, one])
                connection.execute(b"INSERT INTO keyless SELECT %s, NULL", [number])

    with meanwhile(*(partial(work, source, number) for number, source in enumerate(sources))):
        yield


@pytest.mark.parametrize("capture", ["auto", "trigger"])
def test_nothing_differs_between_equal_sides_while_the_source_is_written(
    source15: Database, target18: Database, capture: str
) -> None:
    small_tables(source15)
    source15.execute("CREATE TABLE keyless (a int, b text)")
    if capture == "auto":
        source15.execute("ALTER TABLE keyless REPLICA IDENTITY FULL")
    config = make_config({"a": source15.url, "b": target18.url}, capture=capture)
    tables = ("t", "keyless") if capture == "auto" else ("t",)
    with running(config) as streams, written(source15):
        for _ in range(3):
            found = verified(config, streams, *tables)
            assert equal(found), found
        target18.execute("INSERT INTO t VALUES (9001, 0, '')")
        target18.execute("CREATE RULE lost AS ON INSERT TO t WHERE NEW.id = 9002 DO INSTEAD NOTHING")
        source15.execute("INSERT INTO t VALUES (9000, 1, '')")
        wait_for(lambda: target18.query("SELECT 1 FROM t WHERE id = 9000"), "the row")
        target18.execute("DELETE FROM t WHERE id = 9000")
        assert kinds(verified(config, streams, "t")) == {("public.t", "9000"): "missing", ("public.t", "9001"): "extra"}


def test_nothing_differs_between_two_sources_that_are_both_written(databases: Databases, pg15: PostgresServer) -> None:
    nodes = {name: databases.create(pg15, f"verify_{name}") for name in "abc"}
    for name, node in nodes.items():
        small_tables(node, rows=name == "a")
        node.execute("CREATE TABLE keyless (a int, b text)")
    urls = {name: node.url for name, node in nodes.items()}
    syncs = {"shop": {"sources": ["a", "b"], "targets": ["c"], "tables": ["t"]}}
    config = make_config(urls, syncs=syncs)
    with running(config) as streams, written(nodes["a"], nodes["b"], pause=0.05):
        for _ in range(2):
            found = verified(config, streams)
            assert [one.target for one in found] == ["b", "c"]
            assert equal(found), found
        nodes["c"].execute("INSERT INTO t VALUES (9001, 0, '')")
        found = verified(config, streams)
        assert kinds(found) == {("public.t", "9001"): "extra"}
        assert {one.target: one.verdict for one in found} == {"b": Verdict.EQUAL, "c": Verdict.DIFFERENT}


def test_without_a_daemon_it_says_that_the_stream_is_behind(source15: Database, target18: Database) -> None:
    small_tables(source15)
    config = make_config({"a": source15.url, "b": target18.url})
    with running(config):
        wait_for_equal(lambda: target18.query("SELECT count(*) FROM t"), [(1000,)], "the copy")
    assert [one.verdict for one in verify(config, wanted("shop", [], None, 20, 0.5))] == [Verdict.EQUAL]
    source15.execute("UPDATE t SET n = 0 WHERE id = 1")
    (found,) = verify(config, wanted("shop", [], None, 20, 0.5))
    assert found.verdict is Verdict.BEHIND
    assert "whether it is only behind cannot be told, and it could not be kicked: the daemon on" in found.problem
    assert found.remedy == "start it: streamer run"


def test_a_sync_that_runs_on_kick_is_kicked(source15: Database, target18: Database) -> None:
    small_tables(source15)
    config = make_config({"a": source15.url, "b": target18.url}, run="manual")
    with running(config, wait=False) as streams:
        streams.kick("shop")
        wait_for_equal(lambda: target18.query("SELECT count(*) FROM t"), [(1000,)], "the copy")
        source15.execute("UPDATE t SET n = 0 WHERE id = 1")
        assert equal(verified(config, streams))


def test_what_everything_differs_in_is_told_by_parts(
    source15: Database, target18: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparison, "PROVEN", 400)
    monkeypatch.setattr(comparison, "ROWS_AT_ONCE", 300)
    small_tables(source15)
    config = make_config({"a": source15.url, "b": target18.url})
    with running(config) as streams:
        target18.execute("TRUNCATE t")
        (found,) = verified(config, streams)
        assert (found.verdict, found.different, found.unexplored) == (Verdict.DIFFERENT, 600, 4)
