"""The scenario that Bucardo users know: pgbench on A, B and C, which also reaches D; then C to MariaDB and SQLite when kicked."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tests.acceptance.mesh import MARKS, Mesh
from tests.acceptance.pgbench import pgbench
from tests.acceptance.tables import rows
from tests.acceptance.test_multi_master import BALANCES, DELTAS, fill
from tests.conftest import Databases
from tests.mysql_servers import MysqlDatabase
from tests.servers import PostgresServer
from tests.waiting import wait_for

HISTORY = "SELECT count(*) > 200 FROM pgbench_history WHERE mtime IS NOT NULL"


def test_what_three_sources_made_reaches_mariadb_and_sqlite_on_kick_and_nothing_of_the_target(
    tmp_path: Path, databases: Databases, pg15: PostgresServer, pg18: PostgresServer, mariadb: MysqlDatabase
) -> None:
    nodes = {name: databases.create(server, f"shop_{name}") for name, server in zip("abcd", [pg15, pg18, pg15, pg18], strict=True)}
    file = tmp_path / "shop.sqlite"
    syncs: dict[str, dict[str, Any]] = {
        "shop": {"sources": list("abc"), "targets": ["d"], "table": DELTAS},
        "reports": {"sources": ["c"], "targets": ["maria", "file"], "run": "manual"},
    }
    urls = {"maria": mariadb.url, "file": f"sqlite:///{file}"}
    with Mesh(tmp_path, nodes, syncs, urls=urls, captures={"a": "wal2json"}) as mesh:
        fill(pg15, nodes["a"])
        nodes["a"].execute(MARKS)
        mesh.command("setup", "--fix")
        mesh.start()
        mesh.wait_until_quiet(BALANCES[:3])
        mesh.command("kick", "reports", "--wait", "60")  # the initial copy
        with ExitStack() as load:
            for name in "abc":
                load.enter_context(pgbench(nodes[name], "-R", "100"))
            nodes["d"].execute("INSERT INTO mark VALUES (1000, 1)")
            for name in "abc":
                wait_for(lambda node=nodes[name]: node.query(HISTORY) == [(True,)], "the load")  # type: ignore[misc]
            mesh.command("kick", "reports", "--wait", "60")  # amid all that
        mesh.wait_until_quiet(BALANCES)
        assert rows(file, BALANCES[3]) != nodes["c"].query(BALANCES[3])
        mesh.command("kick", "reports", "--wait", "60")
        for query in BALANCES:
            expected = nodes["c"].query(query)
            assert rows(mariadb, query) == expected
            assert rows(file, query) == expected
        for node in (mariadb, file):
            assert rows(node, "SELECT 1 FROM mark WHERE node = 1000") == []
        assert mesh.stop() == 0
