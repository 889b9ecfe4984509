"""Tables that have another shape on their targets, over real servers: copy, stream, restart, and what can go wrong."""

from __future__ import annotations

import random
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from streamer.admin.check import check
from streamer.admin.findings import Severity
from streamer.admin.setup import setup
from streamer.config import Config
from streamer.errors import SchemaError
from tests.configs import make_config
from tests.events import Tables, events
from tests.integration.streams import running
from tests.mysql_servers import MysqlDatabase
from tests.servers import Database, PostgresServer, Row
from tests.waiting import wait_for_equal

WIDE = 5000  # letters: stored outside of the row, and not in the WAL again while they stay the same


@pytest.fixture
def own() -> Iterator[ModuleType]:
    """A module of the user's."""
    module = ModuleType("own_rows")
    sys.modules["own_rows"] = module
    yield module
    del sys.modules["own_rows"]


@pytest.fixture
def source(source15: Database) -> Database:
    source15.execute("CREATE TABLE t (id int PRIMARY KEY, n int, name text, big text)")
    source15.execute("ALTER TABLE t ALTER big SET STORAGE EXTERNAL, REPLICA IDENTITY FULL")
    fill(source15, range(1, 11))
    return source15


def fill(source: Database, ids: range) -> None:
    query = "INSERT INTO t SELECT i, i, 'name ' || i, repeat('y', %s) FROM generate_series(%s::int, %s::int) i"
    source.execute(query, [WIDE, ids.start, ids.stop - 1])


def rows_of_file(file: Path, query: str) -> list[Row]:
    with closing(sqlite3.connect(file, timeout=10)) as connection:
        return connection.execute(query).fetchall()


def shaped(source: Database, target: str, capture: str = "auto", /, **keys: object) -> Config:
    """A config with these keys for the table t."""
    return make_config({"a": source.url, "b": target}, capture=capture, tables=["t"], table={"public.t": keys})


# -- what arrives ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("capture", ["pgoutput", "wal2json"])
def test_each_target_has_the_table_in_its_shape(
    source: Database, target18: Database, tmp_path: Path, own: ModuleType, capture: str
) -> None:
    own.rows = lambda row: None if row["name"] == "gone" else {**row, "name": str(row["name"]).upper()}  # type: ignore[attr-defined]
    file = tmp_path / "shop.sqlite"
    config = make_config(
        {"a": source.url, "b": target18.url, "s": f"sqlite:///{file}"},
        capture=capture,
        table={"public.t": {"where": "n % 2 = 0 AND name NOT LIKE 'hid%'"}},
        target={
            "b": {
                "table": {
                    "t": {
                        "rename": "crm.things",
                        "columns": ["id", "name", "big"],
                        "rename_columns": {"name": "called"},
                        "transform": "python:own_rows:rows",
                    }
                }
            }
        },
    )

    def wait_until_equal(what: str) -> None:
        passing = "FROM t WHERE n %% 2 = 0 AND name NOT LIKE 'hid%%'"
        wait_for_equal(
            lambda: target18.query("SELECT id, called, md5(big) FROM crm.things ORDER BY id"),
            source.query(f"SELECT id, upper(name), md5(big) {passing} AND name <> 'gone' ORDER BY id", []),
            f"{what} on PostgreSQL",
        )
        wait_for_equal(
            lambda: rows_of_file(file, "SELECT id, n, name, big FROM t ORDER BY id"),
            source.query(f"SELECT id, n, name, big {passing} ORDER BY id", []),
            f"{what} in the file",
        )

    with running(config):
        wait_until_equal("the copied rows")
        source.execute("UPDATE t SET n = n + 1 WHERE id < 6")  # rows enter and leave, the wide value unchanged
        source.execute("UPDATE t SET id = id + 100 WHERE id IN (3, 4, 8)")
        source.execute("UPDATE t SET name = 'hidden' WHERE id = 10")
        source.execute("DELETE FROM t WHERE id IN (1, 6)")
        source.execute("INSERT INTO t VALUES (50, 2, 'x', 'k'), (51, NULL, 'y', 'l'), (52, 2, 'gone', NULL)")
        wait_until_equal("the changes")
        source.execute("UPDATE t SET name = 'back' WHERE name IN ('gone', 'hidden')")
        wait_until_equal("rows that come back")
    source.execute("UPDATE t SET n = n + 1")
    fill(source, range(200, 220))
    with running(config):
        wait_until_equal("what was done while nobody read")
        source.execute("TRUNCATE t")
        wait_until_equal("the truncated table")


