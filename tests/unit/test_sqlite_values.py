"""Values on their way to SQLite: what a STRICT table cannot hold is told, and all else reads back as it was."""

from __future__ import annotations

import sqlite3
from contextlib import closing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamer.sinks.postgres_types import OIDS
from streamer.sinks.sqlite_values import conversion
from streamer.sinks.unrepresentable import Unrepresentable

USER_TYPE = 20_000


def stored(type_name: str, declared: str, text: str, *, strict: bool = True) -> object:
    convert = conversion(OIDS.get(type_name, USER_TYPE), declared, strict=strict)
    return text if convert is None else convert(text)


def as_text(value: object) -> str:
    return f"\\x{value.hex()}" if isinstance(value, bytes) else repr(value) if isinstance(value, float) else str(value)


@given(st.floats())
def test_every_float_comes_back(number: float) -> None:
    text = {"inf": "Infinity", "-inf": "-Infinity", "nan": "NaN"}.get(repr(number), repr(number))
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.execute("CREATE TABLE t (f ANY) STRICT")
        connection.execute("INSERT INTO t VALUES (?)", (stored("double precision", "ANY", text),))
        assert as_text(*connection.execute("SELECT f FROM t").fetchone()) == text


@given(st.integers(-(2**64), 2**64))
def test_an_integer_comes_back_or_is_told(number: int) -> None:
    if not -(2**63) <= number < 2**63:
        with pytest.raises(Unrepresentable) as refused:
            stored("numeric", "INTEGER", str(number))
        assert refused.value.nearest == (2**63 - 1 if number > 0 else -(2**63))
        return
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.execute("CREATE TABLE t (i INTEGER) STRICT")
        connection.execute("INSERT INTO t VALUES (?)", (stored("numeric", "INTEGER", str(number)),))
        assert connection.execute("SELECT i FROM t").fetchone() == (number,)


@pytest.mark.parametrize(
    ("source", "declared", "text", "reason", "nearest"),
    [
        ("numeric", "INTEGER", "1.5", "not a whole number", 2),
        ("numeric", "INTEGER", "-Infinity", "is not within", -(2**63)),
        ("numeric", "INT", "NaN", "not a number", None),
        ("text", "INTEGER", "one", "is not a number", None),
        ("double precision", "REAL", "NaN", "not a number", None),
        ("numeric", "REAL", "NaN", "not a number", None),
        ("numeric", "REAL", "12345678901234567890.5", "more digits", 1.2345678901234567e19),
        ("numeric", "REAL", "-1" + "0" * 400, "out of range", -1.7976931348623157e308),
        ("bigint", "REAL", "9007199254740993", "more digits", 9007199254740992.0),
    ],
)
def test_what_a_strict_column_cannot_hold_says_why(source: str, declared: str, text: str, reason: str, nearest: object) -> None:
    with pytest.raises(Unrepresentable, match=reason) as refused:
        stored(source, declared, text)
    assert refused.value.nearest == nearest


@pytest.mark.parametrize(
    ("source", "declared", "strict", "text", "expected"),
    [
        ("boolean", "INTEGER", True, "t", 1),
        ("boolean", "INTEGER", False, "f", 0),
        ("boolean", "TEXT", True, "t", "t"),
        ("a domain", "INTEGER", True, "t", 1),
        ("a domain", "INTEGER", False, "t", 1),
        ("a domain", "INTEGER", False, "7", "7"),
        ("a domain", "BLOB", False, "\\x0001", b"\0\1"),
        ("a domain", "BLOB", True, "\\x0001", b"\0\1"),
        ("a domain", "BLOB", True, "words", b"words"),
        ("a domain", "ANY", True, "1.5e-07", 1.5e-7),
        ("a domain", "ANY", True, "words", "words"),
        ("a domain", "TEXT", True, "\\x0001", "\\x0001"),
        ("bytea", "BLOB", True, "\\x0001", b"\0\1"),
        ("bytea", "TEXT", True, "\\x0001", "\\x0001"),
        ("bytea", "", False, "\\x0001", b"\0\1"),
        ("text", "BLOB", True, "ä", "ä".encode()),
        ("real", "REAL", False, "NaN", "NaN"),
        ("real", "REAL", False, "-1.5", -1.5),
        ("real", "REAL", True, "-Infinity", float("-inf")),
        ("integer", "REAL", True, "5", 5.0),
        ("numeric", "TEXT", True, "1.50", "1.50"),
    ],
)
def test_values_are_converted_by_type_and_column(source: str, declared: str, strict: bool, text: str, expected: object) -> None:
    found = stored(source, declared, text, strict=strict)
    assert (found, type(found)) == (expected, type(expected))
