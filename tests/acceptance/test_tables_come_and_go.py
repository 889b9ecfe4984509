"""Tables that join a running sync, leave it, or are copied once more, while the stream goes on with the others."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from tests.acceptance.daemon import Streamer
from tests.acceptance.tables import make_counters, wait_until_same
from tests.servers import Database
from tests.waiting import wait_for, wait_for_equal

ALL = "SELECT id, n FROM {} ORDER BY id"


def make(database: Database, name: str, *, filled: bool = True) -> None:
    database.execute(f"CREATE TABLE {name} (id bigint PRIMARY KEY, n bigint NOT NULL)")
    if filled:
        database.execute(f"INSERT INTO {name} SELECT i, 0 FROM generate_series(1, 100) i")


def reload(streamer: Streamer, **changes: object) -> None:
    """Have the daemon take another config, with what its nodes need for it."""
    before = streamer.log.count("config_reloaded")
    streamer.write_config(**changes)
    streamer.setup()
    os.kill(streamer.pid, signal.SIGHUP)
    wait_for(lambda: streamer.log.count("config_reloaded") > before, "the config to be read")


def copied(target: Database) -> dict[str, str]:
    """From where on the target applies changes of each table."""
    return dict(target.query("SELECT table_name, position FROM streamer.copy"))


def test_a_table_joins_and_leaves_while_the_others_stream(tmp_path: Path, source15: Database, target18: Database) -> None:
    make_counters(source15)
    with Streamer(tmp_path, {"a": source15.url, "b": target18.url}, tables=["public.t"]).setup().start() as streamer:
        streamer.wait_for_state("streaming")
        before = copied(target18)
        make(source15, "late")
        reload(streamer, tables=["public.t", "public.late"])
        wait_until_same(source15, target18, ALL.format("late"))
        source15.execute("UPDATE late SET n = 1; UPDATE t SET n = 1")
        for table in ("late", "t"):
            wait_until_same(source15, target18, ALL.format(table))
        assert copied(target18).items() >= before.items()
        assert streamer.log.count("copy_started") == 2

        reload(streamer, tables=["public.t"])
        wait_for_equal(lambda: copied(target18), before, "the table's record to go")
        source15.execute("DELETE FROM late; UPDATE t SET n = 2")
        wait_until_same(source15, target18, ALL.format("t"))
        assert target18.query("SELECT count(*) FROM late") == [(100,)]

        target18.execute("TRUNCATE late")
        source15.execute("INSERT INTO late VALUES (7, 7)")
        reload(streamer, tables=["public.t", "public.late"])
        wait_until_same(source15, target18, ALL.format("late"))


def test_a_table_is_copied_once_more_while_the_stream_goes_on(tmp_path: Path, source15: Database, target18: Database) -> None:
    make_counters(source15)
    make(source15, "other")
    with Streamer(tmp_path, {"a": source15.url, "b": target18.url}).setup().start() as streamer:
        streamer.wait_for_state("streaming")
        before = copied(target18)
        target18.execute("UPDATE t SET n = 99 WHERE id < 5; DELETE FROM t WHERE id > 7; INSERT INTO t VALUES (-1, -1)")
        source15.execute("UPDATE other SET n = 1")
        said = streamer.command("copy", "shop", "--table", "t", "--yes").stdout
        assert 'table "public.t" is copied again to b' in said
        wait_until_same(source15, target18, ALL.format("t"))
        source15.execute("UPDATE t SET n = n + 1; UPDATE other SET n = n + 1")
        for table in ("t", "other"):
            wait_until_same(source15, target18, ALL.format(table))
        assert copied(target18)["other"] == before["other"]
        assert copied(target18)["t"] != before["t"]
        refused = streamer.command("copy", "shop", "--table", "sales.t", "--yes", succeeds=False)
        assert (refused.returncode, refused.stderr) == (
            1,
            'error: sync "shop" does not select table "sales.t"; see: streamer tables\n',
        )
        misspelt = streamer.command("copy", "shop", "--table", "tt", succeeds=False)
        assert (misspelt.returncode, misspelt.stdout, misspelt.stderr) == (
            1,
            "",  # nothing was asked
            'error: sync "shop" has no table "public.tt"; see: streamer tables --sync shop\n',
        )
