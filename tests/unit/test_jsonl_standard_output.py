"""Events on standard output: at least once, with progress in a file."""

from __future__ import annotations

import json
import os
import select
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from streamer.errors import ConnectError, StreamerError
from streamer.model import LSN
from streamer.sinks.jsonl_output import FileOutput, Output, StandardOutput
from streamer.sinks.jsonl_progress import Place, read
from tests.changes import group, insert, write
from tests.events import Event, lines
from tests.jsonl_sinks import ITEM, changes, ids, opened, position, progress_path, row
from tests.waiting import wait_for


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "odd name?#%.jsonl"


@contextmanager
def pipe() -> Iterator[tuple[int, int]]:
    reading, writing = os.pipe()
    StandardOutput._torn = False
    try:
        yield reading, writing
    finally:
        for end in (reading, writing):
            try:
                os.close(end)
            except OSError:
                assert end == reading  # a test may have closed it


def told(reading: int) -> list[Event]:
    return [json.loads(line) for line in os.read(reading, 1 << 16).decode().splitlines()]


def test_lines_go_to_standard_output_and_progress_to_its_file(path: Path) -> None:
    with pipe() as (reading, writing):
        with opened(path, output=StandardOutput("log", writing)) as sink:
            write(sink, row(1))
            assert sink.durable() == position(path) == LSN(201)
        assert [event["new"]["id"] for event in told(reading)] == ["1"]
    assert not path.exists()


def test_a_transaction_that_was_not_recorded_comes_again(path: Path) -> None:
    with pipe() as (reading, writing):
        with opened(path, output=StandardOutput("log", writing)) as sink:
            write(sink, row(1, complete=False))
            write(sink, row(2, complete=False))
        with opened(path, output=StandardOutput("log", writing)) as sink:
            assert sink.durable() == LSN(100)
            write(sink, group(*changes(1, 2)))
        found = told(reading)
    assert [(e["new"]["id"], e["transaction"]["sequence"], e["transaction"]["last"]) for e in found] == [
        ("1", 1, False),
        ("1", 1, False),
        ("2", 2, True),
    ]


def test_a_reader_that_has_gone_is_an_error(path: Path) -> None:
    with pipe() as (reading, writing), opened(path, output=StandardOutput("log", writing)) as sink:
        os.close(reading)
        with pytest.raises(ConnectError, match="nobody reads standard output any more; start the program that reads it") as caught:
            write(sink, row(1))
        assert not caught.value.permanent
        assert sink.durable() == LSN(100)


def test_a_reader_that_does_not_read_is_waited_for_until_cancelled(path: Path) -> None:
    wide = group(*(insert(ITEM, str(n), "x" * 10_000, None) for n in range(100)))
    with pipe() as (reading, writing):
        caught: list[StreamerError] = []
        with opened(path, output=StandardOutput("log", writing)) as sink:

            def work() -> None:
                try:
                    write(sink, wide)
                except StreamerError as error:
                    caught.append(error)

            thread = threading.Thread(target=work)
            thread.start()
            head = os.read(reading, 4096)
            wait_for(lambda: _waits(writing), "the pipe to be full")
            sink.cancel()
            thread.join(10)
            assert [str(error) for error in caught] == [
                'node "log": standard output was not read; read it; streamer tries again by itself'
            ]
        rest = b""
        while not rest.endswith(b"torn\n"):  # what comes after the torn line begins with a new one
            if not _readable(reading):
                with opened(path, output=StandardOutput("log", writing)):
                    os.write(writing, b"not torn\n")
            rest += os.read(reading, 1 << 16)
    assert (head + rest).split(b"\n")[-2] == b"not torn"


def _waits(descriptor: int) -> bool:
    return not select.select([], [descriptor], [], 0)[1]


def _readable(descriptor: int) -> bool:
    return bool(select.select([descriptor], [], [], 0)[0])


def test_a_full_device_is_an_error_that_passes(path: Path) -> None:
    with open("/dev/full", "wb") as full, opened(path, output=StandardOutput("log", full.fileno())) as sink:
        with pytest.raises(ConnectError, match="standard output cannot be written: No space left on device; make room"):
            write(sink, row(1))
        assert sink.durable() == LSN(100)


def test_a_file_may_be_followed_by_standard_output_and_the_other_way_round(path: Path) -> None:
    with pipe() as (reading, writing):
        outputs: Sequence[Output] = (FileOutput("log", path), StandardOutput("log", writing), FileOutput("log", path))
        for number, output in enumerate(outputs):
            with opened(path, output=output) as sink:
                write(sink, row(number))
        assert [event["new"]["id"] for event in told(reading)] == ["1"]
    assert ids(path) == [0, 2]
    record = read("log", progress_path(path))
    assert record is not None
    assert record.place == Place(path.name, path.stat().st_size)
    assert len(list(lines(path))) == 2
