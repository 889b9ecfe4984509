"""The daemon as an on-call person has it: another config while it runs, a second daemon, a full disk, a scraper, a wrong token."""

from __future__ import annotations

import json
import os
import signal
import socket
import sqlite3
import subprocess
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.acceptance.daemon import Streamer
from tests.servers import Database
from tests.waiting import wait_for, wait_for_equal

SECOND = """
[syncs.second]
sources = ["a"]
targets = ["old"]
tables = ["public.u"]
"""


class Shop:
    """The sync `shop` of table t into the file `live`; the sync `second` of table u into the file `old`, if the config has it."""

    def __init__(self, source: Database, directory: Path) -> None:
        self.source = source
        self.files = {name: directory / f"{name}.sqlite" for name in ("live", "old")}
        urls = {"a": source.url} | {name: f"sqlite:///{path}" for name, path in self.files.items()}
        self.streamer = Streamer(directory, urls, targets=["live"], tables=["public.t"])

    def write_config(self, *more: str, **changes: object) -> None:
        self.streamer.write_config(**changes)
        with self.streamer.path.open("a") as file:
            file.write("".join(more))

    def hang_up(self) -> None:
        os.kill(self.streamer.pid, signal.SIGHUP)

    def states(self) -> dict[str, str]:
        return {edge: state["state"] for edge, state in self.streamer.edges().items()}

    def insert(self, table: str, *ids: int) -> None:
        for number in ids:
            self.source.execute(f"INSERT INTO {table} VALUES ({number}, 'x')")

    def ids(self, file: str, table: str) -> list[int]:
        """What is in the table of a file; nothing if there is none."""
        if not self.files[file].exists():
            return []
        with sqlite3.connect(self.files[file]) as connection:
            if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = ?", [table]).fetchone():
                return []
            return [number for (number,) in connection.execute(f"SELECT id FROM {table} ORDER BY id")]

    def wait_for_ids(self, file: str, table: str, *ids: int) -> None:
        wait_for_equal(lambda: self.ids(file, table), list(ids), f"the rows of {table} in {file}")


@pytest.fixture
def shop(source18: Database, tmp_path: Path) -> Iterator[Shop]:
    source18.execute("CREATE TABLE t (id int PRIMARY KEY, v text); CREATE TABLE u (id int PRIMARY KEY, v text)")
    made = Shop(source18, tmp_path)
    with made.streamer:
        made.streamer.setup()
        yield made


def events(log: str, event: str) -> list[Mapping[str, object]]:
    """The records of an event in a log."""
    records = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    return [record for record in records if record["event"] == event]


# -- another config --------------------------------------------------------------------------------------------------------------


def test_syncs_come_and_go_with_a_hangup_and_the_others_are_not_interrupted(shop: Shop) -> None:
    shop.streamer.start_streaming()
    shop.write_config(SECOND)
    shop.streamer.setup()
    assert "does not run the edge to old; if it should," in shop.streamer.command("status", succeeds=False).stdout
    shop.hang_up()
    wait_for_equal(shop.states, {"a->live": "streaming", "a->old": "streaming"}, "the new sync to stream")
    shop.insert("u", 1)
    shop.wait_for_ids("old", "u", 1)
    shop.write_config(SECOND, tables=["public.t", "public.v"])  # what has changed begins anew
    shop.source.execute("CREATE TABLE v (id int PRIMARY KEY, v text)")
    shop.streamer.setup()
    shop.hang_up()
    shop.insert("v", 7)
    shop.wait_for_ids("live", "v", 7)
    shop.write_config()
    shop.hang_up()
    wait_for_equal(shop.states, {"a->live": "streaming"}, "the sync to be gone")
    wait_for_equal(
        lambda: len(events(shop.streamer.log, "stream_reading")),
        3,
        "`shop` to begin twice, because its tables have changed, and `second` once",
    )
    log = shop.streamer.log
    assert [(r["added"], r["begun_anew"], r["removed"]) for r in events(log, "config_reloaded")] == [
        (["second: a"], [], []),
        ([], ["shop: a"], []),
        ([], [], ["second: a"]),
    ]
    (left,) = events(log, "slot_left")
    assert left["slot"] == "streamer_second_a"
    done = shop.streamer.command("slots", "drop", "a", "streamer_second_a", "--yes")
    assert done.stdout.endswith('a: dropped slot "streamer_second_a"\n')
    assert shop.streamer.stop() == 0


