"""Ends of the daemon and of its databases: nothing lost, nothing doubled, and an orderly end within ten seconds."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from streamer.model import LSN
from tests.acceptance.daemon import Streamer
from tests.acceptance.tables import rows, wait_until_same
from tests.proxy import Proxy
from tests.servers import Database, StopMode
from tests.waiting import wait_for

HISTORY = "SELECT count(*), sum(delta), sum(id), min(id), max(id) FROM pgbench_history"
BALANCES = [
    "SELECT count(*), sum(abalance), sum(aid * abalance) FROM pgbench_accounts",
    "SELECT tid, bid, tbalance FROM pgbench_tellers ORDER BY tid",
    "SELECT bid, bbalance FROM pgbench_branches ORDER BY bid",
    "SELECT id, tid, bid, aid, delta FROM pgbench_history ORDER BY id",
    HISTORY,
]


def fill_with_pgbench(database: Database) -> None:
    """Make pgbench's tables, with a key for the history."""
    subprocess.run([database.server.bin_dir / "pgbench", "-i", "-q", "-s", "1", database.url], check=True, capture_output=True)
    database.execute("ALTER TABLE pgbench_history ADD COLUMN id bigserial PRIMARY KEY")


@contextmanager
def pgbench(database: Database, *options: str) -> Iterator[None]:
    """Run pgbench while the context lasts."""
    load = subprocess.Popen(
        [database.server.bin_dir / "pgbench", "-n", "-c", "2", "-T", "100", *options, database.url],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield
    finally:
        load.terminate()
        load.wait(10)


def make_counters(database: Database, number: int = 10) -> None:
    """Make a small table of our own, with rows."""
    database.execute("CREATE TABLE t (id bigint PRIMARY KEY, n bigint NOT NULL)")
    database.execute("INSERT INTO t SELECT i, 0 FROM generate_series(1, %s) i", [number])


def slot_position(source: Database) -> LSN:
    (found,) = source.query("SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE slot_name = 'streamer_shop_a'")
    return LSN.parse(found[0])


def progress(target: Database) -> LSN:
    (found,) = target.query("SELECT position FROM streamer.progress")
    return LSN.parse(found[0])


# -- SIGTERM -----------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def shop(tmp_path: Path, source15: Database, target18: Database) -> Iterator[Streamer]:
    """15 to 18, the table t with 100 rows."""
    make_counters(source15)
    with Streamer(tmp_path, {"a": source15.url, "b": target18.url}) as streamer:
        yield streamer.setup()


def test_sigterm_ends_an_idle_daemon_with_exit_code_0(shop: Streamer, source15: Database, target18: Database) -> None:
    shop.start_streaming()
    source15.execute("UPDATE t SET n = n + 1")
    wait_until_same(source15, target18, "SELECT * FROM t ORDER BY id")

    assert shop.stop() == 0
    assert slot_position(source15) == progress(target18)


def test_sigterm_in_a_backlog_confirms_what_the_target_holds(shop: Streamer, source15: Database, target18: Database) -> None:
    shop.start_streaming()
    shop.stop()
    before = slot_position(source15)
    source15.execute("INSERT INTO t SELECT i, 1 FROM generate_series(1001, 1100) i")
    with source15.connect() as connection:
        connection.execute("INSERT INTO t SELECT i, 1 FROM generate_series(1000001, 1100000) i")
        connection.execute("UPDATE t SET n = n + 1 WHERE id > 1000000")
    shop.start()
    wait_for(lambda: progress(target18) > before, "the first of the backlog")

    assert shop.stop() == 0
    assert slot_position(source15) == progress(target18)
    shop.start()
    wait_until_same(source15, target18, "SELECT count(*), sum(n), sum(id) FROM t")


def test_sigterm_during_a_big_transaction_leaves_nothing_of_it(shop: Streamer, source15: Database, target18: Database) -> None:
    shop.start_streaming()
    source15.execute("INSERT INTO t SELECT i, 1 FROM generate_series(1001, 200000) i")
    wait_for(lambda: shop.edges()["a->b"]["counters"]["inserted"] > 0, "a part of the transaction")

    assert shop.stop() == 0
    assert target18.query("SELECT count(*) FROM t") in ([(10,)], [(199010,)])
    assert slot_position(source15) == progress(target18)
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


def test_a_daemon_killed_at_random_moments_loses_and_doubles_nothing(
    tmp_path: Path, source15: Database, target18: Database
) -> None:
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")
    dice = random.Random(seed)
    fill_with_pgbench(source15)
    file = tmp_path / "shop.sqlite"
    nodes = {"a": source15.url, "b": target18.url, "s": f"sqlite:///{file}"}
    with Streamer(tmp_path, nodes, targets=["b", "s"]).setup() as streamer:
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


# -- restarts of source and target -------------------------------------------------------------------------------------------------


@contextmanager
def counting(source: Database) -> Iterator[None]:
    """Commit transactions on the source while the context lasts, as many as it takes, through restarts."""
    stop = threading.Event()

    def count() -> None:
        while not stop.is_set():
            try:
                with source.connect() as connection:
                    while not stop.is_set():
                        connection.execute("UPDATE t SET n = n + 1 WHERE id = 1 + (random() * 9)::int")
            except psycopg.OperationalError:
                stop.wait(0.05)

    thread = threading.Thread(target=count)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def wait_until_it_goes_on(source: Database, target: Database) -> None:
    """Wait until the target holds what is committed on the source now."""
    mark = LSN.parse(source.query("SELECT pg_current_wal_lsn()::text")[0][0])
    wait_for(lambda: progress(target) > mark, "the stream to go on")


def wait_for_a_confirmation(source: Database) -> None:
    """Wait until the slot has moved."""
    before = slot_position(source)
    wait_for(lambda: slot_position(source) > before, "a confirmation")


@pytest.fixture
def lazy_target18(target18: Database) -> Iterator[Database]:
    """A target that leaves asynchronous commits in memory for long, so that a crash forgets them."""
    target18.server.execute("ALTER SYSTEM SET wal_writer_delay = '1s'")
    target18.server.execute("SELECT pg_reload_conf()")
    yield target18
    target18.server.start()
    target18.server.execute("ALTER SYSTEM RESET wal_writer_delay")
    target18.server.execute("SELECT pg_reload_conf()")


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_a_restart_of_the_source_loses_nothing(shop: Streamer, source15: Database, target18: Database, mode: StopMode) -> None:
    shop.start_streaming()
    with counting(source15):
        for _ in range(3):
            source15.server.restart(mode)
            wait_until_it_goes_on(source15, target18)
    wait_until_same(source15, target18, "SELECT * FROM t ORDER BY id")
    wait_for(lambda: not shop.problems(), "the daemon to be content")
    assert shop.stop() == 0


def test_a_restart_of_the_target_loses_nothing(shop: Streamer, source15: Database, target18: Database) -> None:
    shop.start_streaming()
    with counting(source15):
        for _ in range(3):
            target18.server.restart("fast")
            wait_until_it_goes_on(source15, target18)
    wait_until_same(source15, target18, "SELECT * FROM t ORDER BY id")
    wait_for(lambda: not shop.problems(), "the daemon to be content")
    assert shop.stop() == 0


def test_a_crash_of_the_target_forgets_nothing_that_was_confirmed(
    shop: Streamer, source15: Database, lazy_target18: Database
) -> None:
    shop.start_streaming()
    with counting(source15):
        for _ in range(4):
            wait_for_a_confirmation(source15)
            lazy_target18.server.restart("immediate")
            assert slot_position(source15) <= progress(lazy_target18)
            wait_until_it_goes_on(source15, lazy_target18)
    wait_until_same(source15, lazy_target18, "SELECT * FROM t ORDER BY id")
    wait_for(lambda: not shop.problems(), "the daemon to be content")


def test_progress_that_a_killed_daemon_left_unflushed_is_not_confirmed_by_the_next(
    shop: Streamer, source15: Database, lazy_target18: Database
) -> None:
    shop.start_streaming()
    for n in range(2):
        source15.execute("UPDATE t SET n = n + 1")
        wait_until_same(source15, lazy_target18, "SELECT * FROM t ORDER BY id")
        shop.kill()
        shop.start_streaming()
        if n:  # the first time, at once
            wait_for_a_confirmation(source15)
        lazy_target18.server.restart("immediate")
        assert slot_position(source15) <= progress(lazy_target18)
    wait_until_same(source15, lazy_target18, "SELECT * FROM t ORDER BY id")


def test_a_source_restarted_with_its_target_away_keeps_what_the_target_lacks(
    tmp_path: Path, source15: Database, target18: Database
) -> None:
    make_counters(source15)
    file = tmp_path / "shop.sqlite"
    nodes = {"a": source15.url, "b": target18.url, "s": f"sqlite:///{file}"}
    with Streamer(tmp_path, nodes, targets=["b", "s"]).setup().start_streaming() as streamer:
        target18.server.stop()
        for _ in range(2):
            source15.execute("UPDATE t SET n = n + 1")
            wait_until_same(source15, file, "SELECT * FROM t ORDER BY id")
            source15.server.restart("immediate")
        source15.execute("UPDATE t SET n = n + 1")
        wait_until_same(source15, file, "SELECT * FROM t ORDER BY id")
        streamer.kill()
        streamer.start()
        source15.execute("UPDATE t SET n = n + 1")
        wait_until_same(source15, file, "SELECT * FROM t ORDER BY id")
        assert any('node "b"' in problem for problem in streamer.problems())

        target18.server.start()
        wait_until_same(source15, target18, "SELECT * FROM t ORDER BY id")
        wait_for(lambda: not streamer.problems(), "the daemon to be content")


def test_a_target_that_comes_back_during_a_busy_stream_misses_nothing(
    tmp_path: Path, source15: Database, target18: Database
) -> None:
    make_counters(source15)
    file = tmp_path / "shop.sqlite"
    nodes = {"a": source15.url, "b": target18.url, "s": f"sqlite:///{file}"}
    with Streamer(tmp_path, nodes, targets=["b", "s"]).setup().start_streaming() as streamer:
        with counting(source15):
            for _ in range(3):
                target18.server.restart("immediate")
                wait_until_it_goes_on(source15, target18)
        for target in (target18, file):
            wait_until_same(source15, target, "SELECT * FROM t ORDER BY id")
        assert streamer.stop() == 0


def test_a_target_that_fails_amid_a_big_transaction_comes_back(shop: Streamer, source15: Database, target18: Database) -> None:
    shop.start_streaming()
    source15.execute("INSERT INTO t SELECT i, 1 FROM generate_series(1001, 150000) i")
    wait_for(lambda: shop.edges()["a->b"]["counters"]["inserted"] > 0, "a part of the transaction")
    target18.server.restart("immediate")

    wait_until_same(source15, target18, "SELECT count(*), sum(n), sum(id) FROM t")


@pytest.mark.parametrize("blocked", [False, True], ids=["streaming", "blocked"])
def test_a_source_shuts_down_while_we_read(shop: Streamer, source15: Database, target18: Database, blocked: bool) -> None:
    shop.start_streaming()
    source15.execute("UPDATE t SET n = n + 1")
    wait_until_same(source15, target18, "SELECT * FROM t ORDER BY id")
    with target18.connect() as locker:
        if blocked:
            locker.execute("BEGIN; LOCK TABLE t")
        source15.execute("UPDATE t SET n = n + 1")
        source15.server.stop("fast")  # it waits for its readers, and fails if that takes long
        assert blocked or target18.query("SELECT min(n) FROM t") == [(2,)]
    source15.server.start()
    wait_until_same(source15, target18, "SELECT * FROM t ORDER BY id")
