"""Databases and roles whose settings are meant for clients: timeouts, policies, isolation, what a url says of the session."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from streamer.session import connect
from tests.acceptance.daemon import Streamer
from tests.acceptance.tables import make_counters, wait_until_same
from tests.conftest import Databases
from tests.servers import Database, PostgresServer
from tests.waiting import wait_for

ALL = "SELECT * FROM t ORDER BY id"
IMPATIENT = {
    "statement_timeout": "200ms",
    "lock_timeout": "200ms",
    "idle_in_transaction_session_timeout": "200ms",
    "idle_session_timeout": "200ms",
    "default_transaction_isolation": "serializable",
}
RESTING = (
    "SELECT 1 FROM pg_stat_activity WHERE application_name LIKE 'streamer%' AND state = 'idle' AND now() - state_change > '1 s'"
)


def test_timeouts_meant_for_clients_end_no_session_that_rests(tmp_path: Path, source15: Database, target18: Database) -> None:
    make_counters(source15)
    for database in (source15, target18):
        for name, value in IMPATIENT.items():
            database.server.execute(f"ALTER DATABASE {database.name} SET {name} = '{value}'")
    target18.server.execute(f"ALTER DATABASE {target18.name} SET transaction_timeout = '200ms'")
    with Streamer(tmp_path, {"a": source15.url, "b": target18.url}) as streamer:
        streamer.setup().start_streaming()
        wait_for(lambda: target18.query(RESTING), "the target's session to have rested for a second")
        source15.execute("UPDATE t SET n = 1")
        wait_until_same(source15, target18, ALL)
        assert '"level": "error"' not in streamer.log


@pytest.mark.parametrize("policed", ["a", "b"])
def test_rows_that_a_policy_hides_are_told_and_not_left_out(
    policed: str, tmp_path: Path, source15: Database, target18: Database
) -> None:
    """On the source they were missing in the copy, without a word, and for whoever compared."""
    nodes = {"a": source15, "b": target18}
    for database in nodes.values():
        database.execute("CREATE TABLE t (id bigint PRIMARY KEY, n bigint NOT NULL)")
        database.execute("CREATE ROLE plain LOGIN REPLICATION PASSWORD 'plain'; GRANT ALL ON SCHEMA public TO plain")
        database.execute(f"GRANT CREATE ON DATABASE {database.name} TO plain; ALTER TABLE t OWNER TO plain")
    source15.execute("INSERT INTO t SELECT i, i % 2 FROM generate_series(1, 10) i")
    nodes[policed].execute("ALTER TABLE t ENABLE ROW LEVEL SECURITY; ALTER TABLE t FORCE ROW LEVEL SECURITY")
    nodes[policed].execute("CREATE POLICY mine ON t USING (n = 1)")
    urls = {name: database.server.url(database.name, "plain", "plain") for name, database in nodes.items()}
    with Streamer(tmp_path, urls) as streamer:
        told = streamer.command("check", succeeds=False).stdout
        assert f'error: table "public.t" on "{policed}": its policies (row level security) hide rows from role "plain"' in told
        streamer.setup().start()
        streamer.wait_for_problem("row-level security")
        (edge,) = streamer.status()
        assert "BYPASSRLS" in edge["remedy"], edge
        verified = streamer.command("verify", "shop", succeeds=False)
        assert "BYPASSRLS" in verified.stdout + verified.stderr
        assert target18.query("SELECT count(*) FROM t") == [(0,)]
        nodes[policed].execute("ALTER ROLE plain BYPASSRLS")
        wait_until_same(source15, target18, ALL)


@pytest.fixture
def ascii15(pg15: PostgresServer) -> Iterator[Database]:
    """A database that takes any bytes for text, as many old ones do."""
    pg15.execute("CREATE DATABASE any_bytes ENCODING 'SQL_ASCII' LOCALE 'C' TEMPLATE template0")
    database = Database(pg15, "any_bytes")
    yield database
    database.drop()


def test_a_text_that_is_not_utf8_is_told_with_a_way_on_that_works(ascii15: Database, target18: Database, tmp_path: Path) -> None:
    make_counters(ascii15)
    ascii15.execute("ALTER TABLE t ADD COLUMN name text")
    with Streamer(tmp_path, {"a": ascii15.url, "b": target18.url}) as streamer:
        assert "SQL_ASCII" in streamer.command("check").stdout
        streamer.setup().start_streaming()
        ascii15.execute("UPDATE t SET name = convert_from('\\xe9', 'SQL_ASCII') WHERE id = 1")
        streamer.wait_for_problem("the change has a text that is not UTF-8")
        ascii15.execute("UPDATE t SET name = 'e' WHERE id = 1")
        streamer.stop()
        streamer.command("teardown", "--sync", "shop", "--yes")
        streamer.write_config(copy="always")
        streamer.command("setup", "--sync", "shop")
        streamer.start()
        wait_until_same(ascii15, target18, "SELECT id, ascii(name) FROM t ORDER BY id")


@pytest.mark.parametrize(
    ("capture", "problem"), [("pgoutput", "the change has a text that is not UTF-8"), ("wal2json", "is not text in the encoding")]
)
def test_a_slot_can_be_advanced_over_a_text_that_cannot_be_decoded(
    ascii15: Database, target18: Database, tmp_path: Path, capture: str, problem: str
) -> None:
    make_counters(ascii15)
    ascii15.execute("ALTER TABLE t ADD COLUMN name text")
    with Streamer(tmp_path, {"a": ascii15.url, "b": target18.url}, capture=capture) as streamer:
        streamer.setup().start_streaming()
        ascii15.execute("UPDATE t SET name = convert_from('\\xe9', 'SQL_ASCII') WHERE id = 1")
        streamer.wait_for_problem(problem)
        ascii15.execute("UPDATE t SET name = 'e' WHERE id = 1")
        streamer.stop()
        told = streamer.command("slots", "advance", "a", "streamer_shop_a", "now", "--yes").stdout
        assert 'advanced slot "streamer_shop_a"' in told
        streamer.start_streaming()
        streamer.command("verify", "shop", "--repair", "--yes")
        wait_until_same(ascii15, target18, "SELECT id, ascii(name) FROM t ORDER BY id")


def test_a_url_that_sets_what_streamer_sets_too_is_no_traceback(databases: Databases, pg15: PostgresServer) -> None:
    url = databases.create(pg15, "named").url
    said = "application_name=mine&client_encoding=LATIN1&keepalives_idle=5&tcp_user_timeout=9000&options=-c%20array_nulls%3Doff"
    with connect("a", f"{url}?{said}", application="streamer test") as connection:
        shown = [
            connection.execute(f"SHOW {name}".encode()).fetchone()
            for name in ("application_name", "client_encoding", "array_nulls")
        ]
        assert shown == [("streamer test",), ("UTF8",), ("on",)]
        assert connection.info.get_parameters()["keepalives_idle"] == "5"
