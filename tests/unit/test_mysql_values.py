"""Values on their way to MySQL and MariaDB: what fits arrives as it was, what does not says why and what comes nearest."""

from __future__ import annotations

import json
import math
import struct
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamer.sinks.mysql_values import TargetColumn, converter, load_expression, takes_bytes
from streamer.sinks.postgres_types import OIDS
from streamer.sinks.unrepresentable import Unrepresentable

USER_TYPE = 20_000
TEXTS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))


def column(declared: str, **more: Any) -> TargetColumn:  # noqa: ANN401  # fields of TargetColumn
    return TargetColumn("c", declared.partition("(")[0].partition(" ")[0], declared, **more)


def stored(type_name: str, target: TargetColumn, text: str) -> object:
    """What is written of the text."""
    convert = converter(OIDS.get(type_name, USER_TYPE), target)
    return text if convert is None else convert(text)


def kept_or_nearest(type_name: str, target: TargetColumn, text: str) -> object:
    try:
        kept = stored(type_name, target, text)
    except Unrepresentable as refused:
        return refused.nearest
    assert kept == text
    return kept


TINYINT = column("tinyint(1)")
INT = column("int(11)")
BIGINT = column("bigint(20)")
DECIMAL = column("decimal(7,2)", precision=7, scale=2)
DATETIME = column("datetime(6)", fraction=6)
SECONDS = column("datetime", fraction=0)
DATE = column("date")
TIME = column("time(6)", fraction=6)
STAMP = column("timestamp(6)", fraction=6)
VARCHAR = column("varchar(3)", length=3, charset="utf8mb4")
BLOB = column("longblob", length=2**32 - 1)


# -- there and back ---------------------------------------------------------------------------------------------------------------


@given(st.integers(-(2**63), 2**63 - 1))
def test_an_integer_stays_what_it_is_in_every_column_that_holds_it(number: int) -> None:
    for name, bits in (("smallint", 16), ("int", 32), ("bigint", 64)):
        target = column(name)
        for source in ("bigint", "numeric", "price"):
            if -(2 ** (bits - 1)) <= number < 2 ** (bits - 1):
                assert int(str(stored(source, target, str(number)))) == number
            else:
                with pytest.raises(Unrepresentable) as refused:
                    stored(source, target, str(number))
                assert int(str(refused.value.nearest)) == max(-(2 ** (bits - 1)), min(number, 2 ** (bits - 1) - 1))


@given(st.decimals(allow_nan=False, allow_infinity=False, places=2, min_value=-99999, max_value=99999))
def test_a_decimal_that_fits_stays_what_it_is(number: Decimal) -> None:
    assert Decimal(str(stored("numeric", DECIMAL, f"{number:f}"))) == number


@given(st.decimals(allow_nan=False, allow_infinity=False))
def test_a_decimal_fits_exactly_or_is_told(number: Decimal) -> None:
    text = f"{number:f}"
    nearest = Decimal(str(kept_or_nearest("numeric", DECIMAL, text)))
    bounded = min(max(number, -Decimal("99999.99")), Decimal("99999.99"))
    assert abs(nearest) <= Decimal("99999.99")
    assert abs(nearest - bounded) <= Decimal("0.005")


@given(st.floats())
def test_a_float_is_kept_unless_it_is_none(number: float) -> None:
    text = {math.inf: "Infinity", -math.inf: "-Infinity"}.get(number, "NaN" if math.isnan(number) else repr(number))
    if math.isfinite(number):
        assert float(str(stored("double precision", column("double"), text))) == number
    else:
        with pytest.raises(Unrepresentable):
            stored("double precision", column("double"), text)


@given(st.floats(width=32, allow_nan=False, allow_infinity=False, min_value=-(2.0**127), max_value=2.0**127))
def test_a_float_of_single_precision_is_kept_by_such_a_column(number: float) -> None:
    text = str(stored("double precision", column("float"), repr(number)))
    assert struct.unpack("f", struct.pack("f", float(text)))[0] == number


@given(st.integers(-(10**18), 10**18))
def test_money_is_read(cents: int) -> None:
    text = f"{'-' if cents < 0 else ''}${abs(cents) // 100:,}.{abs(cents) % 100:02}"
    target = column("decimal(19,2)", precision=19, scale=2)
    assert Decimal(str(stored("money", target, text))) == Decimal(cents) / 100


