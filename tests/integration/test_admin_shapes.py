"""`check`, `setup` and `tables` where tables have another shape on their targets."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from streamer.admin.check import check
from streamer.admin.setup import setup
from streamer.admin.tables import tables
from streamer.config import Config
from streamer.errors import SchemaError
from tests.configs import make_config
from tests.integration.streams import running
from tests.servers import Database
from tests.unit.test_check_verdicts import told
from tests.waiting import wait_for_equal

SHAPE = {"rename": "crm.things", "columns": ["id", "name", "kind"], "rename_columns": {"name": "Called"}}


@pytest.fixture
def source(source15: Database) -> Database:
    source15.execute("CREATE TYPE kind AS ENUM ('a', 'b')")
    source15.execute(
        "CREATE TABLE t (id int PRIMARY KEY, n int DEFAULT 7 CHECK (n > 0), name text NOT NULL UNIQUE, kind kind, "
        "twice int GENERATED ALWAYS AS (2 * id) STORED, UNIQUE (n, name))"
    )
    source15.execute("CREATE TABLE plain (id int PRIMARY KEY, v text)")
    return source15


def lines(config: Config, *, fix: bool = False) -> list[str]:
    """What setup says."""
    done: list[str] = []
    setup(config, None, done.append, fix=fix)
    return done


def test_setup_creates_tables_in_their_shape(source: Database, target18: Database) -> None:
    config = make_config({"a": source.url, "b": target18.url}, table={"public.t": SHAPE})
    assert told(check(config)) == [
        'warning: table "public.plain" on "b": does not exist; streamer setup creates it',
        'warning: table "crm.things" on "b": does not exist; streamer setup creates it',
    ]
    assert {'b: created table "crm"."things"', "b: created table public.plain (pg_dump)"} <= set(lines(config)), lines(config)
    columns = "SELECT attname, format_type(atttypid, -1), attnotnull FROM pg_attribute WHERE attrelid = %s::regclass AND attnum > 0"
    assert target18.query(f"{columns} ORDER BY attnum", ["crm.things"]) == [
        ("id", "integer", True),
        ("Called", "text", True),
        ("kind", "kind", False),
    ]
    constraints = "SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE conrelid = %s::regclass AND contype IN ('p', 'u')"
    assert sorted(target18.query(constraints, ["crm.things"])) == [("PRIMARY KEY (id)",), ('UNIQUE ("Called")',)]
    assert target18.query("SELECT to_regclass('t')") == [(None,)]
    assert told(check(config)) == []
    with running(config):
        source.execute("INSERT INTO t VALUES (1, 2, 'x', 'b')")
        wait_for_equal(lambda: target18.query("SELECT * FROM crm.things"), [(1, "x", "b")], "the row")


def test_setup_creates_tables_of_a_file_in_their_shape(source: Database, tmp_path: Path) -> None:
    file = tmp_path / "shop.sqlite"
    config = make_config({"a": source.url, "s": f"sqlite:///{file}"}, table={"public.t": SHAPE})
    setup(config, None, lambda line: None)
    assert told(check(config)) == []
    with closing(sqlite3.connect(file)) as connection:
        found = connection.execute("SELECT name FROM pragma_table_info('crm.things')").fetchall()
    assert found == [("id",), ("Called",), ("kind",)]


def test_tables_tells_what_a_table_is_called(source: Database, target18: Database) -> None:
    config = make_config({"a": source.url, "b": target18.url}, table={"public.t": SHAPE})
    listed, problems = tables(config, None)
    assert problems == []
    assert {t.table: t.targets["b"] for t in listed} == {
        "public.plain": "will be created, copy, then stream",
        "public.t": "will be created, copy, then stream, as crm.things",
    }
    with running(config):
        listed, _ = tables(config, None)
        assert {t.table: t.targets["b"] for t in listed} == {"public.plain": "stream", "public.t": "stream, as crm.things"}


def test_check_tells_all_that_is_wrong_with_shapes(source: Database, target18: Database) -> None:
    config = make_config(
        {"a": source.url, "b": target18.url},
        table={
            "public.t": {"where": "no > 1", "transform": "python:no_such_module:rows"},
            "public.plain": {"columns": ["v"]},
            "public.tt": {"rename": "x"},
        },
    )
    what = 'error: sync "shop" to "b": '
    where = 'table "public.t" on "a": where = "no > 1" fails: column "no" does not exist'
    whole = 'table "public.t" on "a": changes do not carry the old row, and its transform needs all of it'
    found = told(check(config))
    assert f"{what}{where}; correct the condition in the config, and start streamer run again" in found
    assert f'{what}{whole}; ALTER TABLE "public"."t" REPLICA IDENTITY FULL, or run: streamer setup --fix' in found
    assert any(line.startswith(f'{what}table "public.plain": column "id" belongs to its key') for line in found)
    assert any(line.startswith(f'{what}table "public.tt" is not on "a"') for line in found)
    assert any(line.startswith(f'{what}table "public.t": transform "python:no_such_module:rows": there is no') for line in found)


def test_setup_tells_how_old_rows_come_to_be_carried_or_sees_to_it(source: Database, target18: Database) -> None:
    config = make_config({"a": source.url, "b": target18.url}, table={"public.t": {"where": "n > 1"}})
    statement = 'ALTER TABLE "public"."t" REPLICA IDENTITY FULL'
    assert (
        'warning: a: table "public.t": changes do not carry the old row, and its where needs "n" of it; '
        f"{statement}, or run: streamer setup --fix"
    ) in lines(config)
    assert source.query("SELECT relreplident::text FROM pg_class WHERE relname = 't'") == [("d",)]
    assert 'a: altered table "public.t": REPLICA IDENTITY FULL' in lines(config, fix=True)
    assert source.query("SELECT relreplident::text FROM pg_class WHERE relname = 't'") == [("f",)]
    assert not any("REPLICA IDENTITY" in line for line in lines(config, fix=True))
    assert told(check(config)) == []


def test_long_values_of_a_row_whose_key_moves_are_warned_of(source: Database, target18: Database) -> None:
    config = make_config({"a": source.url, "b": target18.url}, table={"public.t": {"where": "id > 1"}})
    lines(config)
    (found,) = told(check(config))
    assert found.startswith('warning: table "public.t" on "a": an update of the key that lets a row into its where')


def test_setup_refuses_a_shape_that_makes_no_sense(source: Database, target18: Database) -> None:
    config = make_config({"a": source.url, "b": target18.url}, table={"public.t": {"columns": ["id", "nmae"]}})
    with pytest.raises(SchemaError, match=r'table "public.t" has no column "nmae"'):
        lines(config)


def test_a_generated_column_does_not_travel(source: Database, target18: Database) -> None:
    config = make_config({"a": source.url, "b": target18.url}, table={"public.t": {"columns": ["id", "twice"]}})
    with pytest.raises(SchemaError, match=r'table "public.t" has no column "twice" whose values travel'):
        lines(config)
