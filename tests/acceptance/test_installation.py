"""docs/installation.md, followed to the letter: roles that may do only what it grants, its pg_hba line, its TLS; and no password in
anything that is printed, logged or served.

The statements are those of the page, executed by a superuser; from then on everything is done as the role `streamer`.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.acceptance.daemon import Streamer
from tests.binaries import server_a_bin_dir
from tests.conftest import Databases
from tests.role import PASSWORD, blocks
from tests.servers import PostgresServer
from tests.waiting import wait_for, wait_for_equal

TABLES: Final = """
GRANT CREATE ON SCHEMA public TO shop;
SET ROLE shop;
CREATE TABLE customers (id bigint PRIMARY KEY, name text NOT NULL);
CREATE TABLE orders (id bigint PRIMARY KEY, customer bigint REFERENCES customers, amount numeric);
"""
ROWS: Final = "INSERT INTO customers VALUES (1, 'Ada'), (2, 'Bob'); INSERT INTO orders VALUES (1, 1, 9.99)"
QUERY: Final = "SELECT c.id, c.name, o.id, o.amount::text FROM customers c LEFT JOIN orders o ON o.customer = c.id ORDER BY c.id"
LEFT_OVER: Final = """
SELECT slot_name FROM pg_replication_slots WHERE database = 'shop'
UNION ALL SELECT roname FROM pg_replication_origin
"""


class Overheard(Streamer):
    """Remembers all that commands print."""

    heard = ""

    def command(self, *arguments: str, succeeds: bool = True, seconds: float = 120) -> subprocess.CompletedProcess[str]:
        done = super().command(*arguments, succeeds=succeeds, seconds=seconds)
        self.heard += done.stdout + done.stderr
        return done

    def overhear(self, path: str) -> None:
        """Remember what the daemon serves there."""
        self.heard += self.get(path)


@pytest.fixture
def servers(databases: Databases, pg15: PostgresServer, pg18: PostgresServer) -> tuple[PostgresServer, PostgresServer]:
    """Two servers with an empty database shop, and the role shop whom the tables belong to."""
    for server in (pg15, pg18):
        databases.create(server, "shop")
        server.execute("CREATE ROLE shop")
    return pg15, pg18


def streamer_on(directory: Path, *servers: PostgresServer, **settings: list[str]) -> Overheard:
    """A config whose nodes are reached as the role streamer, by a password from the environment."""
    urls = [server.url("shop", "streamer", "PASSWORD").replace("PASSWORD", "${PASSWORD}") for server in servers]
    streamer = Overheard(directory, dict(zip("ab", urls, strict=True)), **settings)  # type: ignore[arg-type]
    streamer.environment["PASSWORD"] = PASSWORD
    return streamer


def test_one_way_as_roles_with_the_rights_of_the_page(servers: tuple[PostgresServer, PostgresServer], tmp_path: Path) -> None:
    source, target = servers
    source.execute(TABLES + ROWS, database="shop")
    grants, taken_back = blocks("On a source", "sql")
    source.psql(grants)
    target.psql(*blocks("On a target", "sql"))
    with streamer_on(tmp_path, source, target) as streamer:
        streamer.command("check")
        streamer.setup()
        source.psql(taken_back)
        streamer.start_streaming()
        source.execute("UPDATE customers SET name = upper(name); INSERT INTO orders VALUES (2, 2, 5)", database="shop")
        expected = source.query(QUERY, database="shop")
        wait_for_equal(lambda: target.query(QUERY, database="shop"), expected, "the rows of the target")
        for word in ("triggers_will_fire", "no_replication_origin", '"warning"', '"error"'):
            assert word not in streamer.log
        for arguments in (["status"], ["status", "--json"], ["tables"], ["slots", "list"], ["setup"]):
            streamer.command(*arguments, succeeds=False)
        for path in ("/status", "/metrics"):
            streamer.overhear(path)
        streamer.heard += Path(f"/proc/{streamer.pid}/cmdline").read_text()  # what ps shows to everybody
        assert streamer.stop() == 0
        source.execute("GRANT shop TO streamer")
        streamer.command("teardown", "--yes")
        assert [server.query(LEFT_OVER) for server in servers] == [[], []]
        assert PASSWORD not in streamer.heard + streamer.log


def test_several_sources_as_roles_with_the_rights_of_the_page(
    servers: tuple[PostgresServer, PostgresServer], tmp_path: Path
) -> None:
    a, b = servers
    for server in servers:
        server.execute(TABLES, database="shop")
        server.psql(*blocks("On a node that is both", "sql"))
    with streamer_on(tmp_path, a, b, sources=["a", "b"], targets=[]) as streamer:
        streamer.command("setup", "--fix")
        streamer.command("check")
        streamer.start_streaming()
        a.execute(ROWS, database="shop")
        wait_for_equal(lambda: b.query(QUERY, database="shop"), a.query(QUERY, database="shop"), "the rows of a on b")
        for number in range(20):
            for server, name in ((a, "from a"), (b, "from b")):
                server.execute(f"UPDATE customers SET name = '{name} {number}' WHERE id = 1", database="shop")
        b.execute("DELETE FROM orders; DELETE FROM customers WHERE id = 2", database="shop")
        wait_for(lambda: len(a.query(QUERY, database="shop")) == 1, "the deletes of b on a")
        wait_for(lambda: a.query(QUERY, database="shop") == b.query(QUERY, database="shop"), "both to be equal")
        for word in ("triggers_will_fire", "no_replication_origin", '"warning"', '"error"'):
            assert word not in streamer.log
        streamer.command("conflicts", "list")
        assert streamer.stop() == 0
        streamer.command("teardown", "--yes")
        assert [server.query(LEFT_OVER) for server in servers] == [[], []]
        assert PASSWORD not in streamer.heard + streamer.log


def test_a_wrong_password_is_not_told_either(servers: tuple[PostgresServer, PostgresServer], tmp_path: Path) -> None:
    source, target = servers
    source.execute(TABLES, database="shop")
    source.psql(blocks("On a source", "sql")[0])
    target.psql(*blocks("On a target", "sql"))
    with streamer_on(tmp_path, source, target) as streamer:
        streamer.setup()
        streamer.environment["PASSWORD"] = "choose-another"
        for arguments in (["check"], ["tables"], ["setup"], ["slots", "list"], ["status"]):
            streamer.command(*arguments, succeeds=False)
        streamer.start()
        streamer.wait_for_problem("password authentication failed")
        streamer.overhear("/status")
        streamer.stop()
        assert "password authentication failed" in streamer.heard
        assert "choose-another" not in streamer.heard + streamer.log


# -- TLS ---------------------------------------------------------------------------------------------------------------------


class Authority:
    """An authority that makes certificates, with openssl."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir()
        self.certificate = directory / "ca.crt"
        self._directory = directory
        self._key = directory / "ca.key"
        self._openssl("req", "-x509", "-subj", "/CN=authority", "-keyout", self._key, "-out", self.certificate, *self._new)

    _new = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2")

    def certify(self, name: str) -> tuple[Path, Path]:
        """Return a certificate for a subjectAltName, and its key."""
        certificate, key = self._directory / "server.crt", self._directory / "server.key"
        signed_by = ("-CA", self.certificate, "-CAkey", self._key)
        names = ("-subj", "/CN=server", "-addext", f"subjectAltName={name}", "-addext", "basicConstraints=CA:FALSE")
        self._openssl("req", "-x509", *signed_by, *names, "-keyout", key, "-out", certificate, *self._new)
        return certificate, key

    @staticmethod
    def _openssl(*arguments: str | Path) -> None:
        program = shutil.which("openssl")
        if program is None:
            pytest.skip("openssl is missing: install openssl")
        subprocess.run([program, *arguments], check=True, capture_output=True)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "authority")


