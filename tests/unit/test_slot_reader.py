"""When a reader of a slot lets small transactions come together, and when it has small steps noted."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import cast

import pytest

from streamer.capture.assemble import Assembler, Begin, Commit, Message
from streamer.capture.named_keys import Decoder
from streamer.capture.release import HELD_BYTES, Release
from streamer.capture.replication import Keepalive, ReplicationStream
from streamer.capture.slot_reader import LOOK_SECONDS, LOOKS_AMID, PACE_AT_MOST, PACE_SECONDS, SlotReader
from streamer.model import LSN, Idle, Kind, Piece
from tests.changes import relation, table

ROWS = relation(table("t"))


class Frames:
    """A replication stream that has some transactions at each look, each of one row with one of the values; or a single one that
    never `ends`."""

    def __init__(self, values: list[str], *, has_much: bool = False, at_once: int = 1, ends: bool = True) -> None:
        self._values = values
        self._ends = ends
        self._open = False
        self._at_once = at_once
        self.has_much = has_much

    def frames(self, limit: int) -> Iterator[bytes | Keepalive]:
        for _ in range(self._at_once):
            if self._values:
                yield from [] if self._open else [b"B"]
                yield self._values.pop(0).encode()
                self._open = not self._ends
                yield from [b"C"] if self._ends else []

    def wait(self, timeout: float) -> None:
        pass


class Plain:
    """Decodes them."""

    def decode(self, data: bytes) -> Message:
        if data == b"B":
            return Begin(LSN(1), datetime.now(UTC))
        return Commit(LSN(2)) if data == b"C" else (Kind.INSERT, ROWS, None, (data.decode(), None))

    def is_row(self, payload: bytes) -> bool:
        return payload not in (b"B", b"C")


def reader_of(monkeypatch: pytest.MonkeyPatch, frames: Frames) -> tuple[SlotReader, list[float]]:
    """A reader of these frames at one moment, and how long it has slept."""
    slept: list[float] = []
    monkeypatch.setattr("streamer.capture.slot_reader.time", SimpleNamespace(sleep=slept.append, monotonic=lambda: 100.0))
    return slot_reader(frames), slept


def slot_reader(stream: object, look: Callable[[], LSN | None] = lambda: None) -> SlotReader:
    return SlotReader(cast("ReplicationStream", stream), cast("Decoder", Plain()), Assembler("a"), look, Release(HELD_BYTES))


def test_what_follows_a_transaction_is_let_gather_but_not_the_first_one(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    now = 100.0
    monkeypatch.setattr("streamer.capture.slot_reader.time", SimpleNamespace(sleep=slept.append, monotonic=lambda: now))
    reader = slot_reader(Frames(["small"] * 3))
    assert len(reader.read(0)) == 1
    assert slept == []
    assert len(reader.read(0)) == 1
    assert slept == pytest.approx([PACE_SECONDS])
    now += PACE_SECONDS
    assert len(reader.read(0)) == 1
    assert len(slept) == 1
    now += PACE_SECONDS
    assert reader.read(0) == []
    assert len(slept) == 1


def test_of_a_large_transaction_more_is_let_gather_before_it_is_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the server has to wake us for every row. But the second half of a small one does not wait."""
    reader, slept = reader_of(monkeypatch, Frames(["row"] * 2 * (LOOKS_AMID + 2), ends=False))
    for _ in range(LOOKS_AMID + 1):
        assert reader.read(0) == []
    assert slept == []
    assert reader.read(0) == []
    assert slept == pytest.approx([PACE_SECONDS])


@pytest.mark.parametrize(
    ("at_once", "pause"), [(1, PACE_SECONDS), (3, 3 * PACE_SECONDS), (100, PACE_AT_MOST), (1000, PACE_SECONDS)]
)
def test_the_more_small_transactions_come_the_longer_are_they_let_gather(
    monkeypatch: pytest.MonkeyPatch, at_once: int, pause: float
) -> None:
    """A thousand of them are a backlog, in which the server should not have to wait."""
    reader, slept = reader_of(monkeypatch, Frames(["small"] * 2 * at_once, at_once=at_once))
    assert [len(reader.read(0)) for _ in range(2)] == [at_once, at_once]
    assert slept == pytest.approx([pause])


def test_a_backlog_that_libpq_reads_in_small_pieces_is_not_slowed_down(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, slept = reader_of(monkeypatch, Frames(["small"] * 3, has_much=True))
    assert [len(reader.read(0)) for _ in range(3)] == [1, 1, 1]
    assert slept == []


class Quiet:
    """A replication stream that has told one position, and then tells nothing."""

    def __init__(self, position: LSN) -> None:
        self._frames = [Keepalive(position, reply=False)]
        self.confirmed = LSN(0)
        self.has_much = False

    def frames(self, limit: int) -> Iterator[Keepalive]:
        while self._frames:
            yield self._frames.pop()

    def wait(self, timeout: float) -> None:
        pass

    def confirm(self, position: LSN) -> None:
        self.confirmed = position


@pytest.mark.parametrize(("kept_from", "noted"), [(LSN(1), True), (LSN(HELD_BYTES), False), (None, False)])
def test_a_source_that_has_become_quiet_does_not_keep_much_wal_until_somebody_writes_again(
    monkeypatch: pytest.MonkeyPatch, kept_from: LSN | None, noted: bool
) -> None:
    position = LSN(HELD_BYTES + 1)
    read = quiet_reader(monkeypatch, position, [kept_from] * 2)
    for _ in range(2):
        assert read(LOOK_SECONDS, position) == ([Idle(position, urgent=True)] if noted else [])
        assert read(0, position) == []  # not again before the next look


def test_targets_are_not_made_to_write_for_ever_while_something_else_holds_wal_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a mesh each write is WAL somewhere else, which may be held back as well, say by a transaction that is left open."""
    position = LSN(HELD_BYTES + 2)
    read = quiet_reader(monkeypatch, position, [LSN(1)] * 720 + [LSN(2)] * 2)
    assert sum(bool(read(LOOK_SECONDS, position)) for _ in range(720)) < 15  # in an hour
    assert [bool(read(LOOK_SECONDS, position)) for _ in range(2)] == [True, True]


def test_targets_are_not_made_to_write_while_another_one_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    position = LSN(HELD_BYTES + 10)
    read = quiet_reader(monkeypatch, position, [LSN(1)] * 2)
    assert read(LOOK_SECONDS, LSN(1)) == []
    assert read(LOOK_SECONDS, LSN(HELD_BYTES)) == [Idle(position, urgent=True)]


def quiet_reader(
    monkeypatch: pytest.MonkeyPatch, position: LSN, kept_from: Sequence[LSN | None]
) -> Callable[[float, LSN], list[Piece | Idle]]:
    """A function that lets time pass, confirms, and reads of a source that has told a position, and then tells nothing. It keeps
    WAL from one of these positions on at each look."""
    now = 100.0
    looks = iter(kept_from)
    for module in ("slot_reader", "release"):
        monkeypatch.setattr(f"streamer.capture.{module}.time", SimpleNamespace(monotonic=lambda: now))
    reader = slot_reader(Quiet(position), lambda: next(looks))
    assert reader.read(0) == [Idle(position, urgent=False)]

    def read(passed: float, confirmed: LSN) -> list[Piece | Idle]:
        nonlocal now
        now += passed
        reader.confirm(confirmed)
        return reader.read(0)

    return read