def test_targets_of_other_kinds_have_the_shape_as_well(
    source: Database, mariadb: MysqlDatabase, tmp_path: Path, own: ModuleType
) -> None:
    own.rows = lambda row: {**row, "name": f"<{row['name']}>"}  # type: ignore[attr-defined]
    file = tmp_path / "changes.jsonl"
    keys = {
        "rename": "things",
        "columns": ["id", "name"],
        "rename_columns": {"name": "called"},
        "where": "n % 2 = 0",
        "transform": "python:own_rows:rows",
    }
    config = make_config({"a": source.url, "m": mariadb.url, "log": f"jsonl:///{file}"}, table={"public.t": keys})

    def wait_until_equal() -> None:
        expected = source.query("SELECT id::text, '<' || name || '>' FROM t WHERE n % 2 = 0 ORDER BY 1")
        wait_for_equal(lambda: sorted((str(i), name) for i, name in mariadb.query("SELECT * FROM things")), expected, "on MariaDB")
        wait_for_equal(
            lambda: sorted(tuple(row.values()) for row in Tables(events(file)).rows("public", "things")), expected, "events"
        )

    with running(config):
        wait_until_equal()
        source.execute("UPDATE t SET n = n + 1 WHERE id < 6")
        source.execute("DELETE FROM t WHERE id IN (1, 6)")
        source.execute("INSERT INTO t VALUES (50, 2, 'x'), (51, NULL, 'y')")
        wait_until_equal()


@pytest.mark.parametrize("capture", ["pgoutput", "wal2json"])
def test_a_condition_means_what_it_means_in_a_query(source15: Database, target18: Database, capture: str) -> None:
    where = (
        "amount > 1.5 AND coalesce(note, '') ~ '^[a-m%]' OR fixed = 'ab' AND ok OR tags @> '{x}' "
        "OR at < timestamptz '2026-01-01 00:00+02' AND amount <> 'NaN' OR (\"Odd name\" -> 'k') = '1'"
    )
    source15.execute(
        "CREATE TABLE t (id int PRIMARY KEY, amount numeric, note text, fixed char(4), ok boolean, tags text[], at timestamptz, "
        '"Odd name" jsonb)'
    )
    source15.execute("ALTER TABLE t REPLICA IDENTITY FULL")
    seed = random.SystemRandom().randrange(10**6)
    print("seed", seed)
    dice = random.Random(seed)
    # wal2json before 2.6 cannot tell NULL and NaN from each other
    amounts = ["1.5", "1.50001", "7", *([None, "NaN"] if capture == "pgoutput" else [])]
    with running(shaped(source15, target18.url, capture, where=where)):
        for _ in range(8):
            for _ in range(30):
                source15.execute(*statement(dice, amounts))
            expected = source15.query(f"SELECT t::text FROM t WHERE {where.replace('%', '%%')} ORDER BY id", [])
            wait_for_equal(lambda: target18.query("SELECT t::text FROM t ORDER BY id"), expected, "the rows that pass")


