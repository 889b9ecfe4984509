"""How rows are spelled for MySQL: what a file of LOAD DATA and a literal look like, and who is asked about what does not fit."""

from __future__ import annotations

import re
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamer.copytext import format_rows
from streamer.model import Value
from streamer.sinks.mysql_fields import Field, Fields, Stored, file_of_copy, literal
from streamer.sinks.mysql_values import TargetColumn
from streamer.sinks.unrepresentable import Unrepresentable

TEXT, BOOL, BYTEA, INT = 25, 16, 17, 23
LONGTEXT = TargetColumn("name", "longtext", "longtext", length=2**32 - 1, charset="utf8mb4")
TINYINT = TargetColumn("flag", "tinyint", "tinyint(1)")
LONGBLOB = TargetColumn("data", "longblob", "longblob", length=2**32 - 1)
INTEGER = TargetColumn("id", "int", "int(11)", nullable=False)
UNESCAPED = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "0": "\0", "Z": "\x1a"}

texts = st.text(st.characters(exclude_characters="\0", codec="utf-8"))
rows_of_two = st.lists(st.tuples(st.none() | texts, st.none() | texts), min_size=1)


def never(position: int, row: Sequence[Value], problem: Unrepresentable) -> Stored:
    raise problem


def fields(*made: Field, width: int | None = None) -> Fields:
    return Fields(len(made) if width is None else width, made, never)


def two_texts() -> Fields:
    return fields(*(Field.of(i, TEXT, LONGTEXT, f"c{i}") for i in range(2)))


def read(file: bytes) -> list[tuple[str | None, ...]]:
    """The rows as LOAD DATA reads them."""

    def field(text: str) -> str | None:
        return None if text == "\\N" else re.sub(r"\\(.)", lambda m: UNESCAPED.get(m[1], m[1]), text, flags=re.DOTALL)

    return [tuple(map(field, line.split("\t"))) for line in file.decode().removesuffix("\n").split("\n")]


@given(rows_of_two)
def test_a_file_reads_back_as_the_rows(rows: list[tuple[str | None, ...]]) -> None:
    assert read(b"".join(two_texts().file(rows))) == rows


@given(rows_of_two)
def test_a_block_of_copy_reads_back_as_the_rows(rows: list[tuple[str | None, ...]]) -> None:
    assert read(file_of_copy(format_rows(rows))) == rows


def test_a_block_of_copy_keeps_all_escapes_but_two() -> None:
    assert file_of_copy(rb"a\\fb\fc\\\vd\N\n") == b"a\\\\fb\x0cc\\\\\x0bd\\N\\n"


def test_only_texts_in_their_places_are_copied_as_they_are() -> None:
    assert two_texts().as_copied
    assert not fields(Field.of(0, BOOL, TINYINT)).as_copied
    assert not fields(Field.of(0, TEXT, LONGTEXT), width=2).as_copied


def test_values_are_converted_and_bytes_are_hexadecimal() -> None:
    made = fields(Field.of(0, INT, INTEGER), Field.of(1, BOOL, TINYINT), Field.of(2, BYTEA, LONGBLOB))
    rows = [("1", "t", "\\x00ff"), ("2", None, None)]
    assert b"".join(made.file(rows)) == b"1\t1\t00ff\n2\t\\N\t\\N\n"
    assert list(made.literals(rows)) == ["('1', '1', X'00ff')", "('2', NULL, NULL)"]
    assert made.load_statement("t").endswith("(`id`, `flag`, @f2) SET `data` = UNHEX(@f2)")


def test_columns_may_be_chosen_and_named_anew() -> None:
    made = fields(Field.of(2, TEXT, LONGTEXT, "c2"), Field.of(0, INT, INTEGER, "c0"), width=3)
    assert made.columns == "`c2`, `c0`"
    assert b"".join(made.file([("1", "left out", "x")])) == b"x\t1\n"
    assert made.one(("1", None, "it's")) == ["'it\\'s'", "'1'"]


def test_what_does_not_fit_is_replaced_or_raised() -> None:
    asked: list[tuple[int, Sequence[Value], str]] = []

    def replace(position: int, row: Sequence[Value], problem: Unrepresentable) -> Stored:
        asked.append((position, row, problem.value))
        return None

    short = TargetColumn("name", "varchar", "varchar(2)", length=2, charset="utf8mb4")
    pair = [Field.of(0, INT, INTEGER), Field.of(1, TEXT, short)]
    rows = [("1", "ab"), ("2", "abc"), ("3", None)]
    assert b"".join(Fields(2, pair, replace).file(rows)) == b"1\tab\n2\t\\N\n3\t\\N\n"
    assert asked == [(1, ("2", "abc"), "abc")]
    with pytest.raises(Unrepresentable, match="more than 2"):
        list(fields(*pair).file(rows))


@pytest.mark.parametrize(
    ("value", "sql"),
    [(None, "NULL"), ("", "''"), ("a'b\\c\n", "'a\\'b\\\\c\\n'"), (b"", "X''"), (b"\x00\xff", "X'00ff'"), (7, "7"), (0.1, "0.1")],
)
def test_literals(value: Stored, sql: str) -> None:
    assert literal(value) == sql
