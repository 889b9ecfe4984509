"""Two syncs of one source, one all the time and one on kick, as a user runs them: what arrives when, exit codes, what is told."""

from __future__ import annotations

import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.daemon import Streamer
from tests.servers import Database
from tests.waiting import wait_for, wait_for_equal

ARCHIVE = """
[syncs.archive]
sources = ["a"]
targets = ["old"]
tables = ["public.t"]
run = "{run}"
"""


class Shop:
    """The sync `shop` to the file `live`, all the time; the sync `archive` to the file `old`, on kick."""

    def __init__(self, source: Database, directory: Path) -> None:
        self.source = source
        self.files = {name: directory / f"{name}.sqlite" for name in ("live", "old")}
        urls = {"a": source.url} | {name: f"sqlite:///{path}" for name, path in self.files.items()}
        self.streamer = Streamer(directory, urls, targets=["live"])
        self.schedule("manual")

    def schedule(self, run: str) -> None:
        """Let the archive run like this from the next start on."""
        self.streamer.write_config()
        with self.streamer.path.open("a") as file:
            file.write(ARCHIVE.format(run=run))

    def start(self) -> None:
        self.streamer.start()
        wait_for(lambda: self.state("a->live") == "streaming", "the sync shop to stream")

    def state(self, edge: str) -> str:
        edges = self.streamer.edges()
        return str(edges[edge]["state"]) if edge in edges else "not told"

    def insert(self, *ids: int) -> None:
        for number in ids:
            self.source.execute(f"INSERT INTO t VALUES ({number}, 'x')")

    def ids(self, file: str) -> list[int]:
        """What is in the table of a file; nothing if there is none."""
        if not self.files[file].exists():
            return []
        with sqlite3.connect(self.files[file]) as connection:
            if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 't'").fetchone():
                return []
            return [number for (number,) in connection.execute("SELECT id FROM t ORDER BY id")]

    def wait_for_live(self, *ids: int) -> None:
        wait_for_equal(lambda: self.ids("live"), list(ids), "the rows in the live file")

    def kick(self, sync: str, *options: str) -> subprocess.CompletedProcess[str]:
        return self.streamer.command("kick", sync, *options, succeeds=False)

    def kick_and_wait(self, sync: str = "archive") -> str:
        """Kick, see that it went well, and return what was said."""
        done = self.kick(sync, "--wait", "30")
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout


@pytest.fixture
def shop(source15: Database, tmp_path: Path) -> Iterator[Shop]:
    source15.execute("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, 'x')")
    made = Shop(source15, tmp_path)
    with made.streamer:
        made.streamer.setup()
        yield made


def connections(source: Database) -> list[str]:
    """Whose sessions are open on the source, ours for the archive only."""
    query = "SELECT application_name FROM pg_stat_activity WHERE application_name LIKE 'streamer archive%%'"
    return [name for (name,) in source.query(query)]


def test_nothing_arrives_until_kicked_and_everything_after_it(shop: Shop) -> None:
    shop.start()
    shop.insert(2, 3)
    shop.wait_for_live(1, 2, 3)
    assert (shop.ids("old"), shop.state("a->old")) == ([], "resting")
    assert connections(shop.source) == []
    assert shop.kick_and_wait() == 'sync "archive" is done: 3 rows\n'
    assert shop.ids("old") == [1, 2, 3]
    shop.insert(4)
    shop.wait_for_live(1, 2, 3, 4)
    assert (shop.ids("old"), connections(shop.source)) == ([1, 2, 3], [])
    accepted = shop.kick("archive")
    assert (accepted.returncode, accepted.stdout) == (0, 'sync "archive" was kicked; how it goes: streamer status\n')
    wait_for_equal(lambda: shop.ids("old"), [1, 2, 3, 4], "the rows in the old file")
    wait_for(lambda: shop.state("a->old") == "resting", "the run to end")
    # what was made before a restart, and while nothing ran, comes with the next kick, and not before
    shop.insert(5)
    shop.wait_for_live(1, 2, 3, 4, 5)
    assert shop.streamer.stop() == 0
    shop.insert(6)
    shop.start()
    shop.wait_for_live(1, 2, 3, 4, 5, 6)
    assert shop.ids("old") == [1, 2, 3, 4]
    assert shop.kick_and_wait() == 'sync "archive" is done: 2 rows\n'
    assert shop.ids("old") == [1, 2, 3, 4, 5, 6]


