"""Rows of changes are judged by the source's own server, whatever their types, many at once, and what fails is told."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from streamer.capture.catalog import read_tables
from streamer.capture.row_filter import ServerFilter
from streamer.errors import ConnectError, SourceError
from streamer.model import TableName
from streamer.ports import Question
from streamer.session import connect
from tests.servers import Database

T = TableName("odd schema", "odd table")


@pytest.fixture(params=["15", "18"])
def source(request: pytest.FixtureRequest) -> Database:
    database: Database = request.getfixturevalue(f"source{request.param}")
    database.execute('CREATE SCHEMA "odd schema"')
    database.execute("CREATE TYPE mood AS ENUM ('sad', 'happy'); CREATE DOMAIN short AS char(3)")
    database.execute(
        'CREATE TABLE "odd schema"."odd table" (id int PRIMARY KEY, fixed char(5), bits bit(3), mood mood, short short, '
        '"A b" int[])'
    )
    return database


@pytest.fixture
def rows(source: Database) -> Iterator[ServerFilter]:
    made = ServerFilter("a", source.url)
    yield made
    made.close()


def question(source: Database, where: str, names: list[str], *values: tuple[str | None, ...]) -> Question:
    """The question whether these values of the named columns fulfil a condition."""
    with connect("a", source.url, application="test") as connection:
        (table,) = read_tables(connection, lambda name: name == T)
    columns = {c.name: c for c in table.relation().columns}
    return Question(T, where, tuple(columns[name] for name in names), values)


@pytest.mark.parametrize(
    ("where", "names", "values", "expected"),
    [
        ("id > 1", ["id"], [("1",), ("2",), (None,)], [False, True, False]),
        ("fixed = 'ab'", ["fixed"], [("ab   ",), ("abcde",), ("a    ",)], [True, False, False]),
        ("bits = B'101'", ["bits"], [("101",), ("100",)], [True, False]),
        ("mood > 'sad'", ["mood"], [("happy",), ("sad",)], [True, False]),
        ("short = 'xyz'", ["short"], [("xyz",), ("x  ",)], [True, False]),
        ('"A b"[1] % 2 = 1', ["A b"], [("{1,2}",), ("{2}",), ("{}",)], [True, False, False]),
        ('"odd table".id = 1 -- a comment', ["id"], [("1",)], [True]),
        ("id IS NULL OR fixed IS NULL", ["id", "fixed"], [(None, "x"), ("1", "x")], [True, False]),
        ("true", [], [()], [True]),
        ("NULL", [], [()], [False]),
        ("fixed LIKE '%s%%'", ["fixed"], [("xs   ",), ("x    ",)], [True, False]),
    ],
)
def test_a_condition_is_the_server_s(
    source: Database, rows: ServerFilter, where: str, names: list[str], values: list[tuple[str | None, ...]], expected: list[bool]
) -> None:
    assert rows.answer([question(source, where, names, *values)]) == [expected]


def test_many_rows_and_many_conditions_keep_their_order(source: Database, rows: ServerFilter) -> None:
    many = [(str(i),) for i in range(45_001)]
    found = rows.answer(
        [
            question(source, "id % 3 = 0", ["id"], *many),
            question(source, "id = 7", ["id"], ("7",), ("8",)),
            question(source, "true", [], ()),
        ]
    )
    assert found == [[i % 3 == 0 for i in range(45_001)], [True, False], [True]]


@pytest.mark.parametrize("others", [0, 3])
def test_a_condition_that_fails_is_named(source: Database, rows: ServerFilter, others: int) -> None:
    good = [question(source, f"id > {i}", ["id"], ("1",)) for i in range(others)]
    bad = question(source, "1 / id > 0", ["id"], ("1",), ("0",))
    with pytest.raises(SourceError) as caught:
        rows.answer([*good, bad])
    assert str(caught.value) == (
        'table "odd schema.odd table" on "a": where = "1 / id > 0" fails: division by zero; '
        "correct the condition in the config, and start streamer run again"
    )
    assert rows.answer([question(source, "id > 1", ["id"], ("2",))]) == [[True]], "the connection can still be used"


def test_a_condition_may_not_write(source: Database, rows: ServerFilter) -> None:
    source.execute("CREATE SEQUENCE public.q")
    with pytest.raises(SourceError, match="read-only transaction"):
        rows.answer([question(source, "nextval('q') > 0", ["id"], ("1",))])


def test_a_connection_that_is_lost_is_no_fault_of_the_condition(source: Database, rows: ServerFilter) -> None:
    asked = question(source, "id > 1", ["id"], ("2",))
    assert rows.answer([asked]) == [[True]]
    source.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'streamer where' "
        "AND datname = current_database()"
    )
    with pytest.raises(ConnectError, match='node "a"'):
        rows.answer([asked, asked])
    rows.close()
    assert rows.answer([asked]) == [[True]]
