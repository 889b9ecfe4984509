"""Ends of source and target, orderly and not, while the daemon goes on: nothing lost, nothing doubled."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from tests.acceptance.daemon import Streamer
from tests.acceptance.tables import confirmed, make_counters, progress, wait_until_same
from tests.meanwhile import meanwhile
from tests.servers import Database, StopMode
from tests.waiting import wait_for

either_capture = pytest.mark.parametrize("capture", ["auto", "trigger"])


@contextmanager
def counting(source: Database) -> Iterator[None]:
    """Commit transactions on the source while the context lasts, as many as it takes, through restarts."""

    def count(stop: threading.Event) -> None:
        while not stop.is_set():
            try:
                with source.connect() as connection:
                    while not stop.is_set():
                        connection.execute("UPDATE t SET n = n + 1 WHERE id = 1 + (random() * 9)::int")
            except psycopg.OperationalError:
                stop.wait(0.05)

    with meanwhile(count):
        yield


def wait_until_it_goes_on(source: Database, target: Database) -> None:
    """Wait until the target holds what is committed on the source now; `counting` there."""
    total = "SELECT sum(n) FROM t"
    mark = source.query(total)
    wait_for(lambda: target.query(total) >= mark, "the stream to go on")


def wait_for_a_confirmation(source: Database) -> None:
    """Wait until the slot has moved."""
    before = confirmed(source)
    wait_for(lambda: confirmed(source) > before, "a confirmation")


@pytest.fixture
def lazy_target18(target18: Database) -> Iterator[Database]:
    """A target that leaves asynchronous commits in memory for long, so that a crash forgets them."""
    target18.server.execute("ALTER SYSTEM SET wal_writer_delay = '1s'")
    target18.server.execute("SELECT pg_reload_conf()")
    yield target18
    target18.server.start()
    target18.server.execute("ALTER SYSTEM RESET wal_writer_delay")
    target18.server.execute("SELECT pg_reload_conf()")


@either_capture
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


@either_capture
def test_a_crash_of_the_target_forgets_nothing_that_was_confirmed(
    shop: Streamer, source15: Database, lazy_target18: Database
) -> None:
    shop.start_streaming()
    with counting(source15):
        for _ in range(4):
            wait_for_a_confirmation(source15)
            lazy_target18.server.restart("immediate")
            assert confirmed(source15) <= progress(lazy_target18)
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
            wait_for(lambda: confirmed(source15) >= progress(lazy_target18), "all to be confirmed")
        lazy_target18.server.restart("immediate")
        assert confirmed(source15) <= progress(lazy_target18)
    wait_until_same(source15, lazy_target18, "SELECT * FROM t ORDER BY id")


@either_capture
def test_a_source_restarted_with_its_target_away_keeps_what_the_target_lacks(
    tmp_path: Path, source15: Database, target18: Database, capture: str
) -> None:
    make_counters(source15)
    file = tmp_path / "shop.sqlite"
    nodes = {"a": source15.url, "b": target18.url, "s": f"sqlite:///{file}"}
    with Streamer(tmp_path, nodes, targets=["b", "s"], capture=capture).setup().start_streaming() as streamer:
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