@given(st.datetimes())
def test_a_moment_stays_what_it_is(moment: datetime) -> None:
    text = moment.isoformat(" ")
    for source, zone in (("timestamp without time zone", ""), ("timestamp with time zone", "+00"), ("domain", "+00")):
        assert datetime.fromisoformat(str(stored(source, DATETIME, text + zone))) == moment
    if moment.microsecond == 0:
        assert stored("timestamp without time zone", SECONDS, text) == text
    else:
        with pytest.raises(Unrepresentable) as refused:
            stored("timestamp without time zone", SECONDS, text)
        assert datetime.fromisoformat(str(refused.value.nearest)) == moment.replace(microsecond=0)


@given(st.dates(), st.times())
def test_a_day_and_a_time_stay_what_they_are(day: date, at: time) -> None:
    assert stored("date", DATE, str(day)) == str(day)
    assert time.fromisoformat(str(stored("time without time zone", TIME, str(at)))) == at


@given(TEXTS)
def test_a_text_is_kept_or_cut_and_told(text: str) -> None:
    assert stored("text", column("longtext", length=2**32 - 1, charset="utf8mb4"), text) == text
    assert kept_or_nearest("text", VARCHAR, text) == text[:3]


@given(TEXTS, st.integers(0, 12))
def test_a_text_measured_in_bytes_is_cut_between_characters(text: str, limit: int) -> None:
    kept = str(kept_or_nearest("text", column("text", length=limit, charset="utf8mb4"), text))
    assert text.startswith(kept)
    assert limit - 4 < len(kept.encode()) <= limit or kept == text


@given(st.binary())
def test_bytes_stay_what_they_are(data: bytes) -> None:
    for source in ("bytea", "domain over bytea"):
        assert stored(source, BLOB, f"\\x{data.hex()}") == data


@given(st.uuids())
def test_a_uuid_goes_into_sixteen_bytes(value: Any) -> None:  # noqa: ANN401  # hypothesis does not say
    assert stored("uuid", column("binary(16)", length=16), str(value)) == value.bytes


@given(st.integers(1, 64).flatmap(lambda width: st.text("01", min_size=width, max_size=width)))
def test_bits_are_a_number(bits: str) -> None:
    assert stored("bit", column("bit", precision=len(bits)), bits) == int(bits, 2)


@given(st.recursive(st.none() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS, st.lists))
def test_json_that_a_json_column_keeps_goes_as_it_is(value: Any) -> None:  # noqa: ANN401  # any JSON
    assert stored("jsonb", column("json"), json.dumps(value)) == json.dumps(value)


