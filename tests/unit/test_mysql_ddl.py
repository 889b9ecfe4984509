"""Tables of a MySQL target: names, keys that fit, defaults."""

from __future__ import annotations

import pytest

from streamer.errors import SchemaError
from streamer.model import ColumnDefinition, TableDefinition, TableName
from streamer.sinks.mysql_ddl import KEY_BYTES, Names, create_table, missing_column, quote, safe_name
from streamer.sinks.mysql_types import Engine
from streamer.sinks.postgres_types import OIDS

T = TableName("public", "t")
NAMES = Names("shop")
MARIADB = Engine.of("10.11.19-MariaDB")
MYSQL = Engine.of("8.4.0")
TEXT = "CHARACTER SET utf8mb4 COLLATE utf8mb4_nopad_bin"


def column(
    name: str, kind: str, *, not_null: bool = False, default: str | None = None, generated: bool = False
) -> ColumnDefinition:
    return ColumnDefinition(name, kind, OIDS.get(kind.partition("(")[0], 20_000), not_null, default, "", generated)


def created(*columns: ColumnDefinition, key: tuple[str, ...] = (), unique: tuple[tuple[str, ...], ...] = ()) -> list[str]:
    """The lines between the parentheses."""
    (statement,) = create_table(TableDefinition(T, columns, key, unique), MARIADB, NAMES)
    return [line.strip().rstrip(",") for line in statement.splitlines()[1:-1]]


def test_a_table_is_of_innodb_and_compares_bytes() -> None:
    (statement,) = create_table(TableDefinition(T, (column("id", "integer"),), ("id",)), MYSQL, NAMES)
    assert statement == (
        "CREATE TABLE `shop`.`t` (\n    `id` INT NOT NULL,\n    PRIMARY KEY (`id`)\n) "
        "ENGINE=InnoDB ROW_FORMAT=DYNAMIC DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_0900_bin"
    )


def test_text_in_keys_gets_what_the_index_leaves() -> None:
    columns = (
        column("a", "text"),
        column("b", "character varying(10)"),
        column("c", "bytea"),
        column("d", "bigint"),
        column("e", "text"),
    )
    assert created(*columns, key=("a", "b", "c", "d"), unique=(("e",), ("a", "e"))) == [
        f"`a` VARCHAR(374) {TEXT} NOT NULL",
        f"`b` VARCHAR(10) {TEXT} NOT NULL",
        "`c` VARBINARY(1498) NOT NULL",
        "`d` BIGINT NOT NULL",
        f"`e` VARCHAR(384) {TEXT}",
        "PRIMARY KEY (`a`, `b`, `c`, `d`)",
        "UNIQUE KEY `u1` (`e`)",
        "UNIQUE KEY `u2` (`a`, `e`)",
    ]
    assert KEY_BYTES >= 4 * (374 + 10) + 1498 + 36
    assert created(column("a", "text"), key=("a",))[0] == f"`a` VARCHAR(768) {TEXT} NOT NULL"


def test_many_long_texts_do_not_fill_a_row() -> None:
    lines = created(*(column(f"c{number}", "character varying(1000)") for number in range(20)), column("s", "character varying(5)"))
    assert [line.split(" ")[1] for line in lines] == ["VARCHAR(1000)"] * 14 + ["LONGTEXT"] * 6 + ["VARCHAR(5)"]


def test_keys_without_their_columns_are_left_out() -> None:
    columns = (column("a", "integer"), column("g", "integer", generated=True))
    assert created(*columns, key=("g",), unique=(("a", "g"), ("a",))) == ["`a` INT", "UNIQUE KEY `u0` (`a`)"]


