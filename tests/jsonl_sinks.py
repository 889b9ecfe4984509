"""Sinks of one jsonl file, opened, killed and looked at from outside, as short as a test wants to read it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from streamer.errors import StreamerError
from streamer.model import LSN, Change, EdgeName, Group, SlotIdentity
from streamer.sinks.jsonl import JsonlSink
from streamer.sinks.jsonl_output import FileOutput, Output
from streamer.sinks.jsonl_progress import ProgressFile, read
from tests.changes import ITEMS, group, insert, relation
from tests.events import events

EDGE = EdgeName("shop", "a", "log")
SLOT = SlotIdentity("7123", "shop", "streamer_shop_a")
ITEM = relation(ITEMS)


def progress_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.progress")


def sink_of(path: Path, edge: EdgeName = EDGE, limit: int | None = None, output: Output | None = None) -> JsonlSink:
    return JsonlSink(edge, output or FileOutput(edge.target, path, limit), ProgressFile(edge, progress_path(path)))


@contextmanager
def opened(path: Path, edge: EdgeName = EDGE, limit: int | None = None, output: Output | None = None) -> Iterator[JsonlSink]:
    sink = sink_of(path, edge, limit, output)
    try:
        if sink.open() is None:
            sink.begin(SLOT, LSN(100))
        yield sink
    finally:
        sink.close()


@contextmanager
def killed(path: Path, limit: int | None = None) -> Iterator[JsonlSink]:
    """A sink that is left as kill -9 leaves it: nothing is closed, but the lock is gone."""
    sink = sink_of(path, limit=limit)
    if sink.open() is None:
        sink.begin(SLOT, LSN(100))
    yield sink
    sink._progress.close()
    sink._output.close()


def expect_refusal(sink: JsonlSink, words: str) -> None:
    """Opening is an error with these words, which a retry may cure."""
    with pytest.raises(StreamerError, match=words) as caught:
        sink.open()
    sink.close()
    assert not caught.value.permanent


def changes(*numbers: int) -> list[Change]:
    return [insert(ITEM, str(number), "x", None) for number in numbers]


def row(number: int, *, to: int | None = None, complete: bool = True) -> Group:
    """A transaction of one row, which ends at 200 + number."""
    return group(*changes(number), to=to or 200 + number, complete=complete)


def ids(path: Path) -> list[int]:
    """The rows that all lines tell of, whole transactions or not."""
    return [int(event["new"]["id"]) for event in events(path)]


def position(path: Path) -> LSN:
    record = read("log", progress_path(path))
    assert record is not None
    return record.position
