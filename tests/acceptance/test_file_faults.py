"""What goes wrong with the files of SQLite and jsonl targets: one line with the remedy; once cured, the daemon goes on by itself.

Both kinds stand side by side in one sync. In the end each holds every row once, whatever happened.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path

import pytest

from tests.acceptance.daemon import Streamer
from tests.acceptance.tables import rows
from tests.events import Tables, events
from tests.servers import Database
from tests.trouble import SmallDisk, file_size_limit
from tests.waiting import wait_for, wait_for_equal

KINDS = ("sqlite", "jsonl")


class Files:
    """A sync into an SQLite file and a jsonl file, each in a directory of its own."""

    def __init__(self, directory: Path, source: Database) -> None:
        self.source = source
        self.paths = {kind: directory / kind / "shop" for kind in KINDS}
        for path in self.paths.values():
            path.parent.mkdir()
        nodes = {"a": source.url} | {kind: f"{kind}:///{path}" for kind, path in self.paths.items()}
        self.streamer = Streamer(directory, nodes, targets=KINDS)

    def insert(self, first: int, last: int, size: int = 10) -> None:
        """Insert rows on the source, each in a transaction of its own, with texts that do not compress."""
        with self.source.connect() as connection:
            for row in range(first, last + 1):
                connection.execute("INSERT INTO t VALUES (%s, repeat('x', %s))", [row, size])

    def held(self, kind: str) -> list[int]:
        """The rows that a target holds."""
        path = self.paths[kind]
        if kind == "sqlite":
            return [row for (row,) in rows(path, "SELECT id FROM t ORDER BY id")]
        return sorted(int(row["id"] or 0) for row in Tables(events(path)).rows("public", "t"))

    def expect_problem(self, kind: str, words: str, remedy: str) -> None:
        """Wait for the problem of one target, in one line with its remedy; the other target has none."""
        self.streamer.wait_for_problem(words)
        (line,) = [line for line in self.streamer.status() if line["target"] == kind]
        assert (line["state"], words in line["error"], remedy in line["remedy"]) == ("retrying", True, True), line
        assert "\n" not in line["error"] + line["remedy"]
        assert str(self.paths[kind].parent) in line["error"]
        assert [p for p in self.streamer.problems() if p != line["error"]] == []

    def expect_rows(self, last: int) -> None:
        """Wait until all is well, and see that each target holds every row once."""
        wait_for(lambda: not self.streamer.problems(), "the daemon to be content")
        for kind in KINDS:
            wait_for_equal(lambda kind=kind: self.held(kind), list(range(1, last + 1)), f"all rows in {kind}")  # type: ignore[misc]


def wait_until_told(streamer: Streamer, errors: Mapping[str, str], remedy: str) -> None:
    """Wait until `status` tells these errors of the targets, with the remedy. One that came a little farther is content for a
    moment."""

    def told() -> dict[str, tuple[bool, bool]]:
        lines = {line["target"]: (line["error"] or "", line["remedy"] or "") for line in streamer.status()}
        return {kind: (words in lines[kind][0], remedy in lines[kind][1]) for kind, words in errors.items()}

    wait_for_equal(told, dict.fromkeys(errors, (True, True)), f"status to tell {errors}")


@pytest.fixture
def shop(tmp_path: Path, source15: Database) -> Iterator[Files]:
    source15.execute("CREATE TABLE t (id int PRIMARY KEY, x text)")
    found = Files(tmp_path, source15)
    with found.streamer.setup().start_streaming():
        found.insert(1, 3)
        found.expect_rows(3)
        yield found
        assert "Traceback" not in found.streamer.log


@pytest.mark.parametrize("kind", KINDS)
def test_a_directory_that_is_moved_away_and_comes_back(shop: Files, kind: str) -> None:
    directory = shop.paths[kind].parent
    away = directory.with_name("away")
    directory.rename(away)
    shop.insert(4, 6)
    shop.expect_problem(kind, f'directory "{directory}" does not exist', f"mkdir -p {directory}")
    away.rename(directory)
    shop.expect_rows(6)


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_is_moved_away_and_comes_back(shop: Files, kind: str) -> None:
    path = shop.paths[kind]
    path.rename(path.with_name("away"))
    shop.insert(4, 6)
    shop.expect_problem(kind, "does not exist", "put it back")
    path.with_name("away").rename(path)
    shop.expect_rows(6)


def test_files_that_cannot_grow_for_a_while(shop: Files) -> None:
    with file_size_limit(150_000, shop.streamer.pid):
        shop.insert(4, 400, size=1000)  # more than two files of SQLite's, itself and its WAL, may hold
        wait_until_told(shop.streamer, {"sqlite": "disk I/O error", "jsonl": "File too large"}, "ulimit -f")
        assert 3 < len(shop.held("sqlite")) < 400
    shop.expect_rows(400)


def test_a_disk_that_is_full_for_a_while(tmp_path: Path, source15: Database) -> None:
    source15.execute("CREATE TABLE t (id int PRIMARY KEY, x text)")
    with closing(SmallDisk(tmp_path / "disk", 8 << 20)) as disk:
        nodes = {"a": source15.url} | {kind: f"{kind}:///{tmp_path}/disk/{kind}" for kind in KINDS}
        streamer = Streamer(tmp_path, nodes, targets=KINDS)
        streamer.enter = disk.enter
        with streamer.setup().start_streaming():
            source15.execute("INSERT INTO t SELECT n, 'x' FROM generate_series(1, 3) AS n")
            streamer.command("kick", "shop", "--wait", "30")
            disk.fill()
            source15.execute("INSERT INTO t SELECT n, repeat('x', 1000) FROM generate_series(4, 400) AS n")
            wait_until_told(streamer, {"sqlite": "database or disk is full", "jsonl": "No space left on device"}, "make room")
            disk.relieve()
            wait_for(lambda: not streamer.problems(), "the daemon to be content")
            streamer.command("kick", "shop", "--wait", "30")
            assert streamer.stop() == 0
        for file in disk.root.iterdir():
            (tmp_path / file.name).write_bytes(file.read_bytes())
    assert [row for (row,) in rows(tmp_path / "sqlite", "SELECT id FROM t ORDER BY id")] == list(range(1, 401))
    assert sorted(int(row["id"] or 0) for row in Tables(events(tmp_path / "jsonl")).rows("public", "t")) == list(range(1, 401))


def test_a_writer_that_keeps_the_sqlite_file_locked(shop: Files) -> None:
    with closing(sqlite3.connect(shop.paths["sqlite"], isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        shop.insert(4, 6)
        shop.expect_problem("sqlite", "is locked by another program", "fuser -v")
        other.execute("ROLLBACK")
    shop.expect_rows(6)


def test_a_reader_that_never_ends_does_not_keep_the_sqlite_file_from_being_written(shop: Files) -> None:
    with closing(sqlite3.connect(shop.paths["sqlite"], isolation_level=None)) as reader:
        reader.execute("BEGIN")
        assert len(reader.execute("SELECT id FROM t").fetchall()) == 3
        shop.insert(4, 50, size=2000)
        shop.expect_rows(50)
        assert len(reader.execute("SELECT id FROM t").fetchall()) == 3
        assert shop.streamer.stop() == 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_was_damaged_while_nobody_looked(shop: Files, kind: str) -> None:
    path = shop.paths[kind]
    shop.streamer.stop()
    whole = path.read_bytes()
    path.write_bytes(whole[:100])
    shop.streamer.start()
    shop.insert(4, 6)
    words = "malformed" if kind == "sqlite" else f"has 100 bytes, of the {len(whole)}"
    shop.expect_problem(kind, words, "restore the file" if kind == "sqlite" else "put it back")
    assert path.read_bytes()[:100] == whole[:100]
    path.write_bytes(whole)
    shop.expect_rows(6)


@pytest.mark.parametrize("kind", KINDS)
def test_an_older_copy_of_a_file_is_refused_and_not_gone_on_with(shop: Files, kind: str) -> None:
    """The changes between cannot be read again: the source was told that the target has them."""
    shop.streamer.stop()
    older = {file: file.read_bytes() for file in shop.paths[kind].parent.iterdir()}
    shop.streamer.start_streaming()
    shop.insert(4, 6)
    shop.expect_rows(6)
    assert shop.streamer.stop() == 0
    for file, content in older.items():
        file.write_bytes(content)
    shop.streamer.start()
    shop.streamer.wait_for_problem("created anew or advanced, and the changes between are lost")
    assert shop.held(kind) == [1, 2, 3]


def test_a_second_daemon_is_kept_away_from_a_file_of_events(shop: Files, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    nodes = {"a": shop.source.url, "jsonl": f"jsonl:///{shop.paths['jsonl']}"}
    with Streamer(other, nodes, targets=["jsonl"]).start() as second:
        second.wait_for_problem("is locked by another daemon")
        shop.insert(4, 6)
        shop.expect_rows(6)
