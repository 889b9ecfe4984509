"""The values that `check` tries on a column: of each type the column that `setup` makes holds them, and narrower ones do not."""

from __future__ import annotations

import re
from typing import Final

import pytest

from streamer.model import ColumnDefinition
from streamer.sinks import mysql_types, sqlite_types
from streamer.sinks.extremes import extremes, lost
from streamer.sinks.mysql_ddl import declared_column
from streamer.sinks.mysql_types import Engine
from streamer.sinks.mysql_values import TargetColumn, converter
from streamer.sinks.postgres_types import OIDS, TYPES, SourceType
from streamer.sinks.sqlite_values import conversion

MARIADB: Final = Engine.of("10.11.19-MariaDB")
UNBOUNDED: Final = ("NaN", "Infinity", "infinity")
"""What MySQL's numbers and moments lack; a type of its own says so in docs/types.md."""
MODIFIED: Final = ("numeric(20,5)", "numeric(5,-2)", "numeric(2,4)", "numeric(70,40)", "character varying(20)", "character(10)")
MODIFIED_MOMENTS: Final = ("bit(7)", "timestamp(3) without time zone", "time(0) without time zone")


def column(type_name: str) -> ColumnDefinition:
    return ColumnDefinition("c", type_name, OIDS[re.sub(r"\([\d,-]+\)", "", type_name)], False, None, "", False)


def problem(type_name: str, there: TargetColumn) -> str:
    """What `check` says of a column of MariaDB for this type; empty if nothing."""
    defined = column(type_name)
    source = SourceType.of(defined)
    made = converter(defined.type_oid, declared_column("c", mysql_types.column_type(source, MARIADB).sql(MARIADB)))
    return str(lost(source, converter(defined.type_oid, there), made) or "")


@pytest.mark.parametrize("type_name", [*TYPES.values(), *MODIFIED, *MODIFIED_MOMENTS])
def test_the_column_that_setup_makes_holds_them(type_name: str) -> None:
    defined = column(type_name)
    source = SourceType.of(defined)
    assert extremes(source)
    into_maria = converter(defined.type_oid, declared_column("c", mysql_types.column_type(source, MARIADB).sql(MARIADB)))
    into_file = conversion(defined.type_oid, sqlite_types.column_type(source, strict=True), strict=True)
    for value in extremes(source):
        if into_file is not None:
            into_file(value)
        if into_maria is not None and value not in UNBOUNDED:
            into_maria(value)


@pytest.mark.parametrize(
    ("type_name", "there", "said"),
    [
        ("integer", TargetColumn("c", "smallint", "smallint(6)"), "is not within -32768 and 32767"),
        ("integer", TargetColumn("c", "int", "int(10) unsigned"), "is not within 0 and"),
        ("numeric(20,5)", TargetColumn("c", "decimal", "decimal(20,2)", precision=20, scale=2), "has more than 2 decimal places"),
        ("numeric(20,5)", TargetColumn("c", "double", "double"), "has more digits than a double holds"),
        ("text", TargetColumn("c", "varchar", "varchar(255)", length=255, charset="utf8mb4"), "has 256 characters, more than 255"),
        ("text", TargetColumn("c", "text", "text", length=65_535, charset="utf8mb4"), "has 65536 bytes, more than 65535"),
        ("text", TargetColumn("c", "longtext", "longtext", length=2**32 - 1, charset="utf8mb3"), "characters that utf8mb3 lacks"),
        ("timestamp with time zone", TargetColumn("c", "timestamp", "timestamp(6)", fraction=6), "lies before 1970-01-01"),
        ("timestamp with time zone", TargetColumn("c", "datetime", "datetime", fraction=0), "has more than 0 decimal places"),
        ("bytea", TargetColumn("c", "blob", "blob", length=65_535), "has 65536 bytes"),
        ("jsonb", TargetColumn("c", "json", "json"), "which a JSON column rounds"),
        ("inet", TargetColumn("c", "inet6", "inet6"), "is not an address of version 6"),
    ],
)
def test_a_narrower_column_is_told_from_the_one_that_setup_makes(type_name: str, there: TargetColumn, said: str) -> None:
    assert said in problem(type_name, there)


@pytest.mark.parametrize(
    ("type_name", "there"),
    [
        ("integer", TargetColumn("c", "bigint", "bigint(20)")),
        ("integer", TargetColumn("c", "varchar", "varchar(11)", length=11, charset="utf8mb4")),
        ("numeric(20,5)", TargetColumn("c", "decimal", "decimal(30,10)", precision=30, scale=10)),
        ("character varying(20)", TargetColumn("c", "varchar", "varchar(255)", length=255, charset="utf8mb4")),
        ("uuid", TargetColumn("c", "binary", "binary(16)", length=16)),
        ("boolean", TargetColumn("c", "bit", "bit(1)", precision=1)),
    ],
)
def test_a_wider_column_or_one_of_another_form_is_fine(type_name: str, there: TargetColumn) -> None:
    assert problem(type_name, there) == ""
