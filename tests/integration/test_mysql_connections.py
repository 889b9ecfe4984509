"""Connections to MySQL and MariaDB: what a session is, files that the server asks for, TLS."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pymysql
import pytest

from streamer.errors import ApplyError, ConnectError
from streamer.node_config import MysqlAddress
from streamer.sinks.mysql_session import Connection, connect
from tests.integration.targets import MysqlTarget
from tests.mysql_servers import MysqlDatabase, MysqlServer, server_binary


@pytest.fixture
def target(mariadb: MysqlDatabase) -> MysqlTarget:
    return MysqlTarget(mariadb)


def session(url: str) -> Connection:
    return connect("m", MysqlAddress.parse(url))


def test_a_server_gets_no_file_but_what_is_being_loaded(target: MysqlTarget, tmp_path: Path) -> None:
    target.database.execute("CREATE TABLE stolen (line TEXT) ENGINE = InnoDB")
    secret = tmp_path / "secret"
    secret.write_text("secret\n")
    with closing(session(target.database.url)) as connection:
        connection.run(f"LOAD DATA LOCAL INFILE '{secret}' INTO TABLE stolen (line)")
        assert target.database.query("SELECT * FROM stolen") == []
        assert connection.load(f"LOAD DATA LOCAL INFILE '{secret}' INTO TABLE stolen (line)", [b"ours\n"]) == (1, 0)
    assert target.database.query("SELECT * FROM stolen") == [("ours",)]


def test_a_large_file_is_loaded_whole(target: MysqlTarget) -> None:
    target.database.execute("CREATE TABLE big (n INT) ENGINE = InnoDB")
    with closing(session(target.database.url)) as connection:
        assert connection.load("LOAD DATA LOCAL INFILE 'x' INTO TABLE big (n)", [b"123456\n" * 200_000]) == (200_000, 0)


def test_a_file_that_breaks_off_leaves_the_connection_usable_and_its_rows_to_be_undone(target: MysqlTarget) -> None:
    target.database.execute("CREATE TABLE broken (n INT) ENGINE = InnoDB")

    def pieces() -> Iterator[bytes]:
        yield b"1\n"
        raise ApplyError("row 2 does not fit")

    with closing(session(target.database.url)) as connection:
        connection.run("START TRANSACTION")
        with pytest.raises(ApplyError, match="row 2 does not fit"):
            connection.load("LOAD DATA LOCAL INFILE 'x' INTO TABLE broken (n)", pieces())
        assert connection.rows("SELECT n FROM broken") == [(1,)]
        connection.run("ROLLBACK")
        assert connection.rows("SELECT n FROM broken") == []


def test_a_connection_that_is_lost_while_a_file_is_sent_is_told_as_such(target: MysqlTarget) -> None:
    target.database.execute("CREATE TABLE broken (n INT) ENGINE = InnoDB")

    def pieces() -> Iterator[bytes]:
        yield b"1\n"
        target.database.execute(f"KILL {connection.thread}")
        while True:  # until the kernel tells that nobody reads
            yield b"2\n" * 1_000_000

    connection = session(target.database.url)
    with pytest.raises(pymysql.OperationalError, match="gone away"):
        connection.load("LOAD DATA LOCAL INFILE 'x' INTO TABLE broken (n)", pieces())
    assert not connection.open


@pytest.fixture(scope="module")
def authority() -> Iterator[Path]:
    """A directory with ca.pem, and a certificate of it for 127.0.0.1, readable for the server's user."""
    with tempfile.TemporaryDirectory(prefix="streamer-tls-") as directory:
        Path(directory).chmod(0o755)
        yield _certified(Path(directory))


def _certified(made: Path) -> Path:
    commands = (
        "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=authority -keyout ca.key -out ca.pem",
        "openssl req -newkey rsa:2048 -nodes -subj /CN=server -keyout server.key -out server.csr",
        "openssl x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile names -out server.pem",
        "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=stranger -keyout other.key -out other.pem",
    )
    (made / "names").write_text("subjectAltName = IP:127.0.0.1\n")
    for command in commands:
        subprocess.run(command.split(), cwd=made, check=True, capture_output=True)
    (made / "server.key").chmod(0o644)
    return made


@pytest.fixture(scope="module")
def tls_server(authority: Path) -> Iterator[MysqlServer]:
    binary = server_binary()
    if binary is None:
        pytest.skip("MariaDB is missing: install mariadb-server-core and mariadb-client-core")
    files = {f"ssl-{name}": str(authority / file) for name, file in (("cert", "server.pem"), ("key", "server.key"))}
    server = MysqlServer(binary, files)
    try:
        server.start()
        server.create_database("shop")
        yield server
    finally:
        server.close()


@pytest.mark.parametrize(
    ("options", "encrypted"),
    [
        ("", True),
        ("?ssl_mode=disabled", False),
        ("?ssl_mode=required", True),
        ("?ssl_mode=verify_ca&ssl_ca={ca}", True),
        ("?ssl_ca={ca}", True),
    ],
)
def test_tls_is_as_the_url_says(tls_server: MysqlServer, authority: Path, options: str, encrypted: bool) -> None:
    with closing(session(tls_server.url("shop") + options.format(ca=authority / "ca.pem"))) as connection:
        ((_, cipher),) = connection.rows("SHOW STATUS LIKE 'Ssl_cipher'")
    assert bool(cipher) is encrypted


@pytest.mark.parametrize(
    ("options", "host"),
    [("?ssl_ca={ca}", "localhost"), ("?ssl_ca={other}", "127.0.0.1"), ("?ssl_mode=verify_ca&ssl_ca={other}", "127.0.0.1")],
    ids=["another name", "another authority", "another authority, whatever the name"],
)
def test_a_server_that_cannot_show_who_it_is_is_refused(tls_server: MysqlServer, authority: Path, options: str, host: str) -> None:
    url = tls_server.url("shop").replace("127.0.0.1", host)
    with pytest.raises(ConnectError, match="certificate verify failed"):
        session(url + options.format(ca=authority / "ca.pem", other=authority / "other.pem"))


def test_every_statement_runs_strictly_in_utc(target: MysqlTarget) -> None:
    query = "SELECT @@time_zone, @@foreign_key_checks, @@sql_mode, @@character_set_client"
    with closing(session(target.database.url)) as connection:
        ((zone, foreign_keys, mode, charset),) = connection.rows(query)
        assert (zone, foreign_keys, charset) == ("+00:00", 0, "utf8mb4")
        isolation = connection.rows("SHOW VARIABLES WHERE variable_name IN ('tx_isolation', 'transaction_isolation')")
        assert {value for _, value in isolation} == {"READ-COMMITTED"}
        assert "STRICT_ALL_TABLES" in mode
        with pytest.raises(pymysql.MySQLError):
            connection.run("SELECT nothing")
