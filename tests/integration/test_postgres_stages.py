"""The temporary tables through which a session writes many rows: few are kept, however many tables there are."""

from __future__ import annotations

import pytest

from streamer.model import Row
from streamer.session import Connection, connect
from streamer.sinks import postgres_apply
from streamer.sinks.net import SetWise, Step
from streamer.sinks.postgres_apply import FEW_ROWS, STAGES, Applier
from streamer.sinks.postgres_pipeline import Pipeline
from streamer.sinks.postgres_writer import TableWriters
from tests.changes import relation, table
from tests.servers import Database

ROWS = FEW_ROWS + 1
TABLES = STAGES + 5


@pytest.fixture(autouse=True)
def no_arrays(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that fewer rows take a temporary table."""
    monkeypatch.setattr(postgres_apply, "MANY_ROWS", 0)


def steps(numbers: range, ids: range, value: str) -> list[Step]:
    """An update of these rows in each of these tables."""
    rows: dict[str, Row] = {str(i): (str(i), value) for i in ids}
    return [SetWise(relation(table(f"t{n}", id="integer", n="integer")), (0,), updates=rows) for n in numbers]


def make_tables(database: Database, number: int, rows: int) -> None:
    made = "CREATE TABLE t{0} AS SELECT i AS id, 0 AS n FROM generate_series(1, {1}) i; ALTER TABLE t{0} ADD PRIMARY KEY (id)"
    database.execute("; ".join(made.format(n, rows) for n in range(number)))


def test_more_tables_than_temporary_ones_are_written_and_few_temporary_ones_stay(target18: Database) -> None:
    make_tables(target18, TABLES, ROWS)
    with connect("b", target18.url, application="test") as connection:
        applier = Applier(Pipeline(connection), "b", TableWriters(connection, "b").of)
        for value in ("1", "2"):
            connection.execute("BEGIN")
            written = applier.apply(steps(range(TABLES), range(1, ROWS + 1), value)).written()
            connection.execute("COMMIT")
            applier.committed()
            assert written.updated == TABLES * ROWS
        assert stages(connection) == STAGES
        everything = " UNION ALL ".join(f"SELECT n FROM t{n}" for n in range(TABLES))
        counted = f"SELECT n, count(*) FROM ({everything}) t GROUP BY n"
        assert target18.query(counted) == [(2, TABLES * ROWS)]


def test_a_table_that_is_written_twice_in_a_transaction_uses_its_temporary_table_twice(target18: Database) -> None:
    make_tables(target18, 1, 100)
    with connect("b", target18.url, application="test") as connection:
        applier = Applier(Pipeline(connection), "b", TableWriters(connection, "b").of)
        connection.execute("BEGIN")
        for first in (1, 50):
            assert applier.apply(steps(range(1), range(first, first + ROWS), str(first))).written().updated == ROWS
        connection.execute("COMMIT")
        assert stages(connection) == 1
    assert target18.query("SELECT n, count(*) FROM t0 GROUP BY n ORDER BY n") == [(1, 49), (50, 51)]


def stages(connection: Connection) -> int:
    """The temporary tables of the session."""
    query = "SELECT count(*)::int FROM pg_class WHERE relnamespace = pg_my_temp_schema() AND relkind = 'r'"
    (number,) = connection.execute(query).fetchone() or (0,)
    return int(number)
