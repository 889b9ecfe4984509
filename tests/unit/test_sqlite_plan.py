"""The statements of the SQLite sink: those for one row and for many do the same, and none reads the table for each row."""

from __future__ import annotations

import random
import sqlite3
import struct
from collections.abc import Iterator
from contextlib import closing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamer.errors import SchemaError
from streamer.model import Column, EdgeName, Identity, Kind, Relation, TableName
from streamer.sinks.sqlite_batch import Batch
from streamer.sinks.sqlite_ddl import declared_type, inspect
from streamer.sinks.sqlite_plan import Plan
from streamer.sinks.unrepresentable import Replacements

INT, TEXT, BYTEA, BOOL, FLOAT = 23, 25, 17, 16, 701
REPLACEMENTS = Replacements(EdgeName("shop", "a", "s"))
TEXTS = st.none() | st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))


@pytest.fixture
def connection() -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        yield connection


def plan(connection: sqlite3.Connection, *, key: str = "PRIMARY KEY", **columns: int) -> Plan:
    """The plan for a table of these columns, the first of them the key, which is made too."""
    (first, oid), *others = columns.items()
    made = [f"{first} {declared_type(oid)} NOT NULL {key}", *(f"{name} {declared_type(oid)}" for name, oid in others)]
    connection.execute(f"CREATE TABLE t ({', '.join(made)})")
    relation = Relation(TableName("public", "t"), tuple(Column(n, oid, n == first) for n, oid in columns.items()), Identity.DEFAULT)
    target = inspect(connection, relation.table)
    assert target is not None
    return Plan(connection, relation, target, REPLACEMENTS)


class OneByOne(Batch):
    """A batch that has only the statement for one row."""

    def __init__(self, batch: Batch) -> None:
        super().__init__(batch.each, str, 1, batch.bind, lambda statement, parameters: False)


@given(st.dictionaries(st.integers(-9, 99).map(str), TEXTS, min_size=8, max_size=30), st.booleans())
def test_rows_at_once_and_one_by_one_give_the_same(rows: dict[str, str | None], text_key: bool) -> None:
    results = []
    for at_once in (True, False):
        with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
            p = plan(connection, id=TEXT if text_key else INT, a=TEXT, b=BOOL)
            batches = [p.inserts, p.updates((0, 1)), p.deletes]
            assert all(b.at_once(8) for b in batches)
            insert, update, delete = batches if at_once else map(OneByOne, batches)
            assert insert.run(connection, [(k, "before", "t") for k in rows]) == len(rows)
            assert update.run(connection, [(k, v, "f") for k, v in [*rows.items(), ("1000", "")]]) == len(rows)
            assert delete.run(connection, [(k, None, None) for k in list(rows)[:8]]) == 8
            results.append(connection.execute("SELECT *, typeof(id), typeof(a) FROM t ORDER BY id").fetchall())
    assert results[0] == results[1]
    assert [(str(row[0]), row[1], row[2]) for row in results[0]] == sorted(
        ((k, v, 1) for k, v in list(rows.items())[8:]), key=lambda row: row[0] if text_key else int(row[0])
    )


def test_more_rows_than_one_statement_holds_all_arrive(connection: sqlite3.Connection) -> None:
    p = plan(connection, id=INT, a=TEXT)
    assert p.insert([(str(i), "x") for i in range(12_003)]) == 12_003
    assert p.update((0, 1), [(str(i), "y") for i in range(3, 20_000)]) == 12_000
    assert connection.execute("SELECT a, count(*) FROM t GROUP BY a").fetchall() == [("x", 3), ("y", 12_000)]


def test_values_of_every_kind_go_many_at_once(connection: sqlite3.Connection) -> None:
    p = plan(connection, id=INT, y=BYTEA, f=FLOAT, a=TEXT)
    assert p.insert([(str(i), "\\x00", "1.5", None) for i in range(20)]) == 20
    assert p.insert([]) == 0
    assert p.update((0, 1, 2), [(str(i), "\\xff", "NaN", None) for i in range(20)]) == 20
    assert connection.execute("SELECT DISTINCT y, f, a FROM t").fetchall() == [(b"\xff", "NaN", None)]


