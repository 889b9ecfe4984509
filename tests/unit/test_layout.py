"""The named cells of wal2json rows become rows: values, what null may mean, and tables that change."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamer.errors import DecodeError
from streamer.model import UNCHANGED, Identity, Kind
from tests.unit.wal2json_payloads import (
    BOOL,
    BYTEA,
    FLOAT8,
    INT,
    KEY,
    NUMERIC,
    PLAIN,
    ROW,
    TEXT,
    Catalog,
    T,
    cells,
    change,
    change_json,
    inserted,
    table,
)

# -- values -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("oid", "sent", "text"),
    [
        (BOOL, "true", "t"),
        (BOOL, "false", "f"),
        (BYTEA, '"00ff"', "\\x00ff"),
        (BYTEA, '""', "\\x"),
        (INT, "-2147483648", "-2147483648"),
        (INT, "0", "0"),
        (20, "-9223372036854775808", "-9223372036854775808"),
        (26, "4294967295", "4294967295"),
        (NUMERIC, "0", "0"),
        (NUMERIC, "100", "100"),
        (NUMERIC, "100.00", "100.00"),
        (NUMERIC, "0.00", "0.00"),
        (NUMERIC, "18446744073709551616", "18446744073709551616"),
        (NUMERIC, "-9223372036854775809", "-9223372036854775809"),
        (NUMERIC, "9" * 5000, "9" * 5000),
        (NUMERIC, f"{'9' * 400}.{'1' * 60}", f"{'9' * 400}.{'1' * 60}"),
        (FLOAT8, "-0", "-0"),
        (FLOAT8, "0", "0"),
        (FLOAT8, "1e+22", "1e+22"),
        (FLOAT8, "1.7976931348623157e+308", "1.7976931348623157e+308"),
        (FLOAT8, "5e-324", "5e-324"),
        (TEXT, '"\\"value\\":1.50,{} \\u0001 żółw"', '"value":1.50,{} \x01 żółw'),
        (16401, '"t"', "t"),  # a domain over bool
        (16402, '"\\\\x00ff"', "\\x00ff"),  # a domain over bytea
    ],
)
def test_values_are_the_text_that_postgresql_writes(oid: int, sent: str, text: str) -> None:
    row = cells(("id", INT, "1"), ("v", oid, sent))
    assert inserted(row, table(("id", INT), ("v", oid))) == ("1", text)


@pytest.mark.parametrize("oid", [INT, NUMERIC, FLOAT8])
def test_numbers_as_strings_are_taken_as_they_are(oid: int) -> None:
    row = cells(("id", INT, '"1"'), ("v", oid, '"-0"'), ("w", NUMERIC, '"NaN"'), ("x", oid, "null"))
    known = table(("id", INT), ("v", oid), ("w", NUMERIC), ("x", oid))
    assert inserted(row, known, numbers_are_strings=True) == ("1", "-0", "NaN", None)


@given(st.decimals(allow_nan=False, allow_infinity=False))
def test_any_number_keeps_its_digits(number: Decimal) -> None:
    text = format(number, "f")
    row = cells(("id", INT, "1"), ("v", NUMERIC, text))
    assert inserted(row, table(("id", INT), ("v", NUMERIC))) == ("1", text)


def test_a_payload_in_the_encoding_of_the_database_is_converted() -> None:
    payload = change_json("I", cells(("id", INT, "1"), ("name", TEXT, '"Ã©"'), ("n", INT, "2"))).decode().encode("latin-1")
    assert change(payload, Catalog(PLAIN).decoder(encoding="iso8859-1"))[3] == ("1", "Ã©", "2")


# -- null, which may be NaN -------------------------------------------------------------------------------------------

NUMBERS = [("id", INT), ("f", FLOAT8), ("name", TEXT), ("x", NUMERIC)]
NULLS = cells(("id", INT, "1"), ("f", FLOAT8, "null"), ("name", TEXT, '"a"'), ("x", NUMERIC, "null"))


def test_null_numbers_are_read_again_by_the_key() -> None:
    catalog = Catalog(table(*NUMBERS), reread=["NaN", None])
    decoder = catalog.decoder()
    assert change(change_json("I", NULLS), decoder)[3] == ("1", "NaN", "a", None)
    assert change(change_json("U", NULLS, KEY), decoder)[3] == ("1", "NaN", "a", None)
    assert catalog.reread_keys == [(("1", UNCHANGED, UNCHANGED, UNCHANGED), [1, 3])] * 2


def test_numbers_that_are_not_null_are_not_read_again() -> None:
    catalog = Catalog(table(*NUMBERS))
    row = cells(("id", INT, "1"), ("f", FLOAT8, "1.5"), ("name", TEXT, "null"), ("x", NUMERIC, "7"))
    assert change(change_json("I", row), catalog.decoder())[3] == ("1", "1.5", None, "7")
    assert catalog.reread_keys == []


def test_a_null_number_without_a_key_is_refused_with_the_remedy() -> None:
    keyless = table(*NUMBERS, identity=Identity.FULL, key=())
    decoder = Catalog(keyless).decoder()
    for payload in (change_json("I", NULLS), change_json("D", None, NULLS), change_json("U", NULLS, NULLS)):
        with pytest.raises(DecodeError, match=r'"public\.t": .*column "f", "x".*no key.*primary key.*2\.6.*pgoutput'):
            decoder.decode(payload)


def test_a_key_that_is_nan_itself_is_refused() -> None:
    keyed = table(("id", FLOAT8), ("name", TEXT))
    with pytest.raises(DecodeError, match="no key"):
        inserted(cells(("id", FLOAT8, "null"), ("name", TEXT, '"a"')), keyed)
    with pytest.raises(DecodeError, match="no key"):
        Catalog(keyed).decoder().decode(change_json("D", None, cells(("id", FLOAT8, "null"))))


def test_a_null_number_of_a_full_old_row_is_unknown_where_a_key_finds_the_row() -> None:
    decoder = Catalog(table(*NUMBERS, identity=Identity.FULL)).decoder()
    assert change(change_json("D", None, NULLS), decoder)[2] == ("1", UNCHANGED, "a", UNCHANGED)


# -- the table changes ------------------------------------------------------------------------------------------------


def test_a_column_that_the_relation_lacks_is_looked_up() -> None:
    catalog = Catalog(PLAIN)
    decoder = catalog.decoder()
    first = change(change_json("I", ROW), decoder)[1]
    catalog.tables[T] = table(("id", INT), ("name", TEXT), ("n", INT), ("more", BOOL))
    _, later, _, new = change(change_json("I", f"{ROW},{cells(('more', BOOL, 'true'))}"), decoder)
    assert new == ("1", "a", "2", "t")
    assert later is not first
    assert len(catalog.asked) == 2


def test_rows_written_before_the_catalog_changed_are_read_as_they_were_written() -> None:
    now = table(("id", INT), ("name", BYTEA), ("added", TEXT))
    catalog = Catalog(now)
    decoder = catalog.decoder()
    _, then, _, new = change(change_json("I", ROW), decoder)
    assert [(c.name, c.type_oid, c.identity) for c in then.columns] == [
        ("id", INT, True),
        ("name", TEXT, False),
        ("n", INT, False),
    ]
    assert new == ("1", "a", "2")
    assert change(change_json("U", ROW, KEY), decoder) == (Kind.UPDATE, then, None, ("1", "a", "2"))
    row = cells(("id", INT, "1"), ("name", BYTEA, '"00"'), ("added", TEXT, "null"))
    assert change(change_json("I", row), decoder) == (Kind.INSERT, now.relation, None, ("1", "\\x00", None))


def test_rows_of_a_table_that_is_gone_are_read_by_what_was_known() -> None:
    catalog = Catalog(PLAIN)
    decoder = catalog.decoder()
    change(change_json("I", ROW), decoder)
    del catalog.tables[T]
    assert change(change_json("I", cells(("id", INT, "1"), ("name", TEXT, '"a"'))), decoder)[3] == ("1", "a")


def test_an_identity_that_became_full_is_seen_in_the_row() -> None:
    catalog = Catalog(PLAIN)
    decoder = catalog.decoder()
    change(change_json("U", ROW, KEY), decoder)
    catalog.tables[T] = table(("id", INT), ("name", TEXT), ("n", INT), identity=Identity.FULL)
    _, full, old, _ = change(change_json("U", ROW, ROW), decoder)
    assert (full.identity, old) == (Identity.FULL, ("1", "a", "2"))
    catalog.tables[T] = PLAIN
    _, again, old, _ = change(change_json("U", ROW, KEY), decoder)
    assert (again, old) == (PLAIN.relation, None)


def test_an_identity_that_the_catalog_has_forgotten_is_derived() -> None:
    decoder = Catalog(PLAIN).decoder()
    _, derived, old, new = change(change_json("U", ROW, ROW), decoder)
    assert derived.identity is Identity.FULL
    assert all(c.identity for c in derived.columns)
    assert (old, new) == (("1", "a", "2"), ("1", "a", "2"))
    by_index = cells(("name", TEXT, '"old"'))
    _, derived, old, _ = change(change_json("U", ROW, by_index), decoder)
    assert [c.identity for c in derived.columns] == [False, True, False]
    assert old == (UNCHANGED, "old", UNCHANGED)


def test_oids_past_the_signed_range_are_understood() -> None:
    known = table(("id", INT), ("v", 4000000000))
    assert inserted(cells(("id", INT, "1"), ("v", 4000000000 - 2**32, '"x"')), known) == ("1", "x")


def test_without_types_an_altered_table_is_refused_with_the_remedy() -> None:
    catalog = Catalog(PLAIN)
    row = cells(("id", None, "1"), ("name", None, '"a"'), ("n", None, "2"))
    assert change(change_json("I", row), catalog.decoder())[3] == ("1", "a", "2")
    for columns in (f"{row},{cells(('gone', None, '1'))}", row.replace('"a"', "12")):
        with pytest.raises(DecodeError, match=r"altered.*wal2json 2\.5 or newer"):
            catalog.decoder().decode(change_json("I", columns))
