"""PostgreSQL to MariaDB through the daemon: kills on either side, and tables that somebody alters by hand."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.daemon import Streamer
from tests.acceptance.pgbench import fill_with_pgbench, pgbench
from tests.acceptance.tables import wait_until_same
from tests.mysql_servers import MysqlDatabase
from tests.servers import Database
from tests.waiting import wait_for

BALANCES = [
    "SELECT count(*), sum(abalance), sum(aid * abalance) FROM pgbench_accounts",
    "SELECT tid, bid, tbalance FROM pgbench_tellers ORDER BY tid",
    "SELECT bid, bbalance FROM pgbench_branches ORDER BY bid",
    "SELECT count(*), count(DISTINCT id), sum(delta), sum(aid), min(id), max(id) FROM pgbench_history",
]
ALL = "SELECT id, n, name FROM t ORDER BY id"


@pytest.fixture
def streamer(tmp_path: Path, source15: Database, mariadb: MysqlDatabase) -> Iterator[Streamer]:
    """15 to MariaDB, not yet set up."""
    with Streamer(tmp_path, {"a": source15.url, "m": mariadb.url}, targets=["m"]) as streamer:
        yield streamer


def test_kills_of_the_daemon_and_of_mariadb_lose_and_double_nothing(
    streamer: Streamer, source15: Database, mariadb: MysqlDatabase
) -> None:
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")
    dice = random.Random(seed)
    fill_with_pgbench(source15)
    # without its key the history would keep a doubled row
    source15.execute("ALTER TABLE pgbench_history DROP CONSTRAINT pgbench_history_pkey")
    streamer.setup()
    with pgbench(source15, "-R", "400"):
        for _ in range(16):
            if not streamer.running:
                streamer.start()
            time.sleep(dice.uniform(0.3, 1.2))  # the random moment
            if dice.random() < 0.5:
                mariadb.server.kill()
                mariadb.server.start()
            else:
                streamer.kill()
    if not streamer.running:
        streamer.start()
    streamer.wait_for_state("streaming")
    for query in BALANCES:
        wait_until_same(source15, mariadb, query)
    assert streamer.stop() == 0


def test_mariadb_killed_during_the_initial_copy_is_filled_anew(
    streamer: Streamer, source15: Database, mariadb: MysqlDatabase
) -> None:
    source15.execute("CREATE TABLE wide (id int PRIMARY KEY, x text)")
    source15.execute("INSERT INTO wide SELECT i, repeat('x', 400) FROM generate_series(1, 200000) i")
    streamer.setup().start()
    wait_for(streamer.copying, "the copy to be under way")
    mariadb.server.kill()
    mariadb.server.start()
    source15.execute("DELETE FROM wide WHERE id % 1000 = 0")
    wait_until_same(source15, mariadb, "SELECT count(*), sum(id) FROM wide", 60)


def test_a_restart_of_mariadb_is_survived(streamer: Streamer, source15: Database, mariadb: MysqlDatabase) -> None:
    make_table(source15)
    streamer.setup().start_streaming()
    for _ in range(2):
        mariadb.server.stop()
        source15.execute("UPDATE t SET n = n + 1")
        streamer.wait_for_problem('node "m"')
        mariadb.server.start()
        wait_until_same(source15, mariadb, ALL)
    wait_for(lambda: not streamer.problems(), "the daemon to be content")
    assert streamer.stop() == 0


def test_sigterm_ends_a_daemon_whose_target_is_locked(streamer: Streamer, source15: Database, mariadb: MysqlDatabase) -> None:
    make_table(source15)
    streamer.setup().start_streaming()
    locker = mariadb.server.connect("shop")
    try:
        locker.cursor().execute("LOCK TABLES t WRITE")
        source15.execute("UPDATE t SET n = n + 1")
        waiting = "SELECT count(*) FROM information_schema.processlist WHERE state = 'Waiting for table metadata lock'"
        wait_for(lambda: mariadb.server.query(waiting) == [(1,)], "the writer to wait for the lock")
        assert streamer.stop() == 0
    finally:
        locker.close()
    streamer.start()
    wait_until_same(source15, mariadb, ALL)


def make_table(database: Database) -> None:
    """Make the table t, with rows."""
    database.execute("CREATE TABLE t (id bigint PRIMARY KEY, n bigint NOT NULL, name text)")
    database.execute("INSERT INTO t SELECT i, 0, 'x' FROM generate_series(1, 40) i")


FAULTS = {
    "a column dropped": (
        "ALTER TABLE t DROP COLUMN name",
        "UPDATE t SET n = n + 1",
        'table "public.t" has no column "name" on the target',
        "there: ALTER TABLE `shop`.`t` ADD COLUMN `name`",
        "ALTER TABLE t ADD COLUMN name LONGTEXT",
    ),
    "a type narrowed": (
        "ALTER TABLE t MODIFY n TINYINT NOT NULL",
        "UPDATE t SET n = 1000 + n WHERE id = 7",
        "`id` = '7'",
        "",
        "ALTER TABLE t MODIFY n BIGINT NOT NULL",
    ),
    "the key dropped": (
        "ALTER TABLE t DROP PRIMARY KEY",
        "UPDATE t SET n = n + 1",
        'table "public.t" has no primary key or unique index over (id) on the target',
        "there: ALTER TABLE `shop`.`t` ADD PRIMARY KEY (`id`)",
        "ALTER TABLE t ADD PRIMARY KEY (id)",
    ),
    "the table dropped": (
        "RENAME TABLE t TO kept",
        "UPDATE t SET n = n + 1",
        'node "m" has no table `shop`.`t` for "public.t"',
        "run: streamer setup",
        "RENAME TABLE kept TO t",
    ),
}


@pytest.mark.parametrize(("fault", "change", "words", "remedy", "repair"), FAULTS.values(), ids=FAULTS)
def test_a_table_altered_by_hand_is_one_clear_error_until_it_is_repaired(
    streamer: Streamer, source15: Database, mariadb: MysqlDatabase, fault: str, change: str, words: str, remedy: str, repair: str
) -> None:
    make_table(source15)
    streamer.setup().start_streaming()
    source15.execute("UPDATE t SET n = 1")
    wait_until_same(source15, mariadb, ALL)
    mariadb.execute(fault)

    def told() -> bool:
        source15.execute(change)
        return any(words in problem for problem in streamer.problems())

    wait_for(told, f"an error that says: {words}")
    (line,) = streamer.status()
    assert remedy in line["remedy"], line
    assert "public.t" in line["error"]
    assert "\n" not in line["error"] + line["remedy"]
    mariadb.execute(repair)
    wait_until_same(source15, mariadb, "SELECT id, n FROM t ORDER BY id")
    wait_for(lambda: not streamer.problems(), "the daemon to be content")