BROKEN = {
    "[syncs.": "is not TOML",
    '[syncs.second]\nsources = ["z"]\ntargets = ["old"]\ntables = ["t"]\n': 'node "z" is not configured',
    SECOND.replace('targets = ["old"]', 'targets = ["old"]\ncoppy = "never"'): "unknown key",
    '[syncs.shop.table."public.t"]\ntransform = "python:nowhere:f"\n': "nowhere",
}
"""What is added to a config, and what is wrong with it then."""


def test_a_broken_config_is_refused_in_one_line_and_the_old_one_stays(shop: Shop) -> None:
    shop.streamer.start_streaming()

    def refused() -> list[str]:
        return [str(record["error"]) for record in events(shop.streamer.log, "config_refused")]

    for number, (text, error) in enumerate(BROKEN.items(), 1):
        shop.write_config(text)
        shop.hang_up()
        wait_for_equal(lambda: len(refused()), number, "the refused configs")
        assert error in refused()[-1]
    shop.streamer.path.unlink()
    shop.hang_up()
    wait_for_equal(lambda: len(refused()), len(BROKEN) + 1, "the refused configs")
    assert refused()[-1] == f'config file "{shop.streamer.path}" does not exist'
    shop.insert("t", 1)
    shop.wait_for_ids("live", "t", 1)
    assert len(events(shop.streamer.log, "stream_reading")) == 1
    assert shop.streamer.stop() == 0


def test_another_port_is_refused_while_it_runs(shop: Shop) -> None:
    shop.streamer.start_streaming()
    old = shop.streamer.path.read_text()
    shop.streamer.path.write_text(old.replace("[http]", '[http]\ntoken = "correct-horse-battery"'))
    shop.hang_up()
    (refused,) = wait_for(lambda: events(shop.streamer.log, "config_refused"), "the config to be refused")
    assert refused["error"] == "[http] cannot change while streamer runs"
    shop.streamer.path.write_text(old)
    assert shop.streamer.stop() == 0


# -- two daemons -----------------------------------------------------------------------------------------------------------------


def test_a_second_daemon_with_the_same_config_stands_by_and_takes_over_when_the_first_is_killed(
    source18: Database, target15: Database, tmp_path: Path
) -> None:
    source18.execute("CREATE TABLE t (id int PRIMARY KEY, v text)")
    urls = {"a": source18.url, "b": target15.url}
    with Streamer(tmp_path, urls) as first:
        first.setup().start_streaming()
        with first.beside() as second:
            wait_for(lambda: events(second.log, "edge_standby"), "the second to stand by")
            assert events(second.log, "http_standby")
            source18.execute("INSERT INTO t VALUES (1, 'x')")
            wait_for(lambda: target15.query("SELECT 1 FROM t"), "the row")
            first.kill()
            source18.execute("INSERT INTO t VALUES (2, 'x')")
            wait_for_equal(lambda: target15.query("SELECT id FROM t ORDER BY id"), [(1,), (2,)], "the row after the takeover")
            second.wait_for_state("streaming")
            assert events(second.log, "edge_took_over")
            assert events(second.log, "http_took_over")
            assert second.stop() == 0


def test_a_standby_on_another_port_says_so_in_its_status(shop: Shop, tmp_path: Path) -> None:
    shop.streamer.start_streaming()
    with shop.streamer.beside(another_port=True) as second:
        wait_for(lambda: [s["state"] for s in second.streams()] == ["standby"], "the second to stand by")
        told = second.command("status", succeeds=False)
        assert told.returncode == 0
        assert told.stdout.startswith("OK: 1 of 1 edge standby")
        assert "is read by another process" in told.stdout
        ready = second.get("/readyz")
        assert ready == "1 of 1 streams ready\n"
        assert shop.streamer.stop() == 0
        shop.insert("t", 1)
        shop.wait_for_ids("live", "t", 1)
        assert events(second.log, "stream_took_over")


