"""`streamer verify` where the target is another engine, or a function makes the rows: they are streamed, and hashed by us."""

from __future__ import annotations

import sqlite3
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from types import ModuleType

import pytest

from streamer.admin.verify import verify, wanted
from streamer.errors import UsageError
from streamer.verify import comparison
from streamer.verify.tables import Verdict, equal
from tests import every_type
from tests.configs import make_config
from tests.integration.streams import running
from tests.integration.test_type_round_trip import fill, session
from tests.integration.test_verify import written
from tests.integration.verifying import kinds, small_tables, verified
from tests.mysql_servers import MysqlDatabase
from tests.servers import Database


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small tables have several ranges, too."""
    monkeypatch.setattr(comparison, "PART_ROWS", 300)
    monkeypatch.setattr(comparison, "FINE_ROWS", 100)


@pytest.fixture
def change(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Callable[[str], None]]:
    """The url of a target of the engine that the test names, and what writes to it."""
    if request.param == "mariadb":
        database: MysqlDatabase = request.getfixturevalue("mariadb")
        return database.url, database.execute
    if request.param == "postgres":
        target: Database = request.getfixturevalue("target18")
        return target.url, target.execute
    file = tmp_path / "shop.sqlite"

    def execute(statement: str) -> None:
        with closing(sqlite3.connect(file, timeout=30)) as connection, connection:
            connection.execute(statement)

    return f"sqlite:///{file}", execute


every_engine = pytest.mark.parametrize("change", ["postgres", "mariadb", "sqlite"], indirect=True)


@every_engine
def test_rows_of_every_type_are_equal_after_a_copy(source15: Database, change: tuple[str, Callable[[str], None]]) -> None:
    url, execute = change
    makers = every_type.create(source15, "source")
    with session(source15) as connection:
        fill(connection, makers, odd=False)
    config = make_config({"a": source15.url, "b": url})
    with running(config) as streams:
        found = verified(config, streams)
        assert equal(found), found
        execute("UPDATE source SET c_text = '' WHERE id = 0")
        assert kinds(verified(config, streams)) == {("public.source", "0"): "different"}


@every_engine
def test_differences_are_found_on_every_engine_and_shapes_are_minded(
    source15: Database, change: tuple[str, Callable[[str], None]]
) -> None:
    url, execute = change
    source15.execute("CREATE TABLE t (id int PRIMARY KEY, n numeric(9, 2), x text, y text)")
    source15.execute("INSERT INTO t SELECT i, i, 'x', 'y' FROM generate_series(1, 1000) i")
    source15.execute("ALTER TABLE t REPLICA IDENTITY FULL")
    source15.execute("CREATE TABLE named (name text PRIMARY KEY, day date, b bool)")
    source15.execute("INSERT INTO named SELECT 'n' || i, '2020-01-01'::date + i, i % 2 = 0 FROM generate_series(1, 500) i")
    shape = {"rename": "other", "columns": ["id", "n", "x"], "rename_columns": {"x": "z"}, "where": "id > 10"}
    config = make_config({"a": source15.url, "b": url}, table={"public.t": shape})
    with running(config) as streams:
        found = verified(config, streams)
        assert {one.table: (one.rows, one.verdict) for one in found} == {
            "public.t": (990, Verdict.EQUAL),
            "public.named": (500, Verdict.EQUAL),
        }
        execute("DELETE FROM other WHERE id = 11")
        execute("UPDATE other SET z = '' WHERE id = 12")
        execute("UPDATE other SET z = NULL WHERE id = 13")
        execute("INSERT INTO other VALUES (3, 1, 'x')")
        execute("UPDATE named SET day = '2020-01-01' WHERE name = 'n7'")
        source15.execute("UPDATE t SET n = 0 WHERE id > 500")
        assert kinds(verified(config, streams)) == {
            ("public.t", "11"): "missing",
            ("public.t", "12"): "different",
            ("public.t", "13"): "different",
            ("public.t", "3"): "extra",
            ("public.named", "n7"): "different",
        }


@every_engine
def test_rows_that_a_function_makes_are_compared_as_it_makes_them(
    source15: Database, change: tuple[str, Callable[[str], None]]
) -> None:
    url, execute = change
    module = ModuleType("own_rows")
    module.rows = lambda row: None if row["id"] == "7" else row | {"x": f"<{row['x']}>"}  # type: ignore[attr-defined]
    sys.modules["own_rows"] = module
    small_tables(source15)
    config = make_config({"a": source15.url, "b": url}, table={"public.t": {"transform": "python:own_rows:rows"}})
    try:
        with running(config) as streams:
            assert equal(verified(config, streams))
            execute("UPDATE t SET x = 'x' WHERE id = 8")
            assert kinds(verified(config, streams)) == {("public.t", "8"): "different"}
    finally:
        del sys.modules["own_rows"]


@pytest.mark.parametrize("change", ["mariadb"], indirect=True)
def test_a_value_that_was_replaced_is_no_difference(source15: Database, change: tuple[str, Callable[[str], None]]) -> None:
    url, _ = change
    source15.execute("CREATE TABLE t (id int PRIMARY KEY, day date, f float8)")
    source15.execute("INSERT INTO t VALUES (1, 'infinity', 1), (2, '2020-01-01', 'NaN')")
    for policy, expected in (("null", True), ("error", False)):
        config = make_config({"a": source15.url, "b": url}, on_unrepresentable=policy)
        if policy == "null":
            with running(config) as streams:
                assert equal(verified(config, streams)) is expected
    with running(config) as streams:
        assert kinds(verified(config, streams)) == {("public.t", "1"): "different", ("public.t", "2"): "different"}


def test_a_target_of_events_is_refused(source15: Database, tmp_path: Path) -> None:
    small_tables(source15)
    config = make_config({"a": source15.url, "b": f"jsonl://{tmp_path}/events"})
    with pytest.raises(UsageError, match=r'node "b" holds events, not rows'):
        list(verify(config, wanted("shop", [], None, 20, 1)))


@pytest.mark.parametrize("change", ["mariadb", "sqlite"], indirect=True)
def test_nothing_differs_while_the_source_is_written_but_one_byte_of_a_long_value_and_a_digit_do(
    source15: Database, change: tuple[str, Callable[[str], None]]
) -> None:
    url, execute = change
    small_tables(source15)
    source15.execute("CREATE TABLE keyless (a int, b text)")
    source15.execute("CREATE TABLE wide (id int PRIMARY KEY, x text, n numeric)")
    source15.execute("ALTER TABLE wide ALTER x SET STORAGE EXTERNAL")
    source15.execute("INSERT INTO wide SELECT i, repeat('x', 9000), 1.0 FROM generate_series(1, 20) i")
    config = make_config({"a": source15.url, "b": url})
    with running(config) as streams, written(source15):
        for _ in range(2):
            found = verified(config, streams, "t", "wide")
            assert equal(found), found
        execute("UPDATE wide SET x = replace(x, 'xxx', 'xxy') WHERE id = 7")
        execute("UPDATE wide SET n = '1.00' WHERE id = 8")
        assert kinds(verified(config, streams, "t", "wide")) == {
            ("public.wide", "7"): "different",
            ("public.wide", "8"): "different",
        }
