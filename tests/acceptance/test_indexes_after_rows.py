"""Indexes that come after the rows: the daemon is killed while it makes one."""

from __future__ import annotations

from pathlib import Path

from tests.acceptance.daemon import Streamer
from tests.servers import Database
from tests.waiting import wait_for

HOLD = """
CREATE FUNCTION hold(n int) RETURNS int IMMUTABLE LANGUAGE plpgsql AS $$ BEGIN
    PERFORM pg_advisory_lock_shared(77); PERFORM pg_advisory_unlock_shared(77); RETURN n; END $$
"""
"""An index over it is not made as long as somebody has the lock."""
INDEXES = "SELECT indexrelid::regclass::text, indisvalid FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid "
INDEXES += "WHERE c.relnamespace = 'public'::regnamespace ORDER BY 1"


def test_an_index_that_was_being_made_when_the_daemon_was_killed_is_made_once(
    tmp_path: Path, source15: Database, target18: Database
) -> None:
    for node in (source15, target18):
        node.execute(HOLD)
    source15.execute("CREATE TABLE t (id int PRIMARY KEY, v int); CREATE TABLE u (id int PRIMARY KEY, t int REFERENCES t)")
    source15.execute("CREATE INDEX plain ON t (v, id); CREATE INDEX slow ON t (hold(id))")
    source15.execute(
        "INSERT INTO t SELECT i, i FROM generate_series(1, 1000) i; INSERT INTO u SELECT i, i FROM generate_series(1, 9) i"
    )
    with Streamer(tmp_path, {"a": source15.url, "b": target18.url}).setup() as streamer:
        with target18.connect() as connection:
            connection.execute("SELECT pg_advisory_lock(77)")
            streamer.start()
            wait_for(
                lambda: target18.query("SELECT 1 FROM streamer.post_data") == [(1,), (1,)], "all but one index, and a foreign key"
            )
            told = streamer.command("status", succeeds=False).stdout
            assert "indexing" in told
            assert "index slow of table public.t is being made since" in told
            streamer.kill()
        source15.execute("INSERT INTO t VALUES (2000, 2000)")
        streamer.start_streaming()
        assert target18.query(INDEXES) == source15.query(INDEXES)
        assert target18.query("SELECT conname FROM pg_constraint WHERE contype = 'f'") == [("u_t_fkey",)]
        wait_for(lambda: target18.query("SELECT 1 FROM t WHERE id = 2000"), "the row that came meanwhile")
        assert streamer.log.count("post_data_built") == 3