@pytest.mark.parametrize(
    ("kind", "default", "expected"),
    [
        ("integer", "5", "(5)"),
        ("integer", "'-1'::integer", "(-1)"),
        ("integer", "(-1)", "(-1)"),
        ("numeric(10,2)", "1.5", "(1.5)"),
        ("boolean", "true", "(1)"),
        ("text", "'it''s'::text", "('it''s')"),
        ("text", "'a\\b'::text", "('a\\\\b')"),
        ("character varying(5)", "'x'::character varying", "('x')"),
        ("character varying(5)", "'too long'::character varying", None),
        ("bytea", "'\\x00ff'::bytea", "(X'00ff')"),
        ("timestamp with time zone", "now()", "(UTC_TIMESTAMP(6))"),
        ("timestamp without time zone", "CURRENT_TIMESTAMP", "(CURRENT_TIMESTAMP(6))"),
        ("timestamp with time zone", "'infinity'::timestamp with time zone", None),
        ("date", "CURRENT_DATE", "(CURRENT_DATE)"),
        ("uuid", "gen_random_uuid()", "(UUID())"),
        ("jsonb", "'{}'::jsonb", "('{}')"),
        ("integer", "nextval('s'::regclass)", None),
        ("text", "lower('X'::text)", None),
        ("text", "NULL::text", None),
    ],
)
def test_simple_defaults_are_kept(kind: str, default: str, expected: str | None) -> None:
    (line,) = created(column("c", kind, default=default))
    assert (line.partition(" DEFAULT ")[2] or None) == expected


def test_tables_of_other_schemas_get_a_prefix_or_a_database() -> None:
    sales = TableName("sales", "t")
    assert [NAMES.of(T), NAMES.of(sales)] == [("shop", "t"), ("shop", "sales.t")]
    apart = Names("shop", "database")
    assert [apart.of(T), apart.of(sales)] == [("shop", "t"), ("sales", "t")]
    first, second = create_table(TableDefinition(sales, (column("a", "integer"),), ()), MARIADB, apart)
    assert (first, second.splitlines()[0]) == ("CREATE DATABASE IF NOT EXISTS `sales`", "CREATE TABLE `sales`.`t` (")


@pytest.mark.parametrize("name", ["t", "select", "Mixed Case", 'Odd "table".x %s', "ünï?1", "a`b", "x" * 64, "日" * 47])
def test_a_name_that_the_engine_takes_is_kept(name: str) -> None:
    assert safe_name(name) == name


@pytest.mark.parametrize("name", ["x" * 65, "x" * 126, "🐘", "a ", "日" * 63, "é" * 64])
def test_any_other_name_is_mapped_always_to_the_same(name: str) -> None:
    mapped = safe_name(name)
    assert mapped == safe_name(name) == safe_name(mapped)
    assert mapped != safe_name(name + "y")
    assert len(mapped) <= 64


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ([T, TableName("public", "T")], '"public.t" and "public.T" would share a name'),
        ([TableName("s", "t"), TableName("public", "s.t")], '"s.t" and "public.s.t" would share'),
        ([TableName("public", "Streamer_Copy")], "reserved"),
    ],
)
def test_tables_that_would_share_a_name_are_refused(tables: list[TableName], message: str) -> None:
    with pytest.raises(SchemaError, match=message):
        NAMES.refuse_clashes(tables)


def test_columns_that_would_share_a_name_are_refused() -> None:
    with pytest.raises(SchemaError, match=r'columns "id" and "ID" of table "public\.t" would share a name'):
        created(column("id", "integer"), column("ID", "integer"))


def test_a_table_without_columns_that_travel_is_refused_by_its_name() -> None:
    with pytest.raises(SchemaError, match=r'table "public\.t" has no column whose values travel, and MySQL has no tables'):
        created(column("g", "integer", generated=True))


def test_a_missing_column_has_its_type_in_the_remedy() -> None:
    error = missing_column(TableName("s", "t"), column('odd "one"', "bytea"), MARIADB, NAMES)
    assert error.hint == 'there: ALTER TABLE `shop`.`s.t` ADD COLUMN `odd "one"` LONGBLOB'
    assert quote("a`b") == "`a``b`"
