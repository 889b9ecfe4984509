"""The source fails over: its WAL goes on, on a new timeline, with all that the target holds or without the last of it.

The promoted standby is the source itself, started in the place of a standby from its own files or from an older copy of them: so
it has the slot, as one has it that slots are copied to.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.daemon import Streamer
from tests.acceptance.tables import make_counters, wait_until_same
from tests.binaries import server_b_bin_dir
from tests.servers import Database, PostgresServer
from tests.waiting import wait_for

ALL = "SELECT * FROM t ORDER BY id"
INSERT = "INSERT INTO t SELECT i, %s FROM generate_series(%s::int, %s::int) i"


@pytest.fixture
def source() -> Iterator[Database]:
    """On a server of its own, since all of it changes."""
    bin_dir = server_b_bin_dir()
    assert bin_dir is not None
    server = PostgresServer(bin_dir)
    try:
        server.start()
        yield server.create_database("moving")
    finally:
        server.close()


def promote(server: PostgresServer) -> None:
    """Start the server as a standby, and make it the primary of the next timeline."""
    (server.data_dir / "standby.signal").touch()
    server.start()
    server.execute("SELECT pg_promote(true)")


def test_a_promoted_standby_that_lacks_what_the_target_holds_is_refused(
    source: Database, target18: Database, tmp_path: Path
) -> None:
    """The stream went on from the target's position: what the new primary had committed before it was passed over."""
    server, older = source.server, tmp_path / "older"
    make_counters(source)
    nodes = {"a": source.url, "b": target18.url, "s": f"sqlite:///{tmp_path}/s.sqlite", "j": f"jsonl:///{tmp_path}/j"}
    with Streamer(tmp_path, nodes, targets=["b", "s", "j"]) as streamer:
        streamer.setup().start_streaming()
        server.stop()
        promote(server)
        source.execute(INSERT, [2, 101, 200])  # and with all of it the stream goes on
        wait_until_same(source, target18, ALL)
        wait_until_same(source, tmp_path / "s.sqlite", ALL)
        streamer.stop()
        server.stop()
        shutil.copytree(server.data_dir, older, symlinks=True)
        server.start()
        streamer.start_streaming()  # the new timeline is known to the next daemon
        source.execute(INSERT, [2, 201, 300])
        wait_until_same(source, target18, ALL)
        with streamer.frozen():  # until the WAL is past its old end: before, the daemon tells of a source restored from a backup
            server.stop("immediate")
            shutil.rmtree(server.data_dir)
            shutil.copytree(older, server.data_dir, symlinks=True)
            server._hand_over(server.directory)
            promote(server)
            source.execute(INSERT, [3, 401, 410])
            source.execute("CREATE TABLE filler AS SELECT repeat('x', 1000) AS x FROM generate_series(1, 3000)")
        streamer.wait_for_problem("is on timeline 3 of its WAL, and never had all that")
        streamer.kill()
        streamer.start()
        streamer.wait_for_problem("is on timeline 3 of its WAL, and never had all that")
        assert target18.query("SELECT count(*) FROM t WHERE id > 400") == [(0,)]


def test_a_source_that_waits_for_its_standby_is_told_and_goes_on(source: Database, target18: Database, tmp_path: Path) -> None:
    """The server's warning was taken for a missing publication, and the stream stopped for good."""
    make_counters(source)
    source.server.execute("SELECT pg_create_physical_replication_slot('two', true)")
    source.server.execute("ALTER SYSTEM SET synchronized_standby_slots = 'two'")
    source.server.execute("SELECT pg_reload_conf()")
    with Streamer(tmp_path, {"a": source.url, "b": target18.url}) as streamer:
        streamer.setup().command("slots", "create", "shop", "--failover")
        streamer.start()
        source.execute(INSERT, [2, 201, 300])
        streamer.wait_for_problem("synchronized_standby_slots")
        (edge,) = streamer.status()
        assert edge["state"] == "streaming", edge
        assert "start that standby" in edge["remedy"], edge
        source.server.execute("ALTER SYSTEM RESET synchronized_standby_slots")
        source.server.execute("SELECT pg_reload_conf()")
        wait_until_same(source, target18, ALL)
        wait_for(lambda: not streamer.problems(), "the problem to be over")