def statement(dice: random.Random, amounts: list[str | None]) -> tuple[str, list[Any]]:
    """Some change of a row with random values."""
    values = [
        dice.choice(amounts),
        dice.choice([None, "", "apple", "zebra", "%x", "it's \\ \n"]),
        dice.choice([None, "ab", "abc", " ab"]),
        dice.choice([None, True, False]),
        dice.choice([None, "{}", "{x,y}", '{"a b",NULL}']),
        dice.choice([None, "2025-12-31 21:59:59Z", "2025-12-31 22:00Z", "infinity", "-infinity", "0044-03-15 BC"]),
        dice.choice([None, '{"k": 1}', '{"k": "1"}', "[]"]),
    ]
    key, other = dice.randrange(20), dice.randrange(20)
    kind = dice.choice(["insert", "update", "update", "move", "delete"])
    if kind == "insert":
        return "INSERT INTO t VALUES (%s, %s, %s, %s, %s, %s, %s, %s) ON CONFLICT DO NOTHING", [key, *values]
    if kind == "update":
        sets = '(amount, note, fixed, ok, tags, at, "Odd name")'
        return f"UPDATE t SET {sets} = (%s, %s, %s, %s, %s::text[], %s::timestamptz, %s::jsonb) WHERE id = %s", [*values, key]
    if kind == "move":
        return "UPDATE t SET id = %s WHERE id = %s AND NOT EXISTS (SELECT FROM t WHERE id = %s)", [other, key, other]
    return "DELETE FROM t WHERE id = %s", [key]


def test_a_condition_over_the_key_needs_no_full_identity(source: Database, target18: Database) -> None:
    source.execute("ALTER TABLE t REPLICA IDENTITY DEFAULT")
    with running(shaped(source, target18.url, where="id % 2 = 0")):
        source.execute("UPDATE t SET name = 'new'")
        source.execute("DELETE FROM t WHERE id > 8")
        source.execute("UPDATE t SET id = id + 101, big = 'other' WHERE id < 4")
        wait_for_equal(
            lambda: target18.query("SELECT id, name, big FROM t ORDER BY id"),
            source.query("SELECT id, name, big FROM t WHERE id % 2 = 0 ORDER BY id"),
            "the even keys",
        )


def test_a_table_may_be_altered_under_way(source: Database, target18: Database) -> None:
    with running(shaped(source, target18.url, where="n > 5", columns=["id", "n", "name"])):
        source.execute("ALTER TABLE t ADD COLUMN more text, ALTER COLUMN n TYPE bigint, DROP COLUMN big")
        target18.execute("ALTER TABLE t ALTER COLUMN n TYPE bigint")
        source.execute("UPDATE t SET n = n + 5000000000, more = 'x' WHERE id IN (1, 9)")
        source.execute("UPDATE t SET n = 0 WHERE id = 10")
        wait_for_equal(
            lambda: target18.query("SELECT id, n, name FROM t ORDER BY id"),
            source.query("SELECT id, n, name FROM t WHERE n > 5 ORDER BY id"),
            "the rows that pass",
        )


def test_partitions_have_the_shape_of_their_table(source15: Database, target18: Database) -> None:
    source15.execute("CREATE TABLE t (id int, n int, PRIMARY KEY (id)) PARTITION BY RANGE (id)")
    source15.execute("CREATE TABLE low PARTITION OF t FOR VALUES FROM (0) TO (100)")
    source15.execute("CREATE TABLE high PARTITION OF t FOR VALUES FROM (100) TO (200)")
    config = shaped(source15, target18.url, where="n > 1", rename="crm.t")
    done: list[str] = []
    setup(config, None, done.append, fix=True)
    assert [line for line in done if "REPLICA IDENTITY FULL" in line] == [
        f'a: altered table "public.{name}": REPLICA IDENTITY FULL' for name in ("t", "high", "low")
    ]
    with running(config):
        source15.execute("INSERT INTO t VALUES (1, 1), (2, 2), (3, 3)")
        source15.execute("UPDATE t SET n = n + 1, id = id + 100 WHERE id < 3")
        wait_for_equal(lambda: target18.query("SELECT * FROM crm.t ORDER BY id"), [(3, 3), (101, 2), (102, 3)], "the rows")


