"""Rows that are read by the shape of those before them mean what a parser makes of them."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamer.capture.wal2json import Wal2jsonDecoder
from streamer.model import LSN, UNCHANGED, Identity, Kind
from tests.unit.wal2json_payloads import BOOL, BYTEA, FLOAT8, INT, NUMERIC, TEXT, Catalog, cells, change, change_json, table

INT8, TIMESTAMP = 20, 1114
VALUES = {
    INT8: st.integers(-(2**63), 2**63 - 1).map(str),
    INT: st.integers(-(2**31), 2**31 - 1).map(str) | st.just("null"),
    NUMERIC: st.sampled_from(["0", "-1.50", "12345678901234567890.000000001", "null"]),
    FLOAT8: st.sampled_from(["0", "-0", "1", "0.1", "1e+300", "-2.5e-07", "null"]),
    BOOL: st.sampled_from(["true", "false", "null"]),
    TEXT: (st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")) | st.none()).map(
        lambda text: json.dumps(text, ensure_ascii=False)
    ),
    BYTEA: st.sampled_from(['"00ff"', '""', "null"]),
    TIMESTAMP: st.just('"2026-11-21 19:10:02.416855"'),
}
NAMES = {INT8: "id", INT: "n [x]", NUMERIC: 'a "b"', FLOAT8: "f", BOOL: "b", TEXT: "é", BYTEA: "raw", TIMESTAMP: "at"}


@st.composite
def histories(draw: st.DrawFn) -> tuple[list[int], list[bytes]]:
    """The types of a table's columns, and payloads of its rows."""
    types = [INT8, *draw(st.lists(st.sampled_from(sorted(VALUES.keys() - {INT8})), max_size=5, unique=True))]
    if draw(st.booleans()):
        types.reverse()
    payloads = []
    for _ in range(draw(st.integers(2, 6))):
        values = {oid: draw(VALUES[oid]) for oid in types}
        absent = draw(st.sampled_from([None, None, TEXT]))
        columns = cells(*((NAMES[oid], oid, values[oid]) for oid in types if oid != absent))
        key = cells((NAMES[INT8], INT8, draw(st.sampled_from([values[INT8], "7"]))))
        whole = cells(*((NAMES[oid], oid, values[oid]) for oid in types))
        payloads += draw(
            st.sampled_from([[change_json("I", whole)], [change_json("U", columns, key)], [change_json("D", None, key)]])
        )
    return types, payloads


@given(histories())
def test_a_row_means_the_same_whatever_came_before_it(history: tuple[list[int], list[bytes]]) -> None:
    types, payloads = history
    catalog = Catalog(table(*((NAMES[oid], oid) for oid in types)))

    def fresh() -> Wal2jsonDecoder:
        return Wal2jsonDecoder(
            catalog.lookup,
            lambda relation, key, columns: ["NaN"] * len(columns),
            lambda: LSN(0),
            numbers_are_strings=False,
        )

    decoder = fresh()
    for payload in payloads:
        kind, relation, old, new = change(payload, decoder)
        parsed = change(payload, fresh())
        assert (kind, relation.columns, old, new) == (parsed[0], parsed[1].columns, parsed[2], parsed[3])


def test_only_the_first_row_of_a_kind_is_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = Catalog(table(("id", INT), ("name", TEXT))).decoder()
    row, key = cells(("id", INT, "{0}"), ("name", TEXT, '"{0}"')), cells(("id", INT, "{0}"))
    kinds = [("I", row, None), ("U", row, key), ("D", None, key)]

    def payload(number: int, action: str, *parts: str | None) -> bytes:
        columns, identity = (part and part.replace("{0}", str(number)) for part in parts)
        return change_json(action, columns, identity)

    for kind in kinds:
        decoder.decode(payload(1, *kind))
    monkeypatch.setattr("orjson.loads", lambda payload: pytest.fail(f"parsed: {payload}"))
    found = [change(payload(2, *kind), decoder) for kind in kinds]
    assert [c[2:] for c in found] == [(None, ("2", "2")), (None, ("2", "2")), (("2", UNCHANGED), None)]


def test_a_column_that_is_added_changes_the_shape() -> None:
    catalog = Catalog(table(("id", INT)))
    decoder = catalog.decoder()
    one = change_json("I", cells(("id", INT, "1")))
    two = change_json("I", cells(("id", INT, "2"), ("n", INT, "3")))
    rows = [change(payload, decoder) for payload in (one, one)]
    catalog.tables = Catalog(table(("id", INT), ("n", INT))).tables
    rows += [change(payload, decoder) for payload in (two, two)]
    assert [(c[1].names, c[3]) for c in rows] == [(("id",), ("1",))] * 2 + [(("id", "n"), ("2", "3"))] * 2


def test_full_identity_is_parsed_every_time() -> None:
    decoder = Catalog(table(("id", INT), ("name", TEXT), identity=Identity.FULL)).decoder()
    old, new = cells(("id", INT, "1"), ("name", TEXT, '"a"')), cells(("id", INT, "1"), ("name", TEXT, '"b"'))
    for _ in range(2):
        kind, _, before, after = change(change_json("U", new, old), decoder)
        assert (kind, before, after) == (Kind.UPDATE, ("1", "a"), ("1", "b"))
