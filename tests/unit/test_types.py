"""docs/types.md tells what the code does, of all types."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import pytest

from streamer.model import ColumnDefinition
from streamer.sinks import mysql_types, sqlite_types
from streamer.sinks.mysql_types import Engine
from streamer.sinks.postgres_types import OIDS, TYPES, SourceType

PAGE: Final = (Path(__file__).parents[2] / "docs/types.md").read_text(encoding="utf-8")
MYSQL: Final = Engine.of("8.4.6")
MARIADB: Final = Engine.of("10.11.19-MariaDB-0+deb12u1")


def documented() -> dict[str, tuple[str, str, str]]:
    """The columns of MySQL, MariaDB and SQLite, by type."""
    found = {}
    for line in PAGE.partition("## Columns")[2].partition("\n## ")[0].splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| `"):
            for name in re.findall("`([^`]+)`", cells[0]):
                assert name not in found
                found[name] = (cells[1].strip("`"), cells[2].strip("`"), cells[3].strip("`"))
    return found


def source_type(name: str) -> SourceType:
    """The type as the catalog would tell of it."""
    if name in ("array", "enum", "other"):
        return SourceType(name)
    oid = OIDS[re.sub(r"\([\d,-]+\)", "", name)]
    return SourceType.of(ColumnDefinition("c", name, oid, False, None, "", False))


@pytest.mark.parametrize("name", documented())
def test_the_page_tells_the_column_of_each_engine(name: str) -> None:
    source = source_type(name)
    declared = [mysql_types.column_type(source, engine).sql(engine).partition(" CHARACTER SET")[0] for engine in (MYSQL, MARIADB)]
    assert (*declared, sqlite_types.column_type(source, strict=True)) == documented()[name]


def test_the_page_tells_of_every_built_in_type() -> None:
    assert {re.sub(r"\([\d,-]+\)", "", name) for name in documented()} == {*TYPES.values(), "array", "enum", "other"}


@pytest.mark.parametrize(
    ("type_name", "base", "expected"),
    [
        ("numeric(10,2)", "", SourceType("numeric", (10, 2))),
        ("timestamp(3) without time zone", "", SourceType("timestamp without time zone", (3,))),
        ("price", "numeric(10,2)", SourceType("numeric", (10, 2))),
        ("public.prices", "price[]", SourceType("array")),
        ("integer[]", "", SourceType("array")),
        ("public.hstore", "", SourceType("other")),
    ],
)
def test_a_type_is_told_by_what_the_catalog_says(type_name: str, base: str, expected: SourceType) -> None:
    oids = {"numeric(10,2)": 1700, "timestamp(3) without time zone": 1114}
    column = ColumnDefinition("c", type_name, oids.get(type_name, 20000), False, None, "", False, oids.get(base, 0), base)
    assert SourceType.of(column) == expected


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ("8.0.36-0ubuntu0.22.04.1", Engine("mysql", (8, 0, 36))),
        ("10.11.19-MariaDB-0+deb12u1", Engine("mariadb", (10, 11, 19))),
        ("5.5.5-10.6.12-MariaDB-log", Engine("mariadb", (10, 6, 12))),
    ],
)
def test_an_engine_is_told_by_its_version(version: str, expected: Engine) -> None:
    assert Engine.of(version) == expected
