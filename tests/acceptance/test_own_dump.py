"""docs/own-dump.md, typed into a shell as it stands, while applications write; and what `streamer snapshot` refuses."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from streamer.capture.trigger_snapshot import EXPORT
from tests.acceptance.daemon import PROGRAM, Streamer
from tests.acceptance.ledger import Applications, make_ledger, torn
from tests.acceptance.shell import page, shell
from tests.conftest import Databases
from tests.servers import Database, PostgresServer, free_port
from tests.waiting import wait_for_equal

ROWS = 100
PAGE = "docs/own-dump.md"
KEYLESS = "SELECT n, count(*) FROM event GROUP BY n ORDER BY n"


@pytest.fixture
def shop(databases: Databases, pg15: PostgresServer, pg18: PostgresServer) -> Database:
    """The database that is dumped; the one that it is restored to goes as well when the test ends."""
    database = databases.create(pg15, "shop")
    make_ledger(database, ROWS)
    databases.create(pg18, "shop").drop()
    return database


def test_a_dump_of_ones_own_and_the_stream_have_every_row_once(shop: Database, pg18: PostgresServer, tmp_path: Path) -> None:
    new = Database(pg18, "shop")
    shop.execute("CREATE TABLE event (n int)")

    def typed(text: str) -> str:
        return text.replace("10.0.0.1:5432", f"127.0.0.1:{shop.server.port}").replace("10.0.0.2:5432", f"127.0.0.1:{pg18.port}")

    with shell(tmp_path, pg18.bin_dir) as typing, Applications(shop, ROWS, 1, insert_without_key) as applications:
        for block in page(PAGE):
            if block.language == "toml":
                http = f'[http]\nlisten = "127.0.0.1:{free_port()}"\n'
                (tmp_path / "streamer.toml").write_text(typed(block.text) + http)
            else:
                applications.wait_for_more()  # there is something that the slot has, and the dump as well
                typing.follow(typed(block.text))
        applications.stop()
        typing.follow('$ streamer kick forth --wait 60\nsync "forth" is done\n')
        assert torn(new) == []
        assert dict(new.query("SELECT writer, entries FROM account")) == applications.acknowledged
        assert new.query(KEYLESS) == shop.query(KEYLESS)
        typing.follow("$ kill $STREAMER; wait $STREAMER\n$ streamer teardown --yes\n…\n")


def insert_without_key(dice: random.Random, writer: int, number: int) -> str:
    """An insert into a table where nothing would notice that it came twice."""
    return f"INSERT INTO event VALUES ({number})"


def test_a_dump_of_a_source_with_triggers_is_exact_too(trigger_source: Database, target18: Database, tmp_path: Path) -> None:
    make_ledger(trigger_source, ROWS)
    with Streamer(tmp_path, {"a": trigger_source.url, "b": target18.url}, capture="trigger") as streamer:
        streamer.setup()
        with Applications(trigger_source, ROWS, 1, lambda *_: "SELECT 1") as applications:
            applications.wait_for_more()
            tools = target18.server.bin_dir
            dump = f"{tools}/pg_dump --snapshot={{snapshot}} --data-only --schema=public --disable-triggers {trigger_source.url}"
            command = ("snapshot", "shop", "--", "sh", "-c", f"{dump} | {tools}/psql -Xq {target18.url}")
            if trigger_source.server.version < EXPORT:
                assert "cannot share a snapshot; let streamer copy" in streamer.command(*command, succeeds=False).stderr
                return
            streamer.command(*command)
            applications.wait_for_more()
            streamer.start_streaming()
        streamer.command("kick", "shop", "--wait", "60")
        assert torn(target18) == []
        assert dict(target18.query("SELECT writer, entries FROM account")) == applications.acknowledged


@pytest.fixture
def unbegun(tmp_path: Path, source15: Database, target18: Database) -> Iterator[Streamer]:
    for database in (source15, target18):
        database.execute("CREATE TABLE t (id int PRIMARY KEY)")
    with Streamer(tmp_path, {"a": source15.url, "b": target18.url}, copy="never") as streamer:
        yield streamer.setup()


def test_only_a_dump_that_succeeds_into_empty_tables_is_recorded(unbegun: Streamer, source15: Database, target18: Database) -> None:
    def refused(*command: str) -> str:
        return unbegun.command("snapshot", "shop", "--", *command, succeeds=False).stderr

    recorded = "SELECT count(*) FROM streamer.copy"
    assert "{snapshot} stands for it; streamer snapshot shop -- pg_dump --snapshot={snapshot}" in refused("true")
    assert '"false" ended with exit code 1, so nothing was recorded' in refused("false", "{snapshot}")
    assert '"no-such-program" cannot be run' in refused("no-such-program", "{snapshot}")
    target18.execute("INSERT INTO t VALUES (1)")
    assert 'table "public.t" on "b" has rows, to which the dump would add; empty it first' in refused("true", "{snapshot}")
    target18.execute("TRUNCATE t")
    assert target18.query(recorded) == [(0,)]
    for _ in range(2):
        unbegun.command("snapshot", "shop", "--", "true", "{snapshot}")
        assert target18.query(recorded) == [(1,)]
    unbegun.start_streaming()
    assert "is written by another session" in refused("true", "{snapshot}")
    source15.execute("INSERT INTO t VALUES (2)")
    wait_for_equal(lambda: target18.query("SELECT id FROM t"), [(2,)], "the row to arrive")
    unbegun.stop()
    target18.execute("TRUNCATE t")
    source15.execute("INSERT INTO t VALUES (3)")
    meanwhile = f": {{snapshot}}; {' '.join(PROGRAM)} run --once --config {unbegun.path}"
    assert "was run while the dump was made, so nothing was recorded" in refused("sh", "-c", meanwhile)


def test_a_dump_before_setup_is_told_to_run_setup_and_not_that_changes_are_lost(
    tmp_path: Path, source15: Database, target18: Database
) -> None:
    for node in (source15, target18):
        node.execute("CREATE TABLE t (id int PRIMARY KEY)")
    with Streamer(tmp_path, {"a": source15.url, "b": target18.url}, copy="never") as streamer:
        said = streamer.command("snapshot", "shop", "--", "true", "{snapshot}", succeeds=False).stderr
        assert "run: streamer setup" in said
        streamer.setup()
        source15.execute("SELECT pg_drop_replication_slot('streamer_shop_a')")
        said = streamer.command("snapshot", "shop", "--", "true", "{snapshot}", succeeds=False).stderr
        assert said == 'error: slot "streamer_shop_a" does not exist on "a"; run: streamer setup --sync shop\n'