def test_a_table_that_gets_another_name_later_is_copied_anew(source: Database, target18: Database) -> None:
    with running(shaped(source, target18.url)):
        assert target18.query("SELECT count(*) FROM t") == [(10,)]
    source.execute("DELETE FROM t WHERE id = 1")
    with running(shaped(source, target18.url, rename="crm.t")):
        source.execute("DELETE FROM t WHERE id = 2")
        wait_for_equal(lambda: target18.query("SELECT min(id), count(*) FROM crm.t"), [(3, 8)], "the rows under the new name")
        assert target18.query("SELECT count(*) FROM t") == [(10,)], "nothing goes there any more"


def test_what_wal2json_does_not_tell_of_old_rows_is_told_by_check_and_stops_the_edge(
    pg15: PostgresServer, source: Database, target18: Database
) -> None:
    source.execute("ALTER TABLE t ADD price numeric")
    config = shaped(source, target18.url, "wal2json", where="price IS NULL")
    (told,) = [f for f in check(config) if f.severity is Severity.ERROR]
    assert 'NULL, NaN and infinity in "price" of an old row, which its where needs' in told.reason
    with running(config) as streams:
        source.execute("UPDATE t SET price = 1 WHERE id = 1")
        streams.wait_for_problem('the old row of an update does not carry the column "price"')


# -- what can go wrong -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"columns": ["id", "nmae"]}, 'table "public.t" has no column "nmae"'),
        ({"columns": ["name"]}, 'table "public.t": column "id" belongs to its key'),
        ({"rename_columns": {"nmae": "x"}}, 'table "public.t" has no column "nmae"'),
        ({"where": "nmae = 1"}, 'table "public.t" on "a": where = "nmae = 1" fails: column "nmae" does not exist'),
        ({"where": "n +"}, 'where = "n +" fails: syntax error at or near ")"'),
        ({"where": "n"}, 'where = "n" fails: argument of CASE/WHEN must be type boolean, not type integer'),
        ({"where": "n > (SELECT count(*) FROM t)"}, "has a subquery"),
        ({"where": "EXISTS (SELECT FROM t x WHERE x.id = n)"}, "has a subquery"),
        ({"where": "n > max(n)"}, "aggregate function calls cannot be nested"),
        ({"where": "t IS NOT NULL"}, "takes the row as a whole"),
        ({"where": "pg_try_advisory_lock(n)"}, "calls pg_try_advisory_lock, whose answer may change while the row does not"),
        ({"where": "looks_around(n)"}, "calls looks_around, whose answer may change while the row does not"),
    ],
)
def test_a_shape_that_the_source_cannot_give_stops_the_edge(
    source: Database, target18: Database, keys: dict[str, object], words: str
) -> None:
    source.execute("CREATE FUNCTION looks_around(int) RETURNS boolean STABLE LANGUAGE sql AS 'SELECT count(*) > $1 FROM t'")
    target18.execute("CREATE TABLE t (id int PRIMARY KEY, n int, name text, big text)")
    good = shaped(source, target18.url)
    setup(good, None, lambda line: None)
    with running(shaped(source, target18.url, **keys), wait=False, set_up=False) as streams:
        streams.wait_for_problem(words)
    assert target18.query("SELECT count(*) FROM t") == [(0,)]


def test_a_table_that_is_not_there_stops_the_edge(source: Database, target18: Database) -> None:
    config = make_config({"a": source.url, "b": target18.url}, tables=["*"], table={"public.tt": {"where": "n > 1"}})
    with running(config, wait=False) as streams:
        streams.wait_for_problem('table "public.tt" is not on "a", but the config says what it becomes')


def test_two_tables_that_would_share_a_name_stop_the_edge(source: Database, target18: Database) -> None:
    source.execute("CREATE TABLE u (id int PRIMARY KEY)")
    target18.execute("CREATE TABLE u (id int PRIMARY KEY)")
    config = make_config({"a": source.url, "b": target18.url}, tables=["*"], table={"public.t": {"rename": "u"}})
    setup(make_config({"a": source.url, "b": target18.url}), None, lambda line: None)
    with pytest.raises(SchemaError, match="would share the name"):
        setup(config, None, lambda line: None)
    with running(config, wait=False, set_up=False) as streams:
        streams.wait_for_problem('tables "public.u" and "public.t" would share the name "public.u" on the target')