def test_a_limit_of_parameters_is_kept(connection: sqlite3.Connection) -> None:
    connection.setlimit(sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER, 40)
    p = plan(connection, id=INT, a=TEXT)
    assert p.insert([(str(i), "x") for i in range(1_003)]) == 1_003
    assert p.delete([(str(i), None) for i in range(1_003)]) == 1_003


def test_without_an_index_on_the_key_the_table_is_not_read_for_each_row(connection: sqlite3.Connection) -> None:
    p = plan(connection, key="", id=INT, a=TEXT)
    assert p.updates((0, 1)).at_once(8) is None
    assert p.deletes.at_once(8) is None


def test_with_statistics_of_an_emptier_table_the_table_is_not_read_for_each_row(connection: sqlite3.Connection) -> None:
    p = plan(connection, id=INT, a=TEXT)
    connection.execute("INSERT INTO t VALUES (1, NULL)")
    connection.execute("ANALYZE")
    assert p.updates((0, 1)).at_once(8) is None
    assert p.deletes.at_once(8) is None


def test_a_partly_used_key_is_not_searched_by(connection: sqlite3.Connection) -> None:
    connection.execute("CREATE TABLE u (a TEXT NOT NULL, b TEXT NOT NULL)")
    connection.execute("CREATE INDEX u_a ON u (a)")
    relation = Relation(TableName("public", "u"), (Column("a", TEXT, True), Column("b", TEXT, True)), Identity.DEFAULT)
    target = inspect(connection, relation.table)
    assert target is not None
    assert Plan(connection, relation, target, REPLACEMENTS).deletes.at_once(8) is None


def test_every_float_arrives_to_the_last_bit(connection: sqlite3.Connection) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    dice = random.Random(seed)
    floats = [struct.unpack("d", dice.randbytes(8))[0] for _ in range(5000)] + [0.1, 5e-324, 1.7976931348623157e308]
    finite = [f for f in floats if f - f == 0]
    p = plan(connection, id=INT, f=FLOAT)
    p.insert([(str(i), repr(f)) for i, f in enumerate(finite)])
    assert [row[0] for row in connection.execute("SELECT f FROM t ORDER BY id")] == finite


def test_an_update_without_any_identity_names_the_remedy(connection: sqlite3.Connection) -> None:
    connection.execute('CREATE TABLE "s.t" (a INTEGER)')
    relation = Relation(TableName("s", "t"), (Column("a", INT, False),), Identity.DEFAULT)
    target = inspect(connection, relation.table)
    assert target is not None
    with pytest.raises(SchemaError, match=r'"s\.t" has no replica identity.*ALTER TABLE "s"\."t" REPLICA IDENTITY FULL'):
        Plan(connection, relation, target, REPLACEMENTS).write((Kind.UPDATE, relation, None, ("1",)))


def test_a_row_of_a_table_with_1500_columns_and_no_key_is_found_by_all_of_them(connection: sqlite3.Connection) -> None:
    names = [f"c{i}" for i in range(1500)]
    connection.execute(f"CREATE TABLE t ({', '.join(f'{name} INTEGER' for name in names)})")
    relation = Relation(TableName("public", "t"), tuple(Column(name, INT, True) for name in names), Identity.FULL)
    target = inspect(connection, relation.table)
    assert target is not None
    p = Plan(connection, relation, target, REPLACEMENTS)
    before, other = ("1",) * 1499 + (None,), ("1",) * 1500
    p.insert([before, other])
    after = ("2",) * 1500
    assert p.write((Kind.UPDATE, relation, before, after)) == 1
    assert p.write((Kind.DELETE, relation, other, None)) == 1
    assert connection.execute("SELECT c0, c1499 FROM t").fetchall() == [(2, 2)]
