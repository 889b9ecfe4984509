"""What is particular to the SQLite sink: the file, its locks and errors."""

from __future__ import annotations

import sqlite3
import tempfile
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest

from streamer.errors import ConnectError, TargetError
from streamer.model import (
    LSN,
    Column,
    ColumnDefinition,
    EdgeName,
    Group,
    Identity,
    Kind,
    Origin,
    Relation,
    SlotIdentity,
    TableDefinition,
    TableName,
)
from streamer.sinks import sqlite_file
from streamer.sinks.sqlite import SqliteSink
from streamer.sinks.sqlite_ddl import create_table
from tests.changes import write
from tests.trouble import file_size_limit, unprivileged

EDGE = EdgeName("shop", "a", "file")
SLOT = SlotIdentity("7123", "shop", "streamer_shop_a")
ITEMS = TableDefinition(
    TableName("public", "items"),
    (
        ColumnDefinition("id", "integer", 23, True, None, "", False),
        ColumnDefinition("note", "text", 25, False, None, "", False),
    ),
    ("id",),
)
RELATION = Relation(ITEMS.table, (Column("id", 23, True), Column("note", 25, False)), Identity.DEFAULT)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "file:odd name?#%.sqlite"
    path.touch()
    return path


def sink_of(path: Path, edge: EdgeName = EDGE) -> SqliteSink:
    return SqliteSink(edge, path, busy_timeout=0.05)


@contextmanager
def opened(path: Path, edge: EdgeName = EDGE) -> Iterator[SqliteSink]:
    sink = sink_of(path, edge)
    try:
        sink.open()
        yield sink
    finally:
        sink.close()


def group(row: str, to: int, *, complete: bool = True) -> Group:
    origin = Origin("a", LSN(to - 1), datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC))
    return Group(origin, [(Kind.INSERT, RELATION, None, (row, "x"))], LSN(to), complete, 1)


def make_items(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(create_table(ITEMS))


def query(path: Path, sql: str) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(sql).fetchall()


def tables(path: Path) -> set[object]:
    return {row[0] for row in query(path, "SELECT name FROM sqlite_master WHERE type = 'table'")}


# -- the file ---------------------------------------------------------------------------------------------------------


def test_opening_puts_the_file_into_wal_mode_and_makes_our_tables(path: Path) -> None:
    with opened(path):
        assert query(path, "PRAGMA journal_mode") == [("wal",)]
        assert tables(path) == {"streamer_progress", "streamer_copy", "streamer_copied_part", "streamer_quarantine"}


def test_the_progress_row_tells_where_the_last_transaction_was_made(path: Path) -> None:
    make_items(path)
    with opened(path) as sink:
        sink.begin(SLOT, LSN(100))
        write(sink, group("1", 200))
    columns = "sync, source, target, slot, position, origin, origin_position, origin_time"
    row = ("shop", "a", "file", SLOT.slot, "0/C8", "a", "0/C7", "2026-01-02T03:04:05+00:00")
    assert query(path, f"SELECT {columns} FROM streamer_progress") == [row]


def test_several_edges_share_a_file(path: Path) -> None:
    other = EdgeName("shop", "b", "file")
    make_items(path)
    with opened(path) as first, opened(path, other) as second:
        first.begin(SLOT, LSN(100))
        second.begin(SLOT, LSN(500))
        write(first, group("1", 200))
        write(second, group("2", 600))
        write(first, group("3", 300))
        assert (first.durable(), second.durable()) == (LSN(300), LSN(600))
    assert query(path, "SELECT id FROM items") == [(1,), (2,), (3,)]


def test_a_position_moved_by_another_daemon_stops_this_one(path: Path) -> None:
    make_items(path)
    with opened(path) as sink:
        sink.begin(SLOT, LSN(100))
        with closing(sqlite3.connect(path)) as connection, connection:
            connection.execute("UPDATE streamer_progress SET position = '0/FF'")
        with pytest.raises(TargetError, match=r"shop: a -> file.*not where this daemon left it"):
            write(sink, group("1", 200))
    assert query(path, "SELECT count(*) FROM items") == [(0,)]


def test_an_edge_is_begun_once(path: Path) -> None:
    with opened(path) as first, opened(path) as second:
        first.begin(SLOT, LSN(100))
        with pytest.raises(TargetError, match="shop: a -> file"):
            second.begin(SLOT, LSN(100))


# -- faults -----------------------------------------------------------------------------------------------------------


def test_a_lock_that_is_not_let_go_is_an_error_that_passes(path: Path) -> None:
    make_items(path)
    with opened(path) as sink, closing(sqlite3.connect(path, isolation_level=None)) as other:
        sink.begin(SLOT, LSN(100))
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(TargetError, match=r"is locked by another program.*fuser") as caught:
            write(sink, group("1", 200))
        assert not caught.value.permanent
        other.execute("ROLLBACK")
    with opened(path) as sink:
        write(sink, group("1", 200))
    assert query(path, "SELECT id FROM items") == [(1,)]


def test_a_reader_neither_blocks_nor_sees_half(path: Path) -> None:
    make_items(path)
    with opened(path) as sink, closing(sqlite3.connect(path, isolation_level=None)) as reader:
        sink.begin(SLOT, LSN(100))
        reader.execute("BEGIN")
        assert reader.execute("SELECT count(*) FROM items").fetchone() == (0,)
        write(sink, group("1", 150, complete=False))
        write(sink, group("2", 200))
        assert reader.execute("SELECT count(*) FROM items").fetchone() == (0,)
        reader.execute("COMMIT")
        assert reader.execute("SELECT count(*) FROM items").fetchone() == (2,)


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    missing = tmp_path / "nowhere"
    with pytest.raises(ConnectError, match=f'node "file": directory "{missing}" does not exist; mkdir -p'):
        sink_of(missing / "x.sqlite").open()


def test_a_directory_in_place_of_the_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConnectError, match=r'node "file": file ".*" cannot be written'):
        sink_of(tmp_path).open()


