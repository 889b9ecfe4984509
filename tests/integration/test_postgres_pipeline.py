"""Statements that travel together: what is prepared, what an error leaves, and what cannot be sent."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import psycopg
import pytest
from psycopg.pq import ExecStatus

from streamer.errors import SchemaError
from streamer.model import Row
from streamer.session import Connection, connect
from streamer.sinks import postgres_pipeline
from streamer.sinks.net import SetWise, Truncate
from streamer.sinks.postgres_apply import Applier
from streamer.sinks.postgres_arrays import MANY_ROWS
from streamer.sinks.postgres_pipeline import AT_ONCE, Pipeline
from streamer.sinks.postgres_writer import TableWriters
from tests.changes import relation, table
from tests.servers import Database

INSERT = "INSERT INTO t (id, v) VALUES (%s::int, %s::text)"


@pytest.fixture
def connection(target15: Database) -> Iterator[Connection]:
    target15.execute("CREATE TABLE t (id integer PRIMARY KEY, v text)")
    with closing(connect("b", target15.url, application="test")) as connection:
        yield connection


def prepared(connection: Connection) -> list[str]:
    """What the session has prepared through the pipeline, as it was written."""
    query = "SELECT statement FROM pg_prepared_statements WHERE name LIKE 'streamer%' ORDER BY statement"
    return [statement for (statement,) in connection.execute(query, prepare=False)]


def test_answers_belong_to_their_statements(connection: Connection) -> None:
    pipeline = Pipeline(connection)
    for number in ("1", "2"):
        pipeline.add(INSERT, [number, None])
    updated, none = pipeline.add("UPDATE t SET v = 'x%'"), pipeline.add("DELETE FROM t WHERE v = %s AND 7 %% 2 = 0", ["x%"])
    shown = pipeline.add("SELECT v FROM t WHERE id = %s", ["2"])
    absent = pipeline.add("SELECT v FROM t WHERE id = 3")
    pipeline.sync()
    assert (updated.rowcount, none.rowcount, shown.cell, absent.cell) == (2, 0, "x%", None)


def test_what_was_refused_or_stood_behind_it_can_be_executed_again(connection: Connection) -> None:
    """The server never prepared what stood behind the error."""
    pipeline = Pipeline(connection)
    for good in (False, True):
        pipeline.add("BEGIN", ())
        pipeline.add(INSERT, ["1" if good else "one", "a"])
        pipeline.add("UPDATE t SET v = %s WHERE id = 1", ["b"])
        if not good:
            with pytest.raises(psycopg.errors.InvalidTextRepresentation):
                pipeline.sync()
            connection.ask("ROLLBACK")
    pipeline.add("COMMIT", ())
    pipeline.sync()
    assert connection.execute("SELECT * FROM t").fetchall() == [(1, "b")]


def test_the_first_refusal_is_told(connection: Connection) -> None:
    pipeline = Pipeline(connection)
    pipeline.add("SELECT 1 / 0")
    pipeline.add("SELECT nothing")
    with pytest.raises(psycopg.errors.DivisionByZero):
        pipeline.sync()


def test_statements_that_were_not_used_for_long_do_not_stay_prepared(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres_pipeline, "PREPARED", 2)
    pipeline = Pipeline(connection)
    for number in ("1", "2", "1", "3", "4"):
        pipeline.add(f"SELECT {number}", ())
        pipeline.sync()
    assert prepared(connection) == ["SELECT 1", "SELECT 3", "SELECT 4"]  # one more, until something is sent again
    again = pipeline.add("SELECT 2", ())
    pipeline.sync()
    assert again.cell == "2"


def test_a_statement_without_values_is_not_prepared(connection: Connection) -> None:
    pipeline = Pipeline(connection)
    pipeline.add("SELECT '%s'")
    pipeline.sync()
    assert prepared(connection) == []


def test_a_text_with_a_nul_is_refused_and_what_came_before_it_is_done(connection: Connection) -> None:
    """libpq would write the text up to the NUL, without a word."""
    pipeline = Pipeline(connection)
    pipeline.add(INSERT, ["1", "a"])
    with pytest.raises(psycopg.DataError, match="NUL"):
        pipeline.add(INSERT, ["2", "a\0b"])
    assert connection.execute("SELECT * FROM t").fetchall() == [(1, "a")]


def test_statements_and_answers_that_no_buffer_holds_do_not_wait_for_each_other(connection: Connection) -> None:
    pipeline, long = Pipeline(connection), "x" * 100_000
    answers = [pipeline.add("SELECT %s || %s", [str(i), long]) for i in range(AT_ONCE + 10)]
    pipeline.sync()
    assert [answer.cell for answer in answers] == [f"{i}{long}" for i in range(AT_ONCE + 10)]


def test_a_session_that_is_ended_meanwhile_is_an_error(connection: Connection) -> None:
    pipeline = Pipeline(connection)
    pipeline.add("SELECT pg_terminate_backend(pg_backend_pid())")
    pipeline.add("SELECT 1", ())
    with pytest.raises(psycopg.Error):
        pipeline.sync()
    pipeline.add("SELECT 1", ())
    with pytest.raises(psycopg.OperationalError):
        pipeline.sync()


def test_what_cannot_be_sent_ends_the_session_and_is_told(connection: Connection) -> None:
    """Amid a pipeline, out of which libpq does not come any more: whoever asked the connection next would wait for ever."""
    pipeline, many = Pipeline(connection), 70_000
    pipeline.add(f"SELECT {', '.join(['%s'] * many)}", [None] * many)
    with pytest.raises(psycopg.OperationalError, match="parameters"):
        pipeline.sync()
    assert connection.closed


def test_a_join_with_a_temporary_table_is_planned_anew_each_time(connection: Connection) -> None:
    """A plan from when the table had a row or two would read it whole for each of some thousand."""
    applier = Applier(Pipeline(connection), "b", TableWriters(connection, "b").of)
    rows: dict[str, Row] = {str(i): (str(i), "x") for i in range(MANY_ROWS + 1)}
    update = SetWise(relation(table("t", id="integer", v="text")), (0,), updates=rows)
    for _ in range(2):
        connection.execute("BEGIN")
        applier.apply([update])
        connection.execute("COMMIT")
        applier.committed()
    assert [statement for statement in prepared(connection) if "pg_temp" in statement] == []


def test_a_truncate_of_a_table_that_is_gone_leaves_the_transaction_where_it_began(connection: Connection) -> None:
    applier = Applier(Pipeline(connection), "b", TableWriters(connection, "b").of)
    connection.execute("BEGIN")

    def truncate() -> None:
        with applier.pipelined():
            applier.execute("SAVEPOINT streamer_group", ())
            applier.apply([Truncate([relation(table("gone", id="integer"))])])

    with pytest.raises(SchemaError):
        truncate()
    assert connection.ask("ROLLBACK TO SAVEPOINT streamer_group").status == ExecStatus.COMMAND_OK


def test_two_pipelines_of_a_connection_do_not_get_in_each_others_way(connection: Connection) -> None:
    for _ in range(2):
        pipeline = Pipeline(connection)
        pipeline.add("SELECT 1", ())
        pipeline.sync()
    assert prepared(connection) == ["SELECT 1", "SELECT 1"]
