"""`streamer ddl`: what it prints makes the tables, on every kind of target; and what the catalog tells of types and unique keys."""

from __future__ import annotations

import random
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from typer.testing import CliRunner

from streamer.admin.ddl import statements
from streamer.capture.catalog import read_tables
from streamer.cli import app
from streamer.errors import UsageError
from streamer.session import connect
from streamer.sinks.postgres_types import TYPES
from tests import every_type
from tests.configs import checked, document, make_config, write_config
from tests.conftest import Pair
from tests.mysql_servers import MysqlDatabase
from tests.servers import Database

SCHEMA = r"""
CREATE SCHEMA sales;
CREATE DOMAIN price AS numeric(10, 2);
CREATE DOMAIN dear AS price CHECK (value > 100);
CREATE TYPE mood AS ENUM ('sad', 'ok');
CREATE DOMAIN feeling AS mood;
CREATE TABLE sales.items (
    code text, place varchar(300), name text UNIQUE DEFAULT 'it''s \ "new"', price price NOT NULL DEFAULT 1.5, dear dear, mood mood,
    feeling feeling, moods mood[], made timestamptz(3) DEFAULT now(), on_day date DEFAULT CURRENT_DATE,
    key uuid DEFAULT '00000000-0000-0000-0000-000000000000',
    data bytea DEFAULT '\x00ff', ok boolean DEFAULT true, doubled numeric GENERATED ALWAYS AS (dear * 2) STORED,
    PRIMARY KEY (code, place), UNIQUE (doubled), UNIQUE (mood) DEFERRABLE
);
CREATE UNIQUE INDEX ON sales.items (made, data);
CREATE UNIQUE INDEX ON sales.items (made) WHERE ok;
CREATE UNIQUE INDEX ON sales.items (lower(name));
CREATE TABLE "select" (id int PRIMARY KEY);
"""


KEYS = (
    *("boolean", "smallint", "integer", "bigint", "oid", "real", "double precision", "numeric", "numeric(20,5)", "numeric(70,40)"),
    *("money", "text", "varchar(20)", "varchar(5000)", "char(10)", "name", "bytea", "date", "time", "timestamp", "timestamptz"),
    *("interval", "uuid", "inet", "macaddr", "bit(7)", "varbit", "jsonb", "integer[]", "int4range", "pg_lsn"),
)
"""Types of columns that PostgreSQL can index."""


@pytest.fixture
def source(source15: Database) -> Database:
    source15.execute(SCHEMA)
    return source15


def test_the_catalog_tells_of_domains_enums_and_unique_keys(source: Database) -> None:
    with connect("a", source.url, application="test") as connection:
        (table,) = read_tables(connection, lambda name: name.name == "items")
    told = {c.name: (c.base_name, c.enum) for c in table.definition.columns if c.base_name or c.enum}
    assert told == {
        "price": ("numeric(10,2)", False),
        "dear": ("numeric(10,2)", False),
        "mood": ("", True),
        "feeling": ("mood", True),
    }
    assert set(table.definition.unique_keys) == {("name",), ("doubled",), ("made", "data")}


def test_every_built_in_type_of_a_server_has_a_declared_column(source: Database, source18: Database) -> None:
    query = (
        "SELECT oid::bigint, format_type(oid, NULL) FROM pg_type WHERE typtype IN ('b', 'r', 'm') "
        "AND typnamespace = 'pg_catalog'::regnamespace AND NOT (typcategory = 'A' AND typelem <> 0)"
    )
    for server in (source, source18):
        assert dict(server.query(query)).items() <= TYPES.items(), server


def test_what_is_printed_for_sqlite_makes_the_tables(source: Database, tmp_path: Path) -> None:
    config = make_config({"a": source.url, "b": f"sqlite:///{tmp_path / 'file'}"})
    made = statements(config, "shop", "b").all
    assert not (tmp_path / "file").exists()
    with closing(sqlite3.connect(tmp_path / "file")) as connection:
        for statement in made:
            connection.execute(statement)
        connection.execute("INSERT INTO \"sales.items\" (code, place) VALUES ('a', 'b')")
        row = connection.execute('SELECT name, price, data, ok FROM "sales.items"').fetchone()
    assert row == ('it\'s \\ "new"', "1.5", b"\x00\xff", 1)
    assert statements(config, "shop", "b").all == []
    assert statements(config, "shop", "b", existing=True).all == made