# -- what does not fit ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "target", "text", "reason", "nearest"),
    [
        ("numeric", DECIMAL, "NaN", "is not a number", None),
        ("numeric", DECIMAL, "-Infinity", "is infinite", "-99999.99"),
        ("numeric", DECIMAL, "99999.999", "is not within", "99999.99"),
        ("numeric", DECIMAL, "1.005", "more than 2 decimal places", "1.01"),
        ("numeric", column("decimal(5,2) unsigned", precision=5, scale=2), "-1", "is not within 0", "0"),
        ("numeric", INT, "2.5", "not a whole number", "3"),
        ("numeric", INT, "9" * 5000, "is not within", "2147483647"),
        ("text", INT, "many", "is not a number", None),
        ("numeric", column("double"), "12345678901234567890.5", "more digits", "1.2345678901234567e+19"),
        ("numeric", column("double"), "1" + "0" * 400, "out of range", "1.7976931348623157e308"),
        ("double precision", column("double"), "-Infinity", "is infinite", "-1.7976931348623157e308"),
        ("double precision", column("float"), "1e39", "out of range", "3.40282e38"),
        ("double precision", column("float"), "0.1", "more digits", "0.1"),
        ("date", DATE, "infinity", "is infinite", "9999-12-31"),
        ("date", DATE, "0044-03-15 BC", "lies before", "0001-01-01"),
        ("date", DATE, "5874897-12-31", "lies after", "9999-12-31"),
        ("timestamp without time zone", DATE, "2020-01-02 00:00:01", "has a time", "2020-01-02"),
        ("timestamp with time zone", DATETIME, "-infinity", "is infinite", "0001-01-01 00:00:00"),
        ("timestamp with time zone", DATETIME, "10000-01-01 00:00:00+00", "lies after", "9999-12-31 23:59:59.999999"),
        ("timestamp with time zone", STAMP, "1969-12-31 23:59:59+00", "lies before", "1970-01-01 00:00:01"),
        ("timestamp with time zone", STAMP, "2038-01-19 03:14:08+00", "is not within", "2038-01-19 03:14:07.999999"),
        ("timestamp with time zone", DATETIME, "2020-01-02 00:00:00+05:30", "not in UTC", "2020-01-02 00:00:00"),
        ("text", DATETIME, "soon", "is not a date", None),
        ("time with time zone", TIME, "12:00:00+02", "without a zone", None),
        ("time without time zone", column("time", fraction=0), "12:00:00.5", "more than 0 decimal places", "12:00:00"),
        ("text", VARCHAR, "abc ", "has 4 characters", "abc"),
        ("text", column("char(5)", length=5), "ab ", "ends with a blank", "ab"),
        ("text", column("varchar(9)", length=9, charset="utf8mb3"), "a🐘", "characters that utf8mb3 lacks", "a?"),
        ("text", column("varchar(9)", length=9, charset="latin1"), "a日", "characters that latin1 lacks", "a?"),
        ("bytea", column("varbinary(2)", length=2), "\\x010203", "has 3 bytes", b"\x01\x02"),
        ("bytea", column("binary(2)", length=2), "\\x01", "would add zeros", b"\x01"),
        ("bit varying", column("bit(4)", precision=4), "1", "has 1 bits", 1),
        ("text", column("bit(4)", precision=4), "two", "not a string of bits", None),
        ("uuid", column("uuid"), "afa72874-47c6-d04c-43c5-fb06874b97f4", "refuses", None),
        ("text", column("uuid"), "x", "is not a UUID", None),
        ("inet", column("inet6"), "::1/64", "has a netmask", "::1"),
        ("inet", column("inet6"), "1.2.3.4", "version 6", "::ffff:1.2.3.4"),
        ("inet", column("inet4"), "::1", "version 4", None),
        ("text", column("inet4"), "here", "is not an address", None),
        ("enum", column("enum('a','it''s')"), "b", "none of the column's 2 labels", None),
        ("jsonb", column("json"), "1.00000000000000000001", "which a JSON column rounds", "1.00000000000000000001"),
        ("jsonb", column("json"), "18446744073709551616", "which a JSON column rounds", "18446744073709551616"),
        ("json", column("json"), '{"a":1,"a":2}', "has a key twice", '{"a":1,"a":2}'),
        ("json", column("json"), "[" * 101 + "]" * 101, "nested deeper", None),
        ("json", column("json"), "[" * 100_000 + "]" * 100_000, "nested deeper", None),
        ("text", column("json"), "{", "is not JSON", None),
    ],
)
def test_what_a_column_cannot_hold_says_why(source: str, target: TargetColumn, text: str, reason: str, nearest: object) -> None:
    with pytest.raises(Unrepresentable) as refused:
        stored(source, target, text)
    assert reason in str(refused.value)
    assert refused.value.nearest == nearest
    if isinstance(nearest, str) and target.data_type not in ("float", "json"):  # these round by themselves
        assert stored("text", target, nearest) == nearest


@pytest.mark.parametrize(
    ("source", "target", "text", "expected"),
    [
        ("boolean", TINYINT, "t", "1"),
        ("a domain", TINYINT, "f", "0"),
        ("a domain", INT, "12", "12"),
        ("boolean", column("bit(1)", precision=1), "t", 1),
        ("boolean", VARCHAR, "t", "t"),
        ("text", BLOB, "\\x00", b"\\x00"),
        ("a domain", BLOB, "no bytes", b"no bytes"),
        ("numeric", column("decimal(2,2)", precision=2, scale=2), "-0.15", "-0.15"),
        ("time without time zone", TIME, "24:00:00", "24:00:00"),
        ("character", column("char(5)", length=5), "ab   ", "ab   "),
        ("character", VARCHAR, "ab   ", "ab   "),
        ("inet", column("inet6"), "::1", "::1"),
        ("enum", column("enum('a','it''s')"), "it's", "it's"),
        ("money", column("double"), "-$1,234.50", "-1234.50"),
        ("date", column("year(4)"), "2020", "2020"),
    ],
)
def test_what_fits_is_written_so(source: str, target: TargetColumn, text: str, expected: object) -> None:
    assert stored(source, target, text) == expected


@pytest.mark.parametrize(
    ("source", "target"),
    [("integer", INT), ("integer", BIGINT), ("uuid", column("longtext", length=2**32 - 1)), ("text", column("year"))],
)
def test_nothing_is_done_to_values_that_always_fit(source: str, target: TargetColumn) -> None:
    assert converter(OIDS[source], target) is None


def test_a_file_of_load_data_holds_bytes_in_hexadecimal() -> None:
    assert [load_expression(target, "@a") for target in (BLOB, column("bit(3)", precision=3), INT)] == [
        "UNHEX(@a)",
        "CAST(@a AS UNSIGNED)",
        "@a",
    ]
    assert [takes_bytes(target) for target in (BLOB, INT)] == [True, False]
