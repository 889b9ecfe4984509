"""The whole road (setup, copy, streaming) between any two versions of PostgreSQL; `make test-matrix` runs it on 10 to 18."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from streamer.admin.setup import setup
from streamer.config import Config, Sync
from streamer.daemon import Daemon
from streamer.node_config import Node
from tests.conftest import Pair
from tests.servers import Database

pytestmark = pytest.mark.matrix

TRUNCATE, PARTITION_KEYS, GENERATED, VIA_ROOT = 110000, 110000, 120000, 130000

ALWAYS = """
CREATE TABLE item (id integer PRIMARY KEY, name text, price numeric(20, 5), at timestamptz, data jsonb, blob bytea, tags text[]);
CREATE TABLE pair (a integer, b text, n bigint NOT NULL, PRIMARY KEY (a, b));
CREATE TABLE "Odd ""Name" ("The Key" integer PRIMARY KEY, "100% ""x"" y" text, "select" boolean);
CREATE TABLE whole (a integer, b text, c double precision);
ALTER TABLE whole REPLICA IDENTITY FULL;
CREATE TABLE journal (line text, at timestamptz DEFAULT now());
CREATE TABLE counted (id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY, x integer);
CREATE TABLE long (id integer PRIMARY KEY, body text, n integer);
CREATE TABLE part (id integer NOT NULL, x text) PARTITION BY RANGE (id);
CREATE TABLE part_low PARTITION OF part FOR VALUES FROM (0) TO (100);
CREATE TABLE part_high PARTITION OF part FOR VALUES FROM (100) TO (200);
ALTER TABLE part_low ADD PRIMARY KEY (id);
ALTER TABLE part_high ADD PRIMARY KEY (id);
"""
FROM_11 = "ALTER TABLE part_low DROP CONSTRAINT part_low_pkey; ALTER TABLE part_high DROP CONSTRAINT part_high_pkey;"
FROM_11 += "ALTER TABLE part ADD PRIMARY KEY (id);"
FROM_12 = "CREATE TABLE area (id integer PRIMARY KEY, w integer, h integer, size integer GENERATED ALWAYS AS (w * h) STORED);"

BEFORE = """
INSERT INTO item SELECT i, 'name ' || i, i * 1.5, '2026-01-01 00:00:00+00'::timestamptz + i * interval '1 day',
    ('{"i": ' || i || '}')::jsonb, decode(md5(i::text), 'hex'), ARRAY['a' || i, NULL, 'tab\t'] FROM generate_series(1, 500) i;
INSERT INTO pair SELECT i % 10, 'b' || i, i FROM generate_series(1, 100) i;
INSERT INTO "Odd ""Name" VALUES (1, E'back\\\\slash\\nnewline', true), (2, NULL, false), (3, '', NULL);
INSERT INTO whole VALUES (1, 'one', 'NaN'), (1, 'one', 'NaN'), (2, NULL, '-Infinity');
INSERT INTO journal SELECT 'line ' || i FROM generate_series(1, 10) i;
INSERT INTO counted (x) SELECT i FROM generate_series(1, 20) i;
INSERT INTO long SELECT i, (SELECT string_agg(md5((i * j)::text), '') FROM generate_series(1, 4000) j), 0
    FROM generate_series(1, 3) i;
