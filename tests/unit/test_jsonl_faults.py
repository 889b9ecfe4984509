"""What goes wrong with files of events: one line with the remedy, and nothing lost or doubled once it is cured."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from streamer.errors import ConnectError, TargetError
from streamer.model import LSN
from streamer.sinks.jsonl import JsonlSink
from streamer.sinks.jsonl_output import FileOutput
from streamer.sinks.jsonl_progress import ProgressFile
from tests.changes import group, write
from tests.jsonl_sinks import EDGE, changes, expect_refusal, ids, killed, opened, position, progress_path, row, sink_of
from tests.trouble import file_size_limit, unprivileged


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "odd name?#%.jsonl"


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    missing = tmp_path / "nowhere"
    expect_refusal(sink_of(missing / "x.jsonl"), f'node "log": directory "{missing}" does not exist; mkdir -p {missing}')


def test_a_directory_in_place_of_the_file_is_an_error(path: Path) -> None:
    path.mkdir()
    expect_refusal(sink_of(path), r'node "log": file ".*" cannot be written: Is a directory; correct nodes.log')


def test_a_file_that_we_may_not_write_is_an_error_that_passes() -> None:
    with tempfile.TemporaryDirectory() as directory, unprivileged(directory):
        path = Path(directory, "x.jsonl")
        os.chmod(directory, 0o555)
        expect_refusal(sink_of(path), "cannot be written: Permission denied; give the user that runs streamer the right")
        os.chmod(directory, 0o755)
        with opened(path) as sink:
            write(sink, row(1))


@pytest.mark.parametrize("room", range(1, 2000, 333))
def test_a_file_that_cannot_grow_is_an_error_that_passes(path: Path, room: int) -> None:
    with opened(path) as sink:
        write(sink, row(1))
        with file_size_limit(path.stat().st_size + room), pytest.raises(TargetError, match="File too large; raise the limit"):
            write(sink, group(*changes(*range(2, 9))))
    assert ids(path) == [1]
    with opened(path) as sink:
        assert sink.durable() == LSN(201)
        write(sink, group(*changes(*range(2, 9)), to=300))
    assert ids(path) == list(range(1, 9))


def test_progress_that_cannot_be_written_undoes_its_transaction_at_the_next_start(path: Path) -> None:
    with opened(path) as sink:
        write(sink, row(1))
        path.with_name(f"{progress_path(path).name}.new").mkdir()
        with pytest.raises(ConnectError, match="cannot be written: Is a directory"):
            write(sink, row(2))
        assert position(path) == LSN(201)
    path.with_name(f"{progress_path(path).name}.new").rmdir()
    with opened(path) as sink:
        assert (ids(path), sink.durable()) == ([1], LSN(201))


MOVED = "was moved, replaced or changed by another program; put it back"


def test_a_file_moved_while_it_is_written_stops_the_edge_until_it_is_back(path: Path) -> None:
    away = path.with_name("away")
    with opened(path) as sink:
        write(sink, row(1))
        path.rename(away)
        with pytest.raises(TargetError, match=MOVED):
            write(sink, row(2))
    expect_refusal(sink_of(path), r"does not exist any more, with \d+ bytes of events; put it back; or begin a new one.*touch")
    away.rename(path)
    with opened(path) as sink:
        write(sink, row(2))
    assert ids(path) == [1, 2]


@pytest.mark.parametrize("how", ["emptied", "new"])
def test_a_file_that_somebody_emptied_is_begun_anew(path: Path, how: str) -> None:
    with opened(path) as sink:
        write(sink, row(1))
        if how == "new":
            path.unlink()
        path.open("w").close()
        with pytest.raises(TargetError, match=MOVED):
            write(sink, row(2))
    with killed(path) as sink:
        write(sink, group(*changes(2, 3), complete=False))
    with opened(path) as sink:
        assert sink.durable() == LSN(201)
        write(sink, row(2))
    assert ids(path) == [2]


def test_a_file_that_lost_some_of_its_events_is_refused(path: Path) -> None:
    with opened(path) as sink:
        for number in range(3):
            write(sink, row(number))
    os.truncate(path, 100)
    expect_refusal(sink_of(path), r"has 100 bytes, of the \d+ that streamer has written; put it back; .*truncate -s 0")
    assert path.stat().st_size == 100


def test_what_another_program_appends_is_not_ours(path: Path) -> None:
    with opened(path) as sink:
        write(sink, row(1))
        with path.open("a") as file:
            file.write("hello\n")
        with pytest.raises(TargetError, match=MOVED):
            write(sink, row(2))
    with opened(path) as sink:
        write(sink, row(2))
    assert ids(path) == [1, 2]


def test_progress_about_another_file_is_refused(path: Path) -> None:
    with opened(path) as sink:
        write(sink, row(1))
    other = JsonlSink(EDGE, FileOutput("log", path.with_name("other.jsonl")), ProgressFile(EDGE, progress_path(path)))
    expect_refusal(other, r"its progress is about file .* not about .*other\.jsonl.*nodes\.log\.progress")
    assert ids(path) == [1]


def test_a_sink_that_is_not_open_says_so(path: Path) -> None:
    with pytest.raises(ConnectError, match="not open"):
        write(sink_of(path), row(1))