def test_a_file_that_is_no_database_is_left_alone(path: Path) -> None:
    path.write_text("hello, " * 1000)
    with pytest.raises(ConnectError, match=r'node "file".*not a database.*nodes\.file\.url'):
        sink_of(path).open()
    assert path.read_text() == "hello, " * 1000


def test_a_file_that_we_may_not_write_is_an_error() -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "x.sqlite")
        make_items(path)
        path.chmod(0o444)
        Path(directory).chmod(0o555)
        with unprivileged(), pytest.raises(ConnectError, match=r'node "file".*cannot be written.*right to write'):
            sink_of(path).open()
        Path(directory).chmod(0o755)


def test_a_full_disk_is_an_error_that_passes(path: Path) -> None:
    make_items(path)
    with opened(path) as sink:
        sink.begin(SLOT, LSN(100))
        sink._open.execute("PRAGMA max_page_count = 1")  # not below what the file has: it is full now
        big: Group = group("1", 200)
        wide = Group(big.origin, [(Kind.INSERT, RELATION, None, ("1", "x" * 1_000_000))], LSN(200), True, 1)
        with pytest.raises(TargetError, match=r"full.*make room") as caught:
            write(sink, wide)
        assert not caught.value.permanent
    assert query(path, "SELECT count(*) FROM items") == [(0,)]


def test_a_sink_that_is_not_open_says_so(path: Path) -> None:
    with pytest.raises(ConnectError, match="not open"):
        write(sink_of(path), group("1", 200))


def rows(path: Path) -> list[object]:
    return [row[0] for row in query(path, "SELECT id FROM items ORDER BY id")]


def test_a_missing_file_is_not_made(path: Path) -> None:
    path.unlink()
    with pytest.raises(
        ConnectError, match=r'node "file": file ".*" does not exist; put it back; or, for a new one, run: streamer setup'
    ):
        sink_of(path).open()
    assert not path.exists()


@pytest.mark.parametrize("copied", [False, True], ids=["nothing there", "a copy there"])
def test_a_file_that_was_moved_away_gets_nothing_more_until_it_is_back(path: Path, tmp_path: Path, copied: bool) -> None:
    away = tmp_path / "away"
    make_items(path)
    with opened(path) as sink:
        sink.begin(SLOT, LSN(100))
        write(sink, group("1", 200))
        path.rename(away)
        if copied:
            path.write_bytes(away.read_bytes())
        with pytest.raises(ConnectError, match=r"does not exist|was removed or replaced while it was open; put it back"):
            write(sink, group("2", 300))
        assert sink.durable() == LSN(200)
    away.rename(path)
    with opened(path) as sink:
        write(sink, group("2", 300))
    assert rows(path) == [1, 2]


def test_another_database_in_place_of_the_file_gets_nothing(path: Path, tmp_path: Path) -> None:
    make_items(path)
    with opened(path) as sink:
        sink.begin(SLOT, LSN(100))
        write(sink, group("1", 200))
        path.rename(tmp_path / "away")
        make_items(path)
        with pytest.raises(ConnectError, match="was removed or replaced while it was open"):
            write(sink, group("2", 300))
    assert tables(path) == {"items"}
    assert rows(path) == []


