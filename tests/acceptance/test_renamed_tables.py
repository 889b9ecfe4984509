"""A table that is renamed, or loses its key, on the source while it is streamed."""

from __future__ import annotations

import pytest

from streamer.capture.catalog import require_names
from streamer.model import TableName
from streamer.session import connect
from tests.acceptance.daemon import Streamer
from tests.acceptance.tables import wait_until_same
from tests.servers import Database

ALL = "SELECT * FROM t ORDER BY id"


@pytest.mark.parametrize("capture", ["pgoutput", "trigger"])
@pytest.mark.parametrize("cure", ["renamed back", "renamed on the target"])
def test_changes_of_a_table_that_is_renamed_are_not_passed_over(
    cure: str, shop: Streamer, source15: Database, target18: Database
) -> None:
    """They came under a name that no edge had a copy of, and were left out without a word."""
    shop.start_streaming()
    source15.execute("ALTER TABLE t RENAME TO moved")
    source15.execute("INSERT INTO moved VALUES (11, 1)")
    shop.wait_for_problem('table "public.t" on "a" was renamed to "public.moved"')
    (edge,) = shop.status()
    assert "rename it back" in edge["remedy"], edge
    if cure == "renamed back":
        source15.execute("ALTER TABLE moved RENAME TO t")
        source15.execute("INSERT INTO t VALUES (12, 1)")
        wait_until_same(source15, target18, ALL)
        return
    shop.stop()
    target18.execute("ALTER TABLE t RENAME TO moved")
    shop.start()
    source15.execute("INSERT INTO moved VALUES (12, 1)")
    wait_until_same(source15, target18, "SELECT * FROM moved ORDER BY id")


@pytest.mark.parametrize("capture", ["wal2json"])
def test_updates_of_a_table_that_loses_its_key_are_not_left_out_without_a_word(
    shop: Streamer, source15: Database, target18: Database
) -> None:
    """wal2json sends inserts only then; pgoutput needs no look, because the source refuses such updates."""
    shop.start_streaming()
    source15.execute("ALTER TABLE t DROP CONSTRAINT t_pkey; UPDATE t SET n = 5 WHERE id = 1")
    shop.wait_for_problem('table "public.t" on "a", or a partition of it, has lost its replica identity')
    source15.execute("ALTER TABLE t ADD PRIMARY KEY (id); UPDATE t SET n = 6 WHERE id = 1")
    wait_until_same(source15, target18, ALL)


def test_a_table_that_becomes_a_partition_is_not_taken_for_renamed(source15: Database) -> None:
    """The stream stood still: the table was renamed, it said, to the name that it had."""
    source15.execute("CREATE TABLE whole (id integer PRIMARY KEY) PARTITION BY RANGE (id); CREATE TABLE apart (LIKE whole)")
    source15.execute("ALTER TABLE whole ATTACH PARTITION apart DEFAULT")
    whole, apart = TableName("public", "whole"), TableName("public", "apart")
    ((oid,),) = source15.query("SELECT 'apart'::regclass::oid::bigint")
    carried = {apart: oid}
    with connect("a", source15.url, application="streamer test") as connection:
        require_names(connection, carried, {whole}, "a", "shop")
    assert carried == {}


@pytest.mark.parametrize("capture", ["wal2json"])
def test_a_table_that_another_one_has_taken_the_name_of_is_not_taken_for_it(
    shop: Streamer, source15: Database, target18: Database
) -> None:
    """What had come into the other one before was missing on the target, without a word."""
    shop.start_streaming()
    source15.execute("CREATE TABLE made (id bigint PRIMARY KEY, n bigint NOT NULL); INSERT INTO made VALUES (1, 5)")
    source15.execute("BEGIN; DROP TABLE t; ALTER TABLE made RENAME TO t; COMMIT")
    shop.wait_for_problem('table "public.t" on "a" is another one than before')
    shop.stop()
    shop.start_streaming()
    source15.execute("INSERT INTO t VALUES (12, 5)")
    shop.command("verify", "shop", "--repair", "--yes")
    wait_until_same(source15, target18, ALL)


@pytest.mark.parametrize("capture", ["wal2json"])
def test_a_table_that_becomes_unlogged_stops_the_stream_until_it_is_logged(shop: Streamer, source15: Database) -> None:
    """It was passed over without a word; PostgreSQL refuses that of a table in a publication."""
    shop.start_streaming()
    source15.execute("ALTER TABLE t SET UNLOGGED; INSERT INTO t VALUES (11, 1)")
    shop.wait_for_problem('table "public.t" on "a" is unlogged now')
    source15.execute("ALTER TABLE t SET LOGGED")
    shop.wait_for_state("streaming")