def test_what_is_printed_for_mariadb_makes_the_tables(source: Database, mariadb: MysqlDatabase) -> None:
    config = make_config({"a": source.url, "b": mariadb.url})
    made = statements(config, "shop", "b").all
    for statement in made:
        mariadb.execute(statement)
    mariadb.execute("INSERT INTO `sales.items` (code, place) VALUES ('a', 'b')")
    ((name, price, data, ok, key, recent),) = mariadb.query(
        "SELECT name, price, data, ok, `key`, made > UTC_TIMESTAMP() - INTERVAL 1 HOUR FROM `sales.items`"
    )
    assert (name, str(price), data, ok, key, recent) == (
        'it\'s \\ "new"',
        "1.50",
        b"\x00\xff",
        1,
        "00000000-0000-0000-0000-000000000000",
        1,
    )
    assert statements(config, "shop", "b").all == []
    assert statements(config, "shop", "b", existing=True).all == made


def test_schemas_become_databases_where_the_node_says_so(source: Database, mariadb: MysqlDatabase) -> None:
    values = document({"a": source.url, "b": mariadb.url})
    values["nodes"]["b"]["schemas"] = "database"
    made = statements(checked(values), "shop", "b").all
    assert any(statement.startswith("CREATE TABLE `sales`.`items`") for statement in made)
    assert any(statement.startswith(f"CREATE TABLE `{mariadb.name}`.`select`") for statement in made)
    assert "CREATE DATABASE IF NOT EXISTS `sales`" in made


def test_what_is_printed_for_postgresql_makes_the_tables(pair: Pair) -> None:
    first, second = pair
    first.execute(SCHEMA)
    config = make_config({"a": first.url, "b": second.url})
    for statement in statements(config, "shop", "b").all:
        second.execute(statement)
    assert statements(config, "shop", "b").all == []
    second.execute("INSERT INTO sales.items (code, place) VALUES ('a', 'b')")


def test_a_table_is_printed_in_its_shape(source: Database, tmp_path: Path) -> None:
    config = make_config(
        {"a": source.url, "b": f"sqlite:///{tmp_path / 'file'}"},
        tables=["sales.*"],
        table={"sales.items": {"rename": "wares", "columns": ["code", "place", "ok"]}},
    )
    (made,) = statements(config, "shop", "b").all
    assert made.splitlines()[0] == 'CREATE TABLE "wares" ('
    assert '"name"' not in made


def test_the_command_prints_statements_that_end(source: Database, tmp_path: Path) -> None:
    file = write_config(tmp_path / "streamer.toml", document({"a": source.url, "b": f"sqlite:///{tmp_path / 'file'}"}))
    printed = CliRunner().invoke(app, ["ddl", "shop", "b", "--config", str(file)])
    assert printed.exit_code == 0
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.executescript(printed.output)
        assert connection.execute("SELECT count(*) FROM sqlite_master WHERE type = 'table'").fetchone() == (2,)


@pytest.mark.parametrize(("sync", "target"), [("other", "b"), ("shop", "a"), ("shop", "c")])
def test_a_sync_that_does_not_write_there_is_refused(sync: str, target: str, source: Database, tmp_path: Path) -> None:
    config = make_config({"a": source.url, "b": f"sqlite:///{tmp_path / 'file'}"})
    with pytest.raises(UsageError, match=r'no sync "other"|has no target'):
        statements(config, sync, target)


def test_the_server_takes_every_key_and_name_that_we_make(source: Database, mariadb: MysqlDatabase) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    dice = random.Random(seed)
    plain = {name: kind for name, (kind, _) in every_type.COLUMNS.items() if kind in KEYS}
    for number in range(12):
        columns = dict(dice.sample(sorted(plain.items()), 8)) | {"c" * dice.randint(50, 63): "text", f"日{number}": "varchar(900)"}
        quoted = [f'"{name}"' for name in columns]
        unique = [dice.sample(quoted, dice.randint(1, 8)) for _ in range(3)]
        source.execute(
            f'CREATE TABLE sales."{"x" * dice.randint(50, 60)}{number}" ('
            + ", ".join(f"{name} {kind}" for name, kind in zip(quoted, columns.values(), strict=True))
            + f", PRIMARY KEY ({', '.join(unique[0])}), UNIQUE ({', '.join(unique[1])}), UNIQUE ({', '.join(unique[2])}))"
        )
    made = statements(make_config({"a": source.url, "b": mariadb.url}), "shop", "b").all
    for statement in made:
        mariadb.execute(statement)
    assert len(mariadb.query("SHOW TABLES")) == len(made) == 14
