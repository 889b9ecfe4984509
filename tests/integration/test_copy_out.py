"""COPY TO STDOUT on a real server: the rows by way of the socket, how it ended by way of libpq, and the connection goes on."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing

import psycopg
import pytest

from streamer.capture import copy_out, snapshot
from streamer.capture.snapshot import blocks
from streamer.session import Connection, connect
from tests.servers import Database, PostgresServer, unprivileged
from tests.waiting import wait_for

MANY = "SELECT n, repeat('x', n % 500) FROM generate_series(1, 50000) n"


@pytest.fixture
def connection(source15: Database) -> Iterator[Connection]:
    with connect("a", source15.url, application="test") as connection:
        yield connection


def read(connection: Connection, query: str) -> bytes:
    """All rows, which end whole in every block; and what the connection is asked next is answered."""
    got = list(blocks(connection, f"COPY ({query}) TO STDOUT"))
    assert all(block.endswith(b"\n") for block in got)
    assert connection.execute("SELECT 'next'").fetchone() == ("next",)
    return b"".join(got)


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> Callable[[], bool]:
    """Whether rows have come by way of the socket."""
    came: list[int] = []

    class Counting(copy_out.CopyOut):
        def blocks(self) -> Iterator[bytes]:
            for block in super().blocks():
                came.append(len(block))
                yield block

    monkeypatch.setattr(snapshot, "CopyOut", Counting)
    return lambda: bool(came)


def expected(connection: Connection, query: str) -> bytes:
    with connection.cursor().copy(f"COPY ({query}) TO STDOUT".encode()) as copy:
        return b"".join(map(bytes, copy))


@pytest.mark.parametrize(
    "query",
    [
        MANY,
        "SELECT 1 WHERE false",
        "SELECT FROM generate_series(1, 3)",
        "SELECT repeat(n::text, 3000000) FROM generate_series(1, 3) n",
        r"SELECT E'a\tb\nc\\d', NULL, ''",
        f"SELECT 1 /* {'x' * 20_000_000} */",
    ],
    ids=["many", "none", "no columns", "long rows", "escapes", "long query"],
)
def test_rows_are_those_that_psycopg_reads(connection: Connection, query: str) -> None:
    assert read(connection, query) == expected(connection, query)


def test_an_error_amid_the_rows_is_the_servers(connection: Connection) -> None:
    with pytest.raises(psycopg.errors.DivisionByZero):
        read(connection, "SELECT 1 / (30000 - n) FROM generate_series(1, 50000) n")
    assert read(connection, "SELECT 1") == b"1\n"


def test_rows_that_got_lost_on_the_way_are_an_error(connection: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    class Losing(copy_out.CopyOut):
        def blocks(self) -> Iterator[bytes]:
            yield from super().blocks()
            self.rows -= 1

    monkeypatch.setattr(snapshot, "CopyOut", Losing)
    with pytest.raises(psycopg.OperationalError, match="has sent 2 rows, of which 1 were taken"):
        list(blocks(connection, "COPY (VALUES (1), (2)) TO STDOUT"))


def test_a_query_that_is_refused_tells_why(connection: Connection) -> None:
    with pytest.raises(psycopg.errors.UndefinedTable, match="nowhere"):
        read(connection, "SELECT * FROM nowhere")
    assert read(connection, "SELECT 1") == b"1\n"


def test_warnings_and_settings_that_come_between_rows_are_passed_over(source15: Database, connection: Connection) -> None:
    source15.execute(
        "CREATE FUNCTION told(n int) RETURNS int LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE WARNING '%', repeat('w', n); PERFORM set_config('application_name', 'n' || n, true); RETURN n; END $$"
    )
    query = "SELECT told(n) FROM generate_series(1, 1000) n"
    assert read(connection, query) == b"".join(b"%d\n" % n for n in range(1, 1001))


def test_a_server_that_ends_the_session_amid_the_rows_is_an_error(source15: Database, connection: Connection) -> None:
    rows = blocks(connection, f"COPY ({MANY}, pg_sleep(CASE WHEN n = 40000 THEN 600 ELSE 0 END)) TO STDOUT")
    next(rows)
    ended = f"SELECT count(pg_terminate_backend(pid)) = 1 FROM pg_stat_activity WHERE pid = {connection.info.backend_pid}"
    wait_for(lambda: source15.query(ended) == [(True,)], "the session to be ended")
    with pytest.raises(psycopg.OperationalError):
        list(rows)


@pytest.fixture(scope="module")
def encrypted(server_a: PostgresServer) -> Iterator[PostgresServer]:
    """A server that takes connections by TLS."""
    with closing(PostgresServer(server_a.bin_dir, {"ssl": "on"})) as server:
        make = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=test -keyout server.key -out server.crt"
        subprocess.run(make.split(), cwd=server.data_dir, check=True, capture_output=True, **unprivileged())
        server.start()
        yield server


def test_rows_of_an_encrypted_connection_come_by_way_of_libpq(encrypted: PostgresServer, taken: Callable[[], bool]) -> None:
    with connect("a", f"{encrypted.url()}?sslmode=require", application="test") as connection:
        assert read(connection, MANY) == expected(connection, MANY)
    assert not taken()
    with connect("a", f"{encrypted.url()}?sslmode=disable", application="test") as connection:
        assert read(connection, MANY) == expected(connection, MANY)
    assert taken()