def test_a_kick_of_a_continuous_sync_waits_until_it_is_there(shop: Shop) -> None:
    shop.start()
    shop.insert(*range(2, 30))
    assert shop.kick_and_wait("shop") == 'sync "shop" is done\n'
    assert shop.ids("live") == list(range(1, 30))
    assert shop.kick_and_wait("shop") == 'sync "shop" is done\n'  # with nothing to do


def test_a_kick_that_takes_too_long_exits_with_1_and_is_done_later(shop: Shop) -> None:
    shop.start()
    shop.kick_and_wait()
    shop.insert(2)
    with sqlite3.connect(shop.files["old"]) as blocker:
        blocker.execute("BEGIN EXCLUSIVE")
        late = shop.kick("archive", "--wait", "1.5")
        assert late.returncode == 1
        assert late.stdout == ""
        assert late.stderr.startswith('error: sync "archive" was not done after 1.5 s, and goes on; a -> old is ')
        blocker.rollback()
    assert shop.kick_and_wait() == 'sync "archive" is done: 0 rows\n'
    assert shop.ids("old") == [1, 2]


def test_a_kick_that_fails_for_good_exits_with_2_and_the_remedy(shop: Shop) -> None:
    shop.start()
    shop.kick_and_wait()
    with sqlite3.connect(shop.files["old"]) as connection:
        connection.execute("UPDATE streamer_progress SET slot = 'another'")
    failed = shop.kick("archive", "--wait", "30")
    assert failed.returncode == 2
    assert failed.stdout == ""
    (line,) = failed.stderr.splitlines()
    assert 'belongs to slot "another"' in line
    assert "streamer teardown --sync archive" in line
    assert (shop.state("a->old"), shop.state("a->live")) == ("failed", "streaming")
    status = shop.streamer.command("status", succeeds=False)
    assert status.returncode == 2
    assert "archive: a (manual): run 2 began " in status.stdout
    assert ", failed after " in status.stdout
    with sqlite3.connect(shop.files["old"]) as connection:
        connection.execute("UPDATE streamer_progress SET slot = 'streamer_archive_a'")
    assert shop.kick_and_wait() == 'sync "archive" is done: 0 rows\n'


def test_a_paused_sync_stands_still_until_it_is_resumed(shop: Shop) -> None:
    shop.start()
    assert shop.streamer.command("pause", "shop").stdout == 'sync "shop" is paused; to go on: streamer resume shop\n'
    shop.insert(2)
    refused = shop.kick("shop", "--wait", "30")
    assert (refused.returncode, refused.stderr) == (2, 'error: sync "shop" is paused; run: streamer resume shop\n')
    shop.kick_and_wait()  # the other one goes on
    assert (shop.ids("live"), shop.ids("old")) == ([1], [1, 2])
    assert {(e["sync"], e["state"]) for e in shop.streamer.status()} == {("shop", "paused"), ("archive", "resting")}
    assert shop.streamer.command("status", succeeds=False).returncode == 1
    assert shop.streamer.command("resume", "shop").stdout == 'sync "shop" goes on\n'
    shop.wait_for_live(1, 2)
    wait_for(lambda: shop.streamer.command("status", succeeds=False).returncode == 0, "status to be content")


def test_an_interval_runs_by_itself_and_status_tells_when(shop: Shop) -> None:
    shop.schedule("every 1s")
    shop.start()
    shop.insert(2)
    wait_for_equal(lambda: shop.ids("old"), [1, 2], "the rows in the old file")
    status = shop.streamer.command("status", succeeds=False)
    assert "archive: a (every 1s): run " in status.stdout
    assert ", the next begins " in status.stdout
    line = next(e for e in shop.streamer.status() if e["sync"] == "archive")
    assert line["schedule"] == "every 1s"
    assert line["run"].keys() == {"number", "started", "ended", "result", "rows"}
    assert line["next_run"] is not None


def test_run_once_runs_a_manual_sync_once(shop: Shop) -> None:
    shop.insert(2)
    shop.streamer.command("run", "--once")
    assert (shop.ids("live"), shop.ids("old")) == ([1, 2], [1, 2])


@pytest.mark.parametrize("verb", ["kick", "pause", "resume"])
def test_without_a_daemon_there_is_one_line_with_the_remedy(shop: Shop, verb: str) -> None:
    done = shop.streamer.command(verb, "archive", succeeds=False)
    assert done.returncode == (2 if verb == "kick" else 1)
    (line,) = done.stderr.splitlines()
    assert "does not answer: none runs with this config; start it: streamer run" in line
    unknown = shop.streamer.command(verb, "nonsense", succeeds=False)
    assert unknown.stderr == 'error: the config has no sync "nonsense"; it has shop, archive\n'
