"""`streamer verify` as a user runs it: what it prints, its exit codes, and mending on every engine at once."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.daemon import Streamer
from tests.mysql_servers import MysqlDatabase
from tests.servers import Database
from tests.waiting import wait_for, wait_for_equal

CREATE = "CREATE TABLE t (id int PRIMARY KEY, b boolean NOT NULL, x text, at timestamptz)"
FILL = "INSERT INTO t SELECT i, i % 2 = 0, 'x' || i, '2020-01-01'::timestamptz + i * interval '1 s' FROM generate_series(1, 300) i"


@pytest.fixture
def shop(source15: Database, target18: Database, mariadb: MysqlDatabase, tmp_path: Path) -> Iterator[Streamer]:
    """A sync to three engines that runs, and all of them equal."""
    source15.execute(CREATE)
    source15.execute(FILL)
    nodes = {"a": source15.url, "b": target18.url, "m": mariadb.url, "s": f"sqlite:///{tmp_path}/shop.sqlite"}
    with Streamer(tmp_path, nodes, targets=["b", "m", "s"], tables=["public.t"]) as streamer:
        streamer.setup().start_streaming()
        yield streamer


def tables(streamer: Streamer, *options: str) -> dict[str, dict[str, Any]]:
    """What `verify --json` says of each target, and its exit code."""
    done = streamer.command("verify", "shop", "--json", *options, succeeds=False)
    answer = json.loads(done.stdout)
    assert answer["equal"] == (done.returncode == 0)
    return {one["target"]: one for one in answer["tables"]}


def test_differences_are_told_and_mended_on_every_engine(
    shop: Streamer, source15: Database, target18: Database, mariadb: MysqlDatabase, tmp_path: Path
) -> None:
    assert {node: (one["verdict"], one["rows"]) for node, one in tables(shop).items()} == {
        "b": ("equal", 300),
        "m": ("equal", 300),
        "s": ("equal", 300),
    }
    for statement in (
        "DELETE FROM t WHERE id = 1",
        "UPDATE t SET x = '' WHERE id = 2",
        "UPDATE t SET id = 1003 WHERE id = 3",
    ):
        target18.execute(statement)
        mariadb.execute(statement)
        with closing(sqlite3.connect(tmp_path / "shop.sqlite", timeout=30)) as file, file:
            file.execute(statement)
    found = tables(shop)
    for node in "bms":
        assert found[node]["keys"] == [
            {"key": {"id": "1"}, "kind": "missing"},
            {"key": {"id": "2"}, "kind": "different"},
            {"key": {"id": "3"}, "kind": "missing"},
            {"key": {"id": "1003"}, "kind": "extra"},
        ]
    printed = shop.command("verify", "shop", "--target", "b", "--limit", "2", succeeds=False)
    assert printed.returncode == 1
    assert printed.stdout.splitlines() == [
        "sync  source  target  table     rows  ranges  different  verdict",
        "shop  a       b       public.t  300   1       4          different",
        'shop: a -> b: table "public.t": missing on the target: id = 1',
        'shop: a -> b: table "public.t": different: id = 2',
        'shop: a -> b: table "public.t": and 2 rows more',
    ]
    mended = shop.command("verify", "shop", "--target", "b", "--repair", "--yes").stdout
    assert mended.splitlines()[:8] == [
        'table "public.t" on "b":',
        "  insert id = 1",
        "  update id = 2",
        "  insert id = 3",
        "  delete id = 1003",
        'sync "shop" is paused; to go on: streamer resume shop',
        'sync "shop" goes on',
        'table "public.t" on "b": 4 rows of 4 mended',
    ]
    assert target18.query("SELECT origin FROM streamer.progress") == [("a",)]
    (origin,) = target18.query(
        "SELECT roname FROM pg_replication_origin o JOIN pg_replication_origin_status s ON s.local_id = o.roident"
    )
    assert origin == ("streamer:shop:b:a:a",)
    assert {node: one["verdict"] for node, one in tables(shop, "--repair", "--yes").items()} == {
        "b": "equal",
        "m": "repaired",
        "s": "repaired",
    }
    assert {one["verdict"] for one in tables(shop).values()} == {"equal"}
    source15.execute("UPDATE t SET x = 'goes on' WHERE id = 2")
    wait_for_equal(lambda: mariadb.query("SELECT x FROM t WHERE id = 2"), [("goes on",)], "the stream to go on")


def test_nothing_is_written_without_a_yes(shop: Streamer, target18: Database) -> None:
    target18.execute("DELETE FROM t WHERE id = 1")
    done = shop.command("verify", "shop", "--repair", succeeds=False)
    assert done.returncode == 1
    assert "  insert id = 1" in done.stdout
    assert "--json leaves no room" in shop.command("verify", "shop", "--repair", "--json", succeeds=False).stderr
    assert target18.query("SELECT count(*) FROM t") == [(299,)]


WAITS = "SELECT 1 FROM pg_locks WHERE relation = 't'::regclass AND NOT granted"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_a_repair_that_is_ended_leaves_no_sync_paused_or_the_way_on_is_told(
    source15: Database, target18: Database, tmp_path: Path, number: signal.Signals
) -> None:
    source15.execute(CREATE)
    source15.execute("INSERT INTO t VALUES (1, true, 'x', now())")
    with Streamer(tmp_path, {"a": source15.url, "b": target18.url}, tables=["public.t"]) as streamer:
        streamer.setup().start_streaming()
        target18.execute("DELETE FROM t")
        with target18.connect() as other:
            other.execute("BEGIN; LOCK TABLE t IN SHARE MODE")
            with streamer.begin("verify", "shop", "--repair", "--yes") as repair:
                wait_for(lambda: target18.query(WAITS), "the repair to wait for the table")
                repair.send_signal(number)
                printed, _ = repair.communicate(timeout=60)
            if number is signal.SIGKILL:
                way_on = "to go on: streamer resume shop"
                assert way_on in streamer.command("status", succeeds=False).stdout
                source15.execute("UPDATE t SET x = 'y'")
                assert way_on in streamer.command("verify", "shop", succeeds=False).stdout
                streamer.command("resume", "shop")
            else:
                assert (repair.returncode, printed.splitlines()[-1]) == (130, 'sync "shop" goes on'), printed
        streamer.wait_for_state("streaming")  # the session that waited has ended too
        streamer.command("verify", "shop", "--repair", "--yes")
        assert target18.query("SELECT id FROM t") == [(1,)]


def test_what_cannot_be_mended_is_refused(source15: Database, target18: Database, tmp_path: Path) -> None:
    nodes = {"a": source15.url, "b": target18.url}
    source15.execute("CREATE TABLE keyless (a int)")
    source15.execute("ALTER TABLE keyless REPLICA IDENTITY FULL")
    with Streamer(tmp_path, nodes) as streamer:
        streamer.setup().start_streaming()
        target18.execute("INSERT INTO keyless VALUES (1)")
        done = streamer.command("verify", "shop", "--repair", "--yes", succeeds=False)
        assert done.returncode == 1
        assert 'table "public.keyless" has no key: its rows cannot be mended one by one' in done.stdout
    with Streamer(tmp_path, nodes, sources=["a", "b"], targets=[]) as masters:
        done = masters.command("verify", "shop", "--repair", succeeds=False)
        assert done.stderr.startswith('error: sync "shop" has several sources: which of two rows is right cannot be told; ')


def test_what_is_compared_is_known_to_the_daemon_and_to_cutover(source15: Database, target18: Database, tmp_path: Path) -> None:
    source15.execute(CREATE)
    source15.execute(FILL)
    with Streamer(tmp_path, {"a": source15.url, "b": target18.url}) as streamer:
        streamer.setup().start_streaming()

        def looked(*, succeeds: bool = True) -> str:
            options = ("--to", "b", "--no-way-back", "--skip-verify", "--dry-run")
            done = streamer.command("cutover", "shop", *options, succeeds=False)
            assert succeeds == (done.returncode == 0)
            return next(line.partition("0:")[0] for line in done.stdout.splitlines() if "rows of shop: a -> b" in line)

        def proven() -> tuple[int, str]:
            done = streamer.command("verify", "shop", "--continuous", succeeds=False)
            return done.returncode, done.stdout

        assert looked().endswith("and --skip-verify leaves that out; run: streamer verify shop --target b")
        assert streamer.command("verify", "shop").returncode == 0
        equal = "ok: rows of shop: a -> b: were equal when they were compared last: 300 rows, the oldest part "
        assert looked() == equal
        assert (
            'does not compare sync "shop" all the time' in streamer.command("verify", "shop", "--continuous", succeeds=False).stderr
        )
        target18.execute("DELETE FROM t WHERE id = 7")
        streamer.write_config(verify="continuous")
        os.kill(streamer.pid, signal.SIGHUP)
        wait_for(lambda: "1 row differs; see: streamer verify shop" in proven()[1], "the first round")
        assert proven()[0] == 1
        refused = "error: rows of shop: a -> b: 1 row differed when they were compared last; see which: "
        assert looked(succeeds=False) == f"{refused}streamer verify shop --target b --repair"
        streamer.command("verify", "shop", "--repair", "--yes")
        code, line = proven()
        assert (code, line.partition(", the oldest")[0]) == (0, "shop: a -> b: 300 rows of 1 table proven equal")
        assert looked() == equal
