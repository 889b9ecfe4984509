"""`streamer cutover` from a source with triggers, as old as there is, and to a target that is not PostgreSQL."""

from __future__ import annotations

from pathlib import Path

from tests.acceptance.daemon import Streamer
from tests.acceptance.ledger import make_ledger
from tests.acceptance.moving import ROWS, both_ways, check_everything_arrived, writing
from tests.conftest import Databases
from tests.role import reached
from tests.servers import PostgresServer


def test_from_triggers_over_and_back_nothing_is_lost(
    databases: Databases, trigger_server: PostgresServer, pg18: PostgresServer, tmp_path: Path
) -> None:
    old, new = databases.create(trigger_server, "left"), databases.create(pg18, "right")
    make_ledger(old, ROWS)
    # a role of its own: before 9.0 that is all that tells streamer's sessions from those of applications
    old.execute("CREATE ROLE streamer SUPERUSER LOGIN PASSWORD 'choose-one'")
    nodes = {"old": old.server.url(old.name, "streamer", "choose-one"), "new": reached(new.url)}
    with both_ways(tmp_path, nodes, "trigger") as moving, writing(old) as applications:
        for sync, name, there in (("forth", "new", new), ("back", "old", old)):
            print(moving.command("cutover", sync, "--to", name, "--block-writes", "--skip-verify", "--yes").stdout)
            applications.move(there)
        applications.stop()
        check_everything_arrived(applications, moving, old, new)


def test_without_a_way_back_it_moves_to_another_engine_only_if_one_insists(
    databases: Databases, pg15: PostgresServer, tmp_path: Path
) -> None:
    old = databases.create(pg15, "left")
    old.execute("CREATE TABLE t (id serial PRIMARY KEY)")
    with Streamer(tmp_path, {"a": old.url, "b": f"sqlite:///{tmp_path}/b.sqlite"}) as moving:
        moving.setup().start_streaming()
        old.execute("INSERT INTO t SELECT FROM generate_series(1, 10)")
        refused = moving.command("cutover", "shop", "--to", "b", "--yes", succeeds=False)
        assert "its changes cannot be read, so there is no way back; to move all the same: --no-way-back" in refused.stderr
        text = moving.path.read_text()
        moving.path.write_text(f'{text}[syncs.shop.table."public.t"]\nfullcopy = true\n')
        refused = moving.command("cutover", "shop", "--to", "b", "--yes", "--no-way-back", succeeds=False)
        assert 'error: table "public.t": is copied whole to "b" again and again' in refused.stdout
        moving.path.write_text(text)
        moved = moving.command("cutover", "shop", "--to", "b", "--yes", "--no-way-back").stdout
    assert "3/4 compare all rows\n    10 rows of 1 table are equal" in moved
