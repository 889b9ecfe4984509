"""The whole road of a source that captures by triggers, with the commands that a user has: to every engine, and without a trace.

The source is as old as STREAMER_OLD_PG says. What the catalogs of its database list must be the same before and afterwards.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from tests.acceptance.daemon import Streamer
from tests.acceptance.tables import wait_until_same
from tests.meanwhile import meanwhile
from tests.mysql_servers import MysqlDatabase
from tests.servers import Database
from tests.waiting import wait_for_equal

TABLES = """
CREATE TABLE accounts (aid integer PRIMARY KEY, balance bigint NOT NULL, filler text);
CREATE TABLE history (hid bigserial PRIMARY KEY, aid integer, delta integer);
CREATE SCHEMA "Odd";
CREATE TABLE "Odd"."The ""T" ("Its Key" varchar(40), part numeric(8, 2), raw bytea, f4 real, f8 double precision,
    at timestamp with time zone, for_long interval, tags text[], PRIMARY KEY ("Its Key", part));
INSERT INTO accounts SELECT i, 0, 'account ' || i FROM generate_series(1, 5000) i;
INSERT INTO "Odd"."The ""T" SELECT 'k' || chr(92) || i, i * 1.5, decode(md5(i::text), 'hex'), i / 3.0, i / 3.0::float8,
    '2026-01-01 00:00:00+00'::timestamptz + i * interval '1 hour', i * interval '1 minute', ARRAY['t' || i, NULL]
    FROM generate_series(1, 100) i;
"""
CHANGES = [
    """UPDATE "Odd"."The ""T" SET "Its Key" = 'new', f4 = 'NaN', f8 = '-Infinity' WHERE part = 3""",
    """DELETE FROM "Odd"."The ""T" WHERE part = 6; UPDATE "Odd"."The ""T" SET raw = NULL, tags = '{}' WHERE part = 9""",
    """INSERT INTO "Odd"."The ""T" VALUES ('z', 1, decode('00ff5c', 'hex'), 1e-30, 1e-300)""",
    "UPDATE accounts SET aid = aid + 100000, filler = NULL WHERE aid BETWEEN 4990 AND 5000",
    "TRUNCATE history",
]
ROWS = {
    "accounts": "SELECT aid, balance, filler FROM accounts ORDER BY aid",
    "history": "SELECT hid, aid, delta FROM history ORDER BY hid",
}
ODD = """
SELECT "Its Key", part, encode(raw, 'hex'), encode(float4send(f4), 'hex'), encode(float8send(f8), 'hex'),
       at AT TIME ZONE 'UTC', for_long::text, tags FROM "Odd"."The ""T" ORDER BY 1, 2
"""
CATALOG = """
SELECT 'schema ' || nspname FROM pg_namespace WHERE nspname !~ '^pg_(toast_)?temp'
UNION ALL SELECT 'relation ' || c.relname FROM pg_class c WHERE relname !~ '^pg_(toast|temp)'
UNION ALL SELECT 'function ' || proname FROM pg_proc UNION ALL SELECT 'trigger ' || tgname FROM pg_trigger
UNION ALL SELECT 'type ' || typname FROM pg_type WHERE typname !~ '^_?pg_(toast|temp)'
UNION ALL SELECT 'language ' || lanname FROM pg_language
ORDER BY 1
"""


@contextmanager
def transfers(source: Database) -> Iterator[None]:
    """Two sessions that do transactions like pgbench's while the context lasts, at least 50 each."""

    def transfer(first: int, stop: threading.Event) -> None:
        with source.connect() as connection:
            number = first
            while not stop.is_set() or number < 100:
                aid = number * 37 % 4000 + 1
                with connection.transaction():
                    connection.execute("UPDATE accounts SET balance = balance + %s WHERE aid = %s", [number, aid])
                    connection.execute("UPDATE accounts SET balance = balance - %s WHERE aid = 1", [number])
                    connection.execute("INSERT INTO history (aid, delta) VALUES (%s, %s)", [aid, number])
                number += 2

    with meanwhile(partial(transfer, 0), partial(transfer, 1)):
        yield


@pytest.fixture
def streamer(
    tmp_path: Path, trigger_source: Database, target15: Database, target18: Database, mariadb: MysqlDatabase
) -> Iterator[Streamer]:
    """To every engine, not yet set up."""
    nodes = {
        "a": trigger_source.url,
        "b": target15.url,
        "c": target18.url,
        "m": mariadb.url,
        "s": f"sqlite:///{tmp_path}/shop.sqlite",
    }
    with Streamer(tmp_path, nodes, targets=["b", "c"], tables=["*.*"], capture="trigger") as streamer:
        yield streamer


def test_rows_arrive_everywhere_and_nothing_of_it_stays(
    streamer: Streamer, trigger_source: Database, target15: Database, target18: Database, mariadb: MysqlDatabase, tmp_path: Path
) -> None:
    source = trigger_source
    source.execute(TABLES)
    before, logged = source.query(CATALOG), len(source.server.log)
    streamer.write_config(targets=["b", "c", "m", "s"], tables=["public.*", "Odd.*"], on_unrepresentable="null")  # NaN, on m
    assert "0 errors" in streamer.command("check").stdout
    streamer.setup().setup()
    with transfers(source):
        streamer.start_streaming()
    for change in CHANGES:
        source.execute(change)
    with transfers(source):
        streamer.kill()
        streamer.start_streaming()
    for query in ROWS.values():
        for target in (target15, target18, mariadb, tmp_path / "shop.sqlite"):
            wait_until_same(source, target, query)
    for postgres in (target15, target18):
        wait_for_equal(partial(postgres.query, ODD), source.query(ODD), "every type to be equal")
    assert "0 errors" in streamer.command("check").stdout
    assert streamer.stop() == 0
    streamer.command("teardown", "--yes")
    assert source.query(CATALOG) == before
    # the source's: a target on the same server tells of the connection that the kill has cut. A reader that begins anew for an edge
    # which joins cancels what it was reading
    errors = [line for line in source.server.log[logged:].splitlines() if "@source ERROR: " in line]
    assert [line for line in errors if "canceling statement due to user request" not in line] == []
