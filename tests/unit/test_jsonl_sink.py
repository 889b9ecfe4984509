"""What is particular to the jsonl sink: progress beside the files, what a crash leaves, rotation, and the initial copy."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from streamer.copytext import format_rows
from streamer.errors import ConnectError
from streamer.model import LSN, EdgeName, Group
from streamer.ports import Progress, Start
from streamer.sinks.jsonl_progress import read
from tests.changes import ITEMS, copy_of, group, write
from tests.events import Tables, events, files, transactions
from tests.jsonl_sinks import SLOT, changes, expect_refusal, ids, killed, opened, position, progress_path, row, sink_of


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "odd name?#%.jsonl"


# -- progress ------------------------------------------------------------------------------------------------------------------


def test_the_progress_file_says_whose_it_is_and_where_the_events_end(path: Path) -> None:
    with opened(path) as sink:
        write(sink, row(1))
        sink.keep(ITEMS.table, LSN(150))
    assert json.loads(progress_path(path).read_text()) == {
        "version": 1,
        "sync": "shop",
        "source": "a",
        "target": "log",
        "slot": {"system_identifier": "7123", "database": "shop", "name": "streamer_shop_a"},
        "position": "0/C9",
        "file": path.name,
        "offset": path.stat().st_size,
        "copied": [{"schema": "public", "table": "t", "position": "0/96"}],
    }


def test_several_transactions_are_recorded_once_and_one_by_one_in_the_events(path: Path) -> None:
    with opened(path) as sink:
        sink.write([row(1), row(2), row(3, complete=False)], lambda: False)
        assert (sink.durable(), position(path)) == (LSN(202), LSN(202))
        sink.write([row(4, to=203)], lambda: False)
        assert sink.durable() == LSN(203)
    assert [[e["new"]["id"] for e in t] for t in transactions(events(path))] == [["1"], ["2"], ["3", "4"]]


def test_no_further_transaction_is_written_once_interrupted(path: Path) -> None:
    with opened(path) as sink:
        assert len(sink.write([row(1), row(2)], lambda: True)) == 1
    assert ids(path) == [1]


def test_a_position_without_changes_is_recorded_and_writes_nothing(path: Path) -> None:
    with opened(path) as sink:
        write(sink, Group(row(1).origin, (), LSN(900), complete=True, transactions=0))
        assert sink.durable() == LSN(900)
    assert (path.read_bytes(), position(path)) == (b"", LSN(900))


def test_a_progress_file_of_another_edge_is_refused(path: Path) -> None:
    with opened(path) as sink:
        write(sink, row(1))
    expect_refusal(
        sink_of(path, EdgeName("other", "a", "log")),
        "belongs to edge shop: a -> log, not to other: a -> log; give every sync a jsonl node",
    )
    assert ids(path) == [1]


@pytest.mark.parametrize("content", ["hello", '{"version": 99}', "[]", "{}", "\xff"])
def test_a_progress_file_that_is_not_ours_is_refused_and_left_alone(path: Path, content: str) -> None:
    progress_path(path).write_text(content, encoding="latin-1")
    expect_refusal(sink_of(path), "is no progress file of this version of streamer; restore it")
    assert progress_path(path).read_text(encoding="latin-1") == content


def test_a_second_daemon_is_kept_away_however_often_the_file_was_replaced(path: Path) -> None:
    with opened(path) as first:
        for number in range(3):
            expect_refusal(sink_of(path), r"edge shop: a -> log: .* is locked by another daemon")
            write(first, row(number))
    with opened(path) as second:
        write(second, row(3))
    assert ids(path) == [0, 1, 2, 3]


def test_a_removed_progress_file_stops_the_edge_and_then_it_begins_anew(path: Path) -> None:
    with opened(path) as sink:
        write(sink, row(1))
        progress_path(path).unlink()
        with pytest.raises(ConnectError, match="removed or replaced"):
            write(sink, row(2))
    with opened(path) as sink:
        assert sink.durable() == LSN(100)


def test_progress_is_told_by_source(path: Path) -> None:
    with opened(path) as sink:
        assert sink.progress_by_source() == {"a": Progress(SLOT, LSN(100), {})}


# -- crashes -------------------------------------------------------------------------------------------------------------------


def test_what_was_not_recorded_is_cut_off(path: Path) -> None:
    with killed(path) as sink:
        write(sink, row(1))
        write(sink, group(*changes(2, 3, 4), complete=False))
    assert len(ids(path)) > 1
    with opened(path) as sink:
        assert ids(path) == [1]
        write(sink, group(*changes(2, 3, 4)))
    assert ids(path) == [1, 2, 3, 4]


def test_a_torn_line_is_cut_off(path: Path) -> None:
    with killed(path) as sink:
        write(sink, row(1))
    whole = path.read_bytes()
    with path.open("ab") as file:
        file.write(whole[: len(whole) // 2])
    with opened(path):
        assert path.read_bytes() == whole


def test_files_begun_after_the_recorded_place_are_removed(path: Path) -> None:
    with killed(path, limit=1) as sink:
        write(sink, row(1))
        before = progress_path(path).read_bytes()
        for number in (2, 3, 4):
            write(sink, row(number))
    progress_path(path).write_bytes(before)  # as if the machine had died before the rest was recorded
    assert len(files(path)) == 4
    with opened(path, limit=1) as sink:
        assert (files(path), ids(path)) == ([path], [1])
        write(sink, row(2))
    assert ids(path) == [1, 2]


def test_a_crash_while_progress_is_replaced_leaves_the_old_one(path: Path) -> None:
    with killed(path) as sink:
        write(sink, row(1))
    path.with_name(f"{progress_path(path).name}.new").write_text('{"version": 1, "sy')
    with opened(path) as sink:
        assert sink.durable() == LSN(201)
        write(sink, row(2))
    assert ids(path) == [1, 2]


def test_an_unfinished_transaction_is_cut_off_when_the_sink_is_closed(path: Path) -> None:
    with opened(path) as sink:
        write(sink, row(1))
        write(sink, group(*changes(2, 3), complete=False))
    assert ids(path) == [1]


# -- rotation ------------------------------------------------------------------------------------------------------------------


def test_a_full_file_is_followed_by_the_next_number(path: Path) -> None:
    for start in (0, 3):  # a restart goes on in the newest
        with opened(path, limit=600) as sink:
            for number in range(start, start + 3):
                write(sink, row(number))
    assert [file.name for file in files(path)] == [path.name, f"{path.name}.000001", f"{path.name}.000002"]
    assert ids(path) == list(range(6))
    assert all(file.stat().st_size >= 600 for file in files(path)[:-1])


def test_a_transaction_is_never_parted(path: Path) -> None:
    with opened(path, limit=1000) as sink:
        for start in range(0, 50, 10):
            write(sink, group(*changes(*range(start, start + 10)), to=500, complete=start == 40))
        write(sink, row(99, to=600))
    first, second = files(path)
    assert (len(first.read_text().splitlines()), len(second.read_text().splitlines())) == (50, 1)


def test_files_that_were_taken_away_don_t_matter_but_the_newest(path: Path) -> None:
    with opened(path, limit=1) as sink:
        for number in range(3):
            write(sink, row(number))
    path.unlink()
    files(path)[0].rename(path.with_name("elsewhere"))
    with opened(path, limit=1) as sink:
        write(sink, row(3))
    assert [file.name for file in files(path)] == [f"{path.name}.000002", f"{path.name}.000003"]


def test_other_files_of_the_directory_are_left_alone(path: Path) -> None:
    others = [path.with_name(f"{path.name}{end}") for end in (".1", ".gz", ".000009.gz", "000009", ".00000x")]
    for other in others:
        other.write_text("mine")
    with opened(path, limit=1) as sink:
        for number in range(2):
            write(sink, row(number))
    with opened(path):
        assert all(other.read_text() == "mine" for other in others)


def test_without_progress_events_go_behind_those_that_are_there(path: Path) -> None:
    with opened(path, limit=1) as sink:
        for number in range(2):
            write(sink, row(number))
    progress_path(path).unlink()
    with opened(path) as sink:
        assert sink.durable() == LSN(100)
        write(sink, row(2))
    assert ids(path) == [0, 1, 2]
    assert files(path)[-1].read_text().count("\n") == 2


def test_a_file_without_progress_that_ends_in_a_torn_line_is_left_alone(path: Path) -> None:
    path.write_text('{"version": 1, "sy')
    expect_refusal(sink_of(path), "ends in the middle of a line.*move it away: mv ")
    assert path.read_text() == '{"version": 1, "sy'


# -- the initial copy ----------------------------------------------------------------------------------------------------------


def rows_of(*numbers: int) -> bytes:
    return format_rows([(str(number), "x", None) for number in numbers])


def test_rows_of_a_copy_are_read_events_of_one_transaction(path: Path) -> None:
    with opened(path) as sink:
        assert sink.load(copy_of(ITEMS), Start(LSN(180), replace=False), [rows_of(1, 2), rows_of(3)]) == 3
    (transaction,) = transactions(events(path))
    assert [(e["kind"], e["key"], e["position"]) for e in transaction] == [("read", {"id": str(n)}, "0/B4") for n in (1, 2, 3)]
    record = read("log", progress_path(path))
    assert record is not None
    assert (record.position, record.copied) == (LSN(100), {ITEMS.table: LSN(180)})


def test_a_copy_that_replaces_rows_begins_with_a_truncate(path: Path) -> None:
    with opened(path) as sink:
        write(sink, row(7))
        sink.load(copy_of(ITEMS), Start(LSN(180)), [rows_of(1)])
    assert [e["kind"] for e in events(path)] == ["insert", "truncate", "read"]
    assert Tables(events(path)).rows("public", "t") == [{"id": "1", "name": "x", "price": None}]


def test_a_copy_that_was_killed_comes_again_whole(path: Path) -> None:
    def blocks() -> Iterator[bytes]:
        yield rows_of(1, 2, 3)
        assert len(ids(path)) == 2
        raise KeyboardInterrupt

    with killed(path) as sink:
        sink._undo = lambda: None  # type: ignore[method-assign]  # the process is no more
        with pytest.raises(KeyboardInterrupt):
            sink.load(copy_of(ITEMS), Start(LSN(180), replace=False), blocks())
    assert len(ids(path)) == 2
    with opened(path) as sink:
        sink.load(copy_of(ITEMS), Start(LSN(190), replace=False), [rows_of(1, 3)])
    assert ids(path) == [1, 3]


def test_a_copy_after_a_broken_one_is_whole(path: Path) -> None:
    def blocks() -> Iterator[bytes]:
        yield rows_of(1, 2)
        raise ConnectionAbortedError

    with opened(path, limit=1) as sink:
        write(sink, row(9))
        with pytest.raises(ConnectionAbortedError):
            sink.load(copy_of(ITEMS), Start(LSN(180), replace=False), blocks())
        sink.load(copy_of(ITEMS), Start(LSN(190), replace=False), [rows_of(3)])
    assert ids(path) == [9, 3]


def test_a_copy_that_goes_on_after_the_sink_was_closed_writes_nothing(path: Path) -> None:
    with opened(path) as sink:

        def blocks() -> Iterator[bytes]:
            yield rows_of(1, 2)
            sink.close()
            yield rows_of(3, 4)

        with pytest.raises(ConnectError, match="not open"):
            sink.load(copy_of(ITEMS), Start(LSN(180), replace=False), blocks())
    assert ids(path) == []
