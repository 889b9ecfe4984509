"""Ends of the daemon: nothing lost, nothing doubled, an orderly end within ten seconds. Ends of its databases: test_restarts.py."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest

from tests.acceptance.daemon import Streamer
from tests.acceptance.pgbench import BALANCES, fill_with_pgbench, pgbench
from tests.acceptance.tables import confirmed, make_counters, progress, rows, wait_until_same
from tests.proxy import Proxy
from tests.servers import Database
from tests.waiting import wait_for

either_capture = pytest.mark.parametrize("capture", ["auto", "trigger"])


# -- SIGTERM -----------------------------------------------------------------------------------------------------------------------


@either_capture
def test_sigterm_ends_an_idle_daemon_with_exit_code_0(shop: Streamer, source15: Database, target18: Database) -> None:
    shop.start_streaming()
    source15.execute("UPDATE t SET n = n + 1")
    wait_until_same(source15, target18, "SELECT * FROM t ORDER BY id")

    assert shop.stop() == 0
    assert confirmed(source15) == progress(target18)


def test_sigterm_in_a_backlog_confirms_what_the_target_holds(shop: Streamer, source15: Database, target18: Database) -> None:
    shop.start_streaming()
    shop.stop()
    before = confirmed(source15)
    source15.execute("INSERT INTO t SELECT i, 1 FROM generate_series(1001, 1100) i")
    with source15.connect() as connection:
        connection.execute("INSERT INTO t SELECT i, 1 FROM generate_series(1000001, 1100000) i")
        connection.execute("UPDATE t SET n = n + 1 WHERE id > 1000000")
    shop.start()
    wait_for(lambda: progress(target18) > before, "the first of the backlog")

    assert shop.stop() == 0
    assert confirmed(source15) == progress(target18)
    shop.start()
    wait_until_same(source15, target18, "SELECT count(*), sum(n), sum(id) FROM t")


def test_sigterm_during_a_big_transaction_leaves_nothing_of_it(shop: Streamer, source15: Database, target18: Database) -> None:
    shop.start_streaming()
    source15.execute("INSERT INTO t SELECT i, 1 FROM generate_series(1001, 200000) i")
    wait_for(lambda: shop.edges()["a->b"]["counters"]["inserted"] > 0, "a part of the transaction")

    assert shop.stop() == 0
    assert target18.query("SELECT count(*) FROM t") in ([(10,)], [(199010,)])
    assert confirmed(source15) == progress(target18)
    shop.start()
    wait_until_same(source15, target18, "SELECT count(*), sum(n), sum(id) FROM t")


def test_sigterm_while_the_target_is_locked_rolls_the_group_back(shop: Streamer, source15: Database, target18: Database) -> None:
    shop.start_streaming()
    with target18.connect() as locker:
        locker.execute("BEGIN; LOCK TABLE t")
        source15.execute("UPDATE t SET n = n + 1")
        blocked = "SELECT count(*) FROM pg_locks WHERE NOT granted"
        wait_for(lambda: target18.query(blocked) == [(1,)], "the writer to wait for the lock")

        assert shop.stop() == 0
    shop.start()
    wait_until_same(source15, target18, "SELECT * FROM t ORDER BY id")


def test_sigterm_during_the_initial_copy_breaks_it_off(tmp_path: Path, source15: Database, target18: Database) -> None:
    source15.execute("CREATE TABLE wide (id int PRIMARY KEY, x text)")
    source15.execute("INSERT INTO wide SELECT i, repeat('x', 400) FROM generate_series(1, 300000) i")
    with Streamer(tmp_path, {"a": source15.url, "b": target18.url}).setup().start() as streamer:
        wait_for(streamer.copying, "the copy to be under way")

        assert streamer.stop() == 0
        assert target18.query("SELECT count(*) FROM wide") == [(0,)]
        streamer.start()
        wait_until_same(source15, target18, "SELECT count(*), sum(id) FROM wide")


def test_sigterm_ends_a_copy_into_a_locked_table(shop: Streamer, source15: Database, target18: Database) -> None:
    with target18.connect() as locker:
        locker.execute("BEGIN; LOCK TABLE t IN EXCLUSIVE MODE")
        shop.start()
        shop.wait_for_state("copying")

        assert shop.stop() == 0
    shop.start()
    wait_until_same(source15, target18, "SELECT * FROM t ORDER BY id")


def test_sigterm_ends_a_daemon_whose_network_is_frozen(tmp_path: Path, source15: Database, target18: Database) -> None:
    make_counters(source15)
    with (
        Proxy(source15.server) as source,
        Proxy(target18.server) as target,
        Streamer(tmp_path, {"a": source.url("source"), "b": target.url("target")}) as streamer,
    ):
        streamer.setup().start_streaming()
        target.freeze()
        source15.execute("UPDATE t SET n = n + 1")
        wait_for(lambda: streamer.edges()["a->b"]["lag_bytes"] > 0, "the change to be on its way")
        source.freeze()

        assert streamer.stop() == 0
        source.thaw()
        target.thaw()
        streamer.start()
        source15.execute("UPDATE t SET n = n + 1")
        wait_until_same(source15, target18, "SELECT * FROM t ORDER BY id")


def test_a_daemon_killed_during_the_initial_copy_copies_again(tmp_path: Path, source15: Database, target18: Database) -> None:
    make_counters(source15)
    source15.execute("CREATE TABLE wide (id int PRIMARY KEY, x text)")
    source15.execute("INSERT INTO wide SELECT i, repeat('x', 400) FROM generate_series(1, 100000) i")
    file = tmp_path / "shop.sqlite"
    count = "SELECT count(*), sum(id) FROM wide"
    with Proxy(source15.server) as proxy:
        nodes = {"a": proxy.url("source"), "b": target18.url, "s": f"sqlite:///{file}"}
        with Streamer(tmp_path, nodes, targets=["b", "s"]).setup().start() as streamer:
            wait_for(lambda: len(streamer.copying()) == 2, "both copies to be under way")
            proxy.freeze()  # far more rows than what is on the way
            streamer.kill()
            for target in (target18, file):
                assert rows(target, count) == [(0, None)]
            proxy.thaw()
            source15.execute("DELETE FROM wide WHERE id % 100 = 0")
            streamer.start()
            for target in (target18, file):
                wait_until_same(source15, target, count)
                wait_until_same(source15, target, "SELECT * FROM t ORDER BY id")


def test_ctrl_c_ends_the_daemon_like_sigterm(shop: Streamer) -> None:
    shop.start_streaming()
    os.kill(shop.pid, signal.SIGINT)

    assert shop.wait(10) == 0


# -- kill -9 of the daemon ---------------------------------------------------------------------------------------------------------


@either_capture
def test_a_daemon_killed_at_random_moments_loses_and_doubles_nothing(
    tmp_path: Path, source15: Database, target18: Database, capture: str
) -> None:
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")
    dice = random.Random(seed)
    fill_with_pgbench(source15)
    file = tmp_path / "shop.sqlite"
    nodes = {"a": source15.url, "b": target18.url, "s": f"sqlite:///{file}"}
    with Streamer(tmp_path, nodes, targets=["b", "s"], capture=capture).setup() as streamer:
        # without its key the history would keep a doubled row
        target18.execute("ALTER TABLE pgbench_history DROP CONSTRAINT pgbench_history_pkey")
        rows(file, "DROP TABLE pgbench_history")
        rows(file, "CREATE TABLE pgbench_history (id INT, tid INT, bid INT, aid INT, delta INT, mtime TEXT, filler TEXT)")
        with pgbench(source15, "-R", "400"):
            for _ in range(20):
                streamer.start()
                time.sleep(dice.uniform(0.3, 1.2))  # the random moment
                streamer.kill()
        streamer.start_streaming()
        for query in BALANCES:
            wait_until_same(source15, target18, query)
            wait_until_same(source15, file, query)
        assert streamer.stop() == 0