def test_a_group_committed_into_a_file_that_is_gone_does_not_count(path: Path, tmp_path: Path) -> None:
    make_items(path)
    with opened(path) as sink:
        sink.begin(SLOT, LSN(100))
        write(sink, group("1", 150, complete=False))
        path.rename(tmp_path / "away")
        with pytest.raises(ConnectError, match="does not exist"):
            write(sink, group("2", 200))
        assert sink.durable() == LSN(100)


def test_a_file_that_cannot_grow_is_an_error_that_passes(path: Path) -> None:
    make_items(path)
    with opened(path) as sink:
        sink.begin(SLOT, LSN(100))
        groups = [group(str(row), 200 + row) for row in range(100)]
        with file_size_limit(100_000), pytest.raises(TargetError, match=r"disk I/O error; look at the disk.*ulimit -f") as caught:
            sink.write(groups, lambda: False)
        assert not caught.value.permanent
        held = sink.durable() - 200
    assert len(rows(path)) == held + 1 < 100
    with opened(path) as sink:
        sink.write(groups[held + 1 :], lambda: False)
    assert rows(path) == list(range(100))


def test_a_corrupted_file_is_an_error_until_it_is_restored(path: Path) -> None:
    make_items(path)
    with opened(path) as sink:
        sink.begin(SLOT, LSN(100))
        write(sink, group("1", 200))
    whole = path.read_bytes()
    path.write_bytes(whole[:100] + bytes(len(whole) - 100))
    with pytest.raises(ConnectError, match=r'node "file": file ".*": .*malformed.*restore the file'), opened(path):
        pass
    path.write_bytes(whole)
    with opened(path) as sink:
        write(sink, group("2", 300))
    assert rows(path) == [1, 2]


# -- readers ----------------------------------------------------------------------------------------------------------


def wal_size(path: Path) -> int:
    return path.with_name(f"{path.name}-wal").stat().st_size


@pytest.fixture
def small_wal(monkeypatch: pytest.MonkeyPatch) -> int:
    """What the WAL may have, looked at after every group."""
    monkeypatch.setattr(sqlite_file, "WAL_BYTES", 100_000)
    monkeypatch.setattr(sqlite_file, "LOOK_SECONDS", 0.0)
    monkeypatch.setattr(sqlite_file, "GAP_SECONDS", 0.01)
    return 100_000


def test_a_reader_that_stays_lets_the_wal_grow_and_everybody_goes_on(
    path: Path, small_wal: int, capsys: pytest.CaptureFixture[str]
) -> None:
    make_items(path)
    with opened(path) as sink, closing(sqlite3.connect(path, isolation_level=None)) as reader:
        sink.begin(SLOT, LSN(100))
        reader.execute("BEGIN")
        assert reader.execute("SELECT count(*) FROM items").fetchone() == (0,)
        for row in range(100):
            write(sink, group(str(row), 200 + row))
        assert (wal_size(path) > small_wal, rows(path)) == (True, list(range(100)))
        assert reader.execute("SELECT count(*) FROM items").fetchone() == (0,)
        assert "".join(capsys.readouterr()).count("sqlite_wal_held_back") == 1  # where the log goes, other tests decide
        reader.execute("COMMIT")
        write(sink, group("100", 300))
        assert wal_size(path) == 0


@pytest.mark.usefixtures("small_wal")
def test_readers_that_follow_each_other_without_a_gap_do_not_keep_the_wal_from_being_emptied(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_file, "GAP_SECONDS", 1.0)
    make_items(path)
    ended = threading.Event()

    def read() -> None:
        with closing(sqlite3.connect(path)) as one, closing(sqlite3.connect(path)) as other:
            one.isolation_level = other.isolation_level = None
            while not ended.is_set():
                one.execute("BEGIN")
                one.execute("SELECT count(*) FROM items").fetchone()
                ended.wait(0.03)  # it reads
                if other.in_transaction:
                    other.execute("COMMIT")
                one, other = other, one

    with opened(path) as sink:
        sink.begin(SLOT, LSN(100))
        thread = threading.Thread(target=read)
        thread.start()
        sizes = [0]
        try:
            while sizes[-1] >= sizes[-2:][0] and len(sizes) < 70:  # SQLite does not always find the moment at once
                write(sink, group(str(len(sizes)), 200 + len(sizes)))
                sizes.append(wal_size(path))
        finally:
            ended.set()
            thread.join()
    assert sizes[-1] < sizes[-2]
    assert rows(path) == list(range(1, len(sizes)))


def test_a_reader_of_a_file_that_is_not_in_wal_mode_yet_is_waited_for(path: Path) -> None:
    make_items(path)
    with closing(sqlite3.connect(path, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM items").fetchall()
        with pytest.raises(TargetError, match="is locked by another program"), opened(path):
            pass
        reader.execute("COMMIT")
    with opened(path):
        assert query(path, "PRAGMA journal_mode") == [("wal",)]