INSERT INTO part SELECT i, 'p' || i FROM generate_series(0, 199) i;
"""

AFTER = [
    "UPDATE item SET price = price + 0.00001, tags = NULL WHERE id % 3 = 0",
    "DELETE FROM item WHERE id % 7 = 0",
    "UPDATE item SET id = id + 10000 WHERE id % 50 = 1",
    "INSERT INTO item (id, name) SELECT i, NULL FROM generate_series(1001, 3000) i",
    "UPDATE pair SET b = b || '!', n = -n WHERE a = 3; DELETE FROM pair WHERE a = 4",
    """UPDATE "Odd ""Name" SET "100% ""x"" y" = 'per%cent %s' WHERE "The Key" = 2""",
    "DELETE FROM whole WHERE ctid IN (SELECT ctid FROM whole WHERE a = 1 LIMIT 1); UPDATE whole SET b = 'two' WHERE a = 2",
    "INSERT INTO journal (line) VALUES ('last')",
    "INSERT INTO counted (x) VALUES (100); UPDATE counted SET x = -x WHERE id = 5; DELETE FROM counted WHERE id = 6",
    "UPDATE long SET n = n + 1; UPDATE long SET body = 'short' WHERE id = 2",
    "UPDATE part SET x = x || '+' WHERE id % 2 = 0; DELETE FROM part WHERE id % 5 = 0; INSERT INTO part VALUES (5, 'again')",
    "BEGIN; INSERT INTO pair VALUES (99, 'x', 1); UPDATE pair SET n = 2 WHERE a = 99; DELETE FROM pair WHERE a = 98; COMMIT",
]


def configured(source: Database, target: Database) -> Config:
    """A one-way sync of all that the source has."""
    return Config(
        nodes={"a": Node(url=source.url, capture="pgoutput"), "b": Node(url=target.url)},
        syncs={"all": Sync(sources=("a",), targets=("b",), tables=("public.*",))},
    )


def caught_up(config: Config) -> None:
    """Run until the target holds what the source has now."""
    daemon = Daemon(config, once=True)
    assert daemon.run(), daemon.report()


def contents(database: Database, tables: list[str]) -> Iterator[tuple[str, list[str]]]:
    """Every table with its rows as sorted text."""
    for table in tables:
        yield table, sorted(row for (row,) in database.query(f"SELECT t::text FROM {table} t"))


@pytest.fixture
def filled(matrix_pair: Pair) -> Pair:
    """The pair with tables of every sort, as far as the source's version has them, and rows in them."""
    source, _ = matrix_pair
    source.execute(ALWAYS)
    if source.server.version >= PARTITION_KEYS:
        source.execute(FROM_11)
    if source.server.version >= GENERATED:
        source.execute(FROM_12)
        source.execute("INSERT INTO area (id, w, h) SELECT i, i, 2 FROM generate_series(1, 5) i")
    source.execute(BEFORE)
    return matrix_pair


def test_rows_from_before_and_changes_of_every_sort_arrive(filled: Pair) -> None:
    source, target = filled
    config = configured(source, target)
    setup(config, None, lambda line: None)
    tables = ["item", "pair", '"Odd ""Name"', "whole", "journal", "counted", "long", "part"]
    caught_up(config)
    assert dict(contents(target, tables)) == dict(contents(source, tables))
    for statement in AFTER:
        source.execute(statement)
    if source.server.version >= GENERATED:
        source.execute("UPDATE area SET w = 100 WHERE id = 2; DELETE FROM area WHERE id = 3")
    if source.server.version >= TRUNCATE:
        source.execute("TRUNCATE journal; INSERT INTO journal (line) VALUES ('first')")
    caught_up(config)
    assert dict(contents(target, tables)) == dict(contents(source, tables))
    if source.server.version >= GENERATED:
        chosen = "SELECT id, w, h FROM area ORDER BY id"
        assert target.query(chosen) == source.query(chosen)


def test_a_large_transaction_and_many_small_ones_arrive_once(matrix_pair: Pair) -> None:
    source, target = matrix_pair
    source.execute("CREATE TABLE t (id integer PRIMARY KEY, n integer NOT NULL)")
    config = configured(source, target)
    setup(config, None, lambda line: None)
    caught_up(config)
    source.execute("INSERT INTO t SELECT i, 0 FROM generate_series(1, 50000) i")
    with source.connect() as connection:
        for i in range(300):
            connection.execute("UPDATE t SET n = n + 1 WHERE id <= %s", [i % 5 + 1])
    caught_up(config)
    caught_up(config)
    total = "SELECT count(*), sum(n), sum(n * id::bigint) FROM t"
    assert target.query(total) == source.query(total)
