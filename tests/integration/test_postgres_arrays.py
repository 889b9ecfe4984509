"""Some rows that travel as the arrays of one statement are what they would be, had each come in a statement of its own."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import pytest

from streamer.errors import ApplyError
from streamer.model import UNCHANGED, Change, Column, Identity, Relation, Row, TableName
from streamer.sinks import postgres_apply, postgres_arrays
from tests.changes import delete, group, insert, relation, table, update, write
from tests.integration.targets import PostgresTarget, opened
from tests.servers import Database

MADE = """
CREATE TYPE pair AS (a integer, b text);
CREATE TYPE "od'd ""type%" AS ENUM ('it''s', 'NULL', '"', '\\', '%s');
CREATE DOMAIN many AS integer[];
CREATE DOMAIN few AS varchar(5);
CREATE DOMAIN pairs AS pair
"""
VALUES: dict[str, Sequence[str | None]] = {
    "text": ("", "NULL", "null", '"', "\\", '\\"', "{1,2}", ",", ";", " a ", "\t\n\r", "%s", "%", "'", "\x01\u2028é😀", None),
    "integer[]": ("{}", "{1,NULL,3}", "{{1,2},{3,4}}", "[0:1]={1,2}", None),
    "text[]": ('{"",NULL,"NULL"}', '{"a\\"b","c\\\\d"}', '{{a,"b,c"}}'),
    "pair": ('(1,"a,""b")', "(,)", '(2,"")', "(3,\\\\)", None),
    "pair[]": ('{"(1,a)","(,)"}', "{}"),
    "pairs": ("(1,a)", "(,)"),
    "many": ("{{1},{2}}", "{}", None),
    "few": ("abcde", "", None),
    "box": ("(2,2),(1,1)", "(0,0),(0,0)", None),
    "box[]": ("{(2,2),(1,1);(3,3),(0,0)}", "{}"),
    "point": ("(1,2)", None),
    '"od\'d ""type%"': ("it's", "NULL", '"', "\\", "%s", None),
    "character(3)": ("a  ", "abc", "   "),
    "bit(3)": ("101", None),
    "bit varying": ("", "10101"),
    '"char"': ("a", "", "\\"),
    "name": ("a b", ""),
    "bytea": ("\\x", "\\x00ff5c22", None),
    "json": ('{"a": "b\\"c"}', "null", None),
    "jsonb": ('{"a": [1, "x\\\\y"]}', "null"),
    "xml": ('<a b="c"/>', "", None),
    "double precision": ("NaN", "-Infinity", "-0", "1e-300"),
    "numeric": ("NaN", "0.10", "Infinity"),
    "date": ("infinity", "0044-03-15 BC"),
    "timestamp with time zone": ("2026-01-02 03:04:05.678901+00", "-infinity"),
    "interval": ("-1 mons +2 days -03:04:05", "00:00:00"),
    "money": ("$1,234.50", "-$0.01"),
    "int4range": ("empty", "[1,3)", "(,)"),
    "inet": ("10.0.0.0/8", "::1"),
    "tsvector": ("'a':1A 'b c':2",),
    "uuid": ("00000000-0000-0000-0000-000000000001",),
    "regclass": ("pg_class", "streamer.progress", "-"),
    "oidvector": ("1 2 3", ""),
    "int2vector": ("1 2",),
}
"""Values of types, as the server writes them."""


TABLES = "t", "u"


@pytest.fixture
def target(target15: Database) -> PostgresTarget:
    target15.execute(MADE)
    columns = ", ".join(f'"c{i} ""%" {kind}' for i, kind in enumerate(VALUES))
    for name in TABLES:
        target15.execute(
            f"CREATE TABLE {name} (id integer PRIMARY KEY, {columns}, made integer GENERATED ALWAYS AS (id + 1) STORED)"
        )
    return PostgresTarget(target15)


def described(name: str) -> Relation:
    names = ["id", *(f'c{i} "%' for i in range(len(VALUES)))]
    return Relation(TableName("public", name), tuple(Column(n, 0, n == "id") for n in names), Identity.DEFAULT)


def test_rows_of_every_type_travel_in_arrays_as_they_would_one_by_one(
    target: PostgresTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    dice = random.Random(seed)

    def rows(ids: range, known: int = len(VALUES)) -> list[Row]:
        """Some rows, the last of whose columns have not changed."""
        unchanged = [UNCHANGED] * (len(VALUES) - known)
        return [(str(i), *list(map(dice.choice, VALUES.values()))[:known], *unchanged) for i in ids]

    steps: Sequence[tuple[Callable[..., Change], Sequence[Row]]] = (
        (insert, rows(range(40))),
        (update, rows(range(0, 40, 2))),
        (update, rows(range(1, 40, 2), known=5)),
        (delete, rows(range(10))),
    )
    shown = ", ".join(["id::text", "made::text", *(f'"c{i} ""%"::text' for i in range(len(VALUES)))])
    with opened(target) as sink:
        for to, (kind, changed) in enumerate(steps, 200):
            for half, least in enumerate((1, 1 << 30)):  # all in arrays, none
                monkeypatch.setattr(postgres_apply, "ARRAY_ROWS", least)
                name = TABLES[half]
                write(sink, group(*(kind(described(name), *row) for row in changed), to=2 * to + half))
            in_arrays, singly = (target.database.query(f"SELECT {shown} FROM {name} ORDER BY id") for name in TABLES)
            assert in_arrays == singly
    assert len(singly) == 30


def test_a_value_that_an_array_cannot_bring_to_its_column_is_told_with_its_row(target: PostgresTarget) -> None:
    """A cast would have cut it."""
    target.database.execute("CREATE TABLE v (id integer PRIMARY KEY, v varchar(3))")
    r = relation(table("v", id="integer", v="text"))
    with opened(target) as sink:
        write(sink, group(*(insert(r, str(i), "abc") for i in range(9)), to=300))
        with pytest.raises(ApplyError, match=r"update of id=5: value too long for type character varying\(3\)"):
            write(sink, group(*(update(r, str(i), "abcd" if i == 5 else "ab") for i in range(9)), to=400))
    assert target.database.query("SELECT v, count(*) FROM v GROUP BY v") == [("abc", 9)]


@pytest.mark.parametrize("limit", ["MANY_BYTES", "MANY_VALUES"])
def test_rows_too_large_for_arrays_are_written(target: PostgresTarget, monkeypatch: pytest.MonkeyPatch, limit: str) -> None:
    monkeypatch.setattr(postgres_arrays, limit, 10)
    target.database.execute("CREATE TABLE v (id integer PRIMARY KEY, v text)")
    r = relation(table("v", id="integer", v="text"))
    with opened(target) as sink:
        for to, number in ((300, 10), (500, 100)):  # few, for single statements, and many, for COPY
            write(sink, group(*(insert(r, str(i), "a" * 200) for i in range(number)), to=to))
            write(sink, group(*(update(r, str(i), "b" * 200) for i in range(number)), to=to + 1))
            assert target.database.query("SELECT v, count(*) FROM v GROUP BY v") == [("b" * 200, number)]
            assert write(sink, group(*(delete(r, str(i), None) for i in range(number)), to=to + 2)).deleted == number