@pytest.mark.parametrize("keys", [{"where": "n > 1"}, {"transform": "python:own_rows:rows"}])
def test_a_source_that_lacks_old_rows_stops_the_edge_until_it_is_altered(
    source: Database, target18: Database, own: ModuleType, keys: dict[str, object]
) -> None:
    own.rows = dict  # type: ignore[attr-defined]
    source.execute("ALTER TABLE t REPLICA IDENTITY DEFAULT")
    with running(shaped(source, target18.url, **keys), wait=False) as streams:
        streams.wait_for_problem('table "public.t" on "a": changes do not carry the old row')
        source.execute("ALTER TABLE t REPLICA IDENTITY FULL")
        streams.wait_until_streaming()


def test_an_identity_that_is_taken_away_under_way_stops_the_edge(source: Database, target18: Database) -> None:
    with running(shaped(source, target18.url, where="n > 1")) as streams:
        source.execute("ALTER TABLE t REPLICA IDENTITY DEFAULT")
        source.execute("UPDATE t SET n = 5 WHERE id = 1")
        problem = streams.wait_for_problem("the old row of an update does not carry")
        assert problem == 'table "public.t": the old row of an update does not carry the column "n", which its where needs'


@pytest.mark.parametrize("copied", [True, False], ids=["in the copy", "in the stream"])
def test_a_condition_that_fails_for_a_row_stops_the_edge_with_its_words(
    source: Database, target18: Database, tmp_path: Path, copied: bool
) -> None:
    if copied:
        source.execute("UPDATE t SET n = 0 WHERE id = 5")
    with running(shaped(source, target18.url, where="10 / n > 1"), wait=not copied) as streams:
        source.execute("UPDATE t SET n = 0 WHERE id = 5")
        problem = streams.wait_for_problem("division by zero")
        assert problem == 'table "public.t" on "a": where = "10 / n > 1" fails: division by zero'
    with running(shaped(source, target18.url, where="n <> 0 AND 10 / nullif(n, 0) > 1")):
        wait_for_equal(
            lambda: target18.query("SELECT id FROM t ORDER BY id"),
            source.query("SELECT id FROM t WHERE n <> 0 AND 10 / nullif(n, 0) > 1 ORDER BY id"),
            "the rows that pass",
        )


@pytest.mark.parametrize("copied", [True, False], ids=["in the copy", "in the stream"])
def test_a_function_that_fails_stops_the_edge_until_it_is_corrected(
    source: Database, target18: Database, own: ModuleType, copied: bool
) -> None:
    own.bad = {"5"} if copied else set()  # type: ignore[attr-defined]

    def rows(row: dict[str, str | None]) -> dict[str, str | None]:
        if row["id"] in own.bad:
            raise ValueError("five is right out")
        return row

    own.rows = rows  # type: ignore[attr-defined]
    with running(shaped(source, target18.url, transform="python:own_rows:rows"), wait=not copied) as streams:
        own.bad = {"5"}  # type: ignore[attr-defined]
        source.execute("UPDATE t SET n = 100 WHERE id = 5")
        problem = streams.wait_for_problem("five is right out")
        assert problem == (
            'table "public.t": transform "python:own_rows:rows" raised ValueError: five is right out, for the row with id = 5'
        )
        own.bad = set()  # type: ignore[attr-defined]
        wait_for_equal(lambda: target18.query("SELECT n FROM t WHERE id = 5"), [(100,)], "the update")


def test_without_a_condition_the_source_is_asked_nothing(source: Database, target18: Database) -> None:
    connected = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'streamer where' AND datname = current_database()"
    with running(shaped(source, target18.url, columns=["id", "n"])):
        source.execute("UPDATE t SET n = 77")
        wait_for_equal(lambda: target18.query("SELECT DISTINCT n FROM t"), [(77,)], "the update")
        assert source.query(connected) == [(0,)]