@pytest.fixture
def encrypted(authority: Authority) -> Iterator[PostgresServer]:
    """A server that lets streamer in by the page's pg_hba line only, with a certificate for 127.0.0.1."""
    bin_dir = server_a_bin_dir()
    if bin_dir is None:
        pytest.skip("no PostgreSQL 15 or later below /usr/lib/postgresql: install postgresql")
    server = PostgresServer(bin_dir, {"ssl": "on"})
    try:
        for file in authority.certify("IP:127.0.0.1"):
            copied = server.data_dir / file.name
            shutil.copyfile(file, copied)
            copied.chmod(0o600)
            shutil.chown(copied, server.data_dir.stat().st_uid, server.data_dir.stat().st_gid)
        (line,) = re.findall(r"^hostssl .*", blocks("pg_hba.conf", "")[0], re.MULTILINE)
        hba = server.data_dir / "pg_hba.conf"
        superuser = [rule for rule in hba.read_text().splitlines() if "trust" in rule]
        hba.write_text("\n".join([*superuser, line.replace("10.0.0.9", "127.0.0.1"), ""]))
        server.start()
        yield server
    finally:
        server.close()


def test_replication_through_tls_with_the_server_verified(encrypted: PostgresServer, authority: Authority, tmp_path: Path) -> None:
    encrypted.create_database("shop").execute(f"CREATE ROLE shop; {TABLES} {ROWS}")
    encrypted.psql(blocks("On a node that is both", "sql")[0])
    (shown,) = re.findall(r"\?(sslmode=.*)\"", blocks("TLS", "toml")[0])
    options = shown.replace("/etc/streamer/ca.crt", str(authority.certificate))
    place = f"postgresql://streamer:${{PASSWORD}}@127.0.0.1:{encrypted.port}/shop"
    nodes = {"a": f"{place}?{options}", "s": f"sqlite:///{tmp_path / 'shop.sqlite'}"}
    with Overheard(tmp_path, nodes, targets=["s"]) as streamer:
        streamer.environment["PASSWORD"] = PASSWORD
        streamer.command("check")
        streamer.setup().start_streaming()
        sessions = (
            "SELECT bool_and(s.ssl), count(*) FROM pg_stat_ssl s JOIN pg_stat_activity USING (pid) WHERE usename = 'streamer'"
        )
        wait_for_equal(
            lambda: encrypted.query(f"SELECT ssl, n > 0 FROM ({sessions}) AS x (ssl, n)"), [(True, True)], "sessions with TLS"
        )
        assert streamer.stop() == 0
        stranger = Authority(tmp_path / "stranger").certificate
        for url, words in {
            f"{place}?sslmode=disable": "no pg_hba.conf entry",
            f"{place}?sslmode=verify-full&sslrootcert={stranger}": "certificate verify failed",
            nodes["a"].replace("127.0.0.1", "localhost"): 'does not match host name "localhost"',
        }.items():
            wrong = Overheard(tmp_path / "authority", nodes | {"a": url}, targets=["s"])
            wrong.environment["PASSWORD"] = PASSWORD
            assert words in wrong.command("check", succeeds=False).stdout
