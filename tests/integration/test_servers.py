"""The servers and fixtures of the tests themselves: what they promise to the other tests."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psycopg
import pytest
from psycopg import pq

from tests.conftest import Databases, Pair
from tests.proxy import Proxy
from tests.servers import Database, PostgresServer
from tests.waiting import wait_for


def test_a_server_comes_back_after_every_kind_of_end(source15: Database) -> None:
    source15.execute("CREATE TABLE kept AS SELECT 1 AS value")
    server = source15.server
    server.restart("fast")
    assert source15.query("SELECT value FROM kept") == [(1,)]
    server.restart("immediate")
    assert source15.query("SELECT value FROM kept") == [(1,)]
    server.kill()
    assert not server.running
    server.start()
    assert source15.query("SELECT value FROM kept") == [(1,)]


def test_a_pair_is_two_servers_that_can_stream(pair: Pair) -> None:
    source, target = pair
    assert source.server is not target.server
    for database in pair:
        assert database.query("SHOW wal_level") == [("logical",)]
        assert database.query("SHOW server_version_num") == [(str(database.server.version),)]
        assert database.query("SELECT current_database()") == [(database.name,)]


def test_the_server_with_wal2json_allows_it(source15: Database) -> None:
    source15.execute("SELECT pg_create_logical_replication_slot('plain', 'wal2json')")


def test_another_role_needs_its_password(source18: Database) -> None:
    source18.execute("CREATE ROLE plain LOGIN PASSWORD 'right:/@'")
    server = source18.server
    psycopg.connect(server.url(source18.name, "plain", "right:/@")).close()
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(server.url(source18.name, "plain", "wrong"))


def test_a_database_is_dropped_with_its_sessions_slots_origins_and_roles(databases: Databases, pg15: PostgresServer) -> None:
    database = databases.create(pg15, "crowded")
    database.execute("SELECT pg_create_logical_replication_slot('crowded', 'pgoutput')")
    database.execute("CREATE PUBLICATION crowd")
    database.execute("CREATE ROLE guest LOGIN; GRANT CREATE ON SCHEMA public TO guest")
    session = database.connect()
    session.execute("SELECT pg_replication_origin_create('streamer:a'), pg_replication_origin_session_setup('streamer:a')")
    reader = pq.PGconn.connect(f"{database.url}?replication=database".encode())
    reader.exec_(b"START_REPLICATION SLOT crowded LOGICAL 0/0 (proto_version '1', publication_names 'crowd')")
    databases.drop()
    reader.finish()
    session.close()
    for view in ("replication_slots", "replication_origin", "roles WHERE rolname = 'guest'"):
        assert pg15.query(f"SELECT count(*) FROM pg_{view}") == [(0,)]
    assert pg15.query("SELECT count(*) FROM pg_database WHERE datname = 'crowded'") == [(0,)]


def test_a_proxy_cuts_refuses_and_freezes(source15: Database) -> None:
    with Proxy(source15.server) as proxy:
        url = proxy.url(source15.name)
        with psycopg.connect(url) as session:
            session.execute("SELECT 1")
            proxy.cut()
            with pytest.raises(psycopg.OperationalError):
                session.execute("SELECT 1")
        wait_for(lambda: proxy.connections == 0, "the proxy to forget the cut connection")
        proxy.stop()
        with pytest.raises(psycopg.OperationalError, match="refused"):
            psycopg.connect(url)
        proxy.start()
        proxy.freeze()
        with pytest.raises(psycopg.errors.ConnectionTimeout):
            psycopg.connect(url, connect_timeout=2)
        proxy.thaw()
        psycopg.connect(url).close()


def test_a_server_dies_with_the_process_that_made_it(pg18: PostgresServer) -> None:
    program = (
        "import os, sys; from pathlib import Path; from tests.servers import PostgresServer;"
        "server = PostgresServer(Path(sys.argv[1])); server.start();"
        "print(server.directory, server.url(), flush=True); os.kill(os.getpid(), 9)"
    )
    made = subprocess.run([sys.executable, "-c", program, str(pg18.bin_dir)], capture_output=True, text=True)
    directory, url = made.stdout.split()
    wait_for(lambda: not Path(directory).exists(), "the directory of the server to go")
    with pytest.raises(psycopg.OperationalError, match="refused"):
        psycopg.connect(url)
