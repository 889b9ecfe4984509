"""`streamer verify --repair` where another sync goes the other way: what is on its way back must not be undone."""

from __future__ import annotations

from pathlib import Path

from tests.acceptance.moving import both_ways
from tests.conftest import Databases
from tests.role import reached
from tests.servers import PostgresServer

ROWS = "SELECT id, v FROM t ORDER BY id"


def test_repair_does_not_undo_what_clients_have_written_on_the_target(
    databases: Databases, server_a: PostgresServer, server_b: PostgresServer, tmp_path: Path
) -> None:
    old, new = databases.create(server_a, "old"), databases.create(server_b, "new")
    old.execute("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, 'a'), (2, 'b'), (3, 'c')")
    with both_ways(tmp_path, {"old": reached(old.url), "new": reached(new.url)}) as streamer:
        repair = ("verify", "forth", "--repair", "--yes", "--wait", "1")
        streamer.command("pause", "back")
        new.execute("INSERT INTO t VALUES (4, 'd'); UPDATE t SET v = 'B' WHERE id = 2; DELETE FROM t WHERE id = 3")
        written = new.query(ROWS)
        refused = streamer.command(*repair, succeeds=False)
        assert refused.returncode == 1
        assert 'what was written on "new" goes to "old" by sync "back", and has not arrived' in refused.stdout + refused.stderr
        assert new.query(ROWS) == written
        streamer.command("resume", "back")
        streamer.command("kick", "back", "--wait", "60")
        streamer.command("verify", "forth", "--repair", "--yes")
        assert new.query(ROWS) == old.query(ROWS) == written