# -- the service manager ---------------------------------------------------------------------------------------------------------


def test_systemd_is_told_of_start_reload_life_and_stop(shop: Shop, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(30)
        shop.streamer.environment |= {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "400000"}
        shop.streamer.start()
        said: list[str] = []

        def heard(words: str) -> bool:
            while not said or words not in said[-1]:
                said.append(manager.recv(1024).decode())
            return True

        assert heard("READY=1\nSTATUS=runs 1 stream")
        assert heard("WATCHDOG=1")
        shop.hang_up()
        assert heard("RELOADING=1\nMONOTONIC_USEC=")
        assert heard("READY=1")
        shop.streamer.terminate()
        assert heard("STOPPING=1")
        assert shop.streamer.wait(10) == 0


# -- bad input -------------------------------------------------------------------------------------------------------------------


def test_a_full_disk_under_the_log_stops_nothing(shop: Shop) -> None:
    with open("/dev/full", "wb") as full:  # every write fails for want of space
        shop.streamer.start(errors=full)
        shop.streamer.wait_for_state("streaming")
        shop.insert("t", 1, 2)
        shop.wait_for_ids("live", "t", 1, 2)
        assert json.loads(shop.streamer.get("/status"))["log_records_lost"] > 0
        shop.streamer.terminate()
        assert shop.streamer.wait(10) == 0


def test_a_scraper_is_answered_until_the_end_and_then_refused(shop: Shop) -> None:
    shop.streamer.start_streaming()
    ended = threading.Event()
    whole: list[str] = []
    cut: list[str] = []

    def scrape() -> None:
        while not ended.is_set():
            try:
                whole.append(shop.streamer.get("/metrics"))
            except (urllib.error.URLError, ConnectionError):  # refused: nobody listens any more
                ended.set()
            except Exception as error:
                cut.append(repr(error))

    scrapers = [threading.Thread(target=scrape) for _ in range(3)]
    for thread in scrapers:
        thread.start()
    wait_for(lambda: len(whole) > 5, "some scrapes")
    assert shop.streamer.stop() == 0
    for thread in scrapers:
        thread.join(20)
    assert cut == []
    assert all("streamer_edge_rows_total" in answer for answer in whole)
    assert "Traceback" not in shop.streamer.log


def test_a_port_that_something_else_has_is_one_line(shop: Shop) -> None:
    with socket.create_server(("127.0.0.1", shop.streamer.port)):
        shop.streamer.start()
        assert shop.streamer.wait(20) == 1
    assert shop.streamer.log.strip().splitlines()[-1] == (
        f"error: http.listen 127.0.0.1:{shop.streamer.port}: Address already in use; "
        "end what listens there, or set another port in [http] listen"
    )


def test_commands_bring_the_token_and_a_wrong_one_is_refused(shop: Shop, tmp_path: Path) -> None:
    shop.streamer.path.write_text(shop.streamer.path.read_text().replace("[http]", '[http]\ntoken = "${STREAMER_TOKEN}"'))
    shop.streamer.environment["STREAMER_TOKEN"] = "correct-horse-battery"
    shop.streamer.start()
    wait_for(lambda: _status(shop.streamer).returncode == 0, "all to stream")
    assert shop.streamer.command("kick", "shop", "--wait", "20").stdout == 'sync "shop" is done\n'
    shop.streamer.environment["STREAMER_TOKEN"] = "battery-horse-correct"
    for verb in (("status",), ("kick", "shop"), ("pause", "shop"), ("resume", "shop")):
        done = shop.streamer.command(*verb, succeeds=False)
        assert done.returncode in (1, 2)
        assert done.stderr == "error: the bearer token is wrong; it is that of [http] token in the daemon's config\n"
    with pytest.raises(urllib.error.HTTPError, match="401"):
        shop.streamer.get("/status")
    assert shop.streamer.get("/healthz") == "ok\n"
    assert "horse" not in shop.streamer.log
    assert shop.streamer.stop() == 0


def _status(streamer: Streamer) -> subprocess.CompletedProcess[str]:
    return streamer.command("status", succeeds=False)
