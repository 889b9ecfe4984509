"""When sequences are brought forward, which belong to a sync, and which are behind."""

from __future__ import annotations

import pytest

from streamer.capture.sequences import Selection
from streamer.errors import TargetError
from streamer.model import EdgeName, TableName
from streamer.sequence_ports import SequenceState
from streamer.sequences import AFTER_FAILURE_SECONDS, EVERY_SECONDS, SequenceKeeper

EDGE = EdgeName("shop", "a", "b")
NAME = TableName("public", "s")


class Ends:
    """Both ends: the source has one sequence, the target does what it is told to."""

    def __init__(self) -> None:
        self.looked = self.closed = 0
        self.refuses = False

    def read(self) -> list[SequenceState]:
        self.looked += 1
        return [SequenceState(NAME, 5, True, 1)]

    def advance(self, states: object) -> int:
        if self.refuses:
            raise TargetError("no", "do")
        return 1

    def close(self) -> None:
        self.closed += 1


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ends() -> Ends:
    return Ends()


@pytest.fixture
def keeper(ends: Ends, clock: Clock) -> SequenceKeeper:
    return SequenceKeeper(EDGE, ends, ends, clock)


def test_they_are_looked_at_every_so_often_at_once_and_when_somebody_asks(keeper: SequenceKeeper, ends: Ends, clock: Clock) -> None:
    keeper.keep()
    keeper.keep()
    assert ends.looked == 1
    clock.now += EVERY_SECONDS
    keeper.keep()
    keeper.keep(at_once=True)
    assert ends.looked == 3
    assert not keeper.pending
    keeper.hurry()
    assert keeper.pending
    keeper.keep()
    assert (ends.looked, keeper.pending) == (4, False)
    told = keeper.report()
    assert told is not None
    assert (told.number, told.moved, told.problem) == (1, 4, None)


def test_a_failure_is_kept_and_nobody_waits_for_it(keeper: SequenceKeeper, ends: Ends, clock: Clock) -> None:
    ends.refuses = True
    keeper.hurry()
    keeper.keep()
    told = keeper.report()
    assert told is not None
    assert told.problem is not None
    assert (told.problem.message, told.at, ends.closed, keeper.pending) == ("no", None, 2, False)
    clock.now += AFTER_FAILURE_SECONDS - 1
    keeper.keep()
    assert ends.looked == 1
    clock.now += 1
    ends.refuses = False
    keeper.keep()
    told = keeper.report()
    assert told is not None
    assert told.problem is None


def test_an_edge_without_sequences_has_nothing_to_do_or_tell() -> None:
    keeper = SequenceKeeper(EDGE)
    keeper.hurry()
    keeper.keep(at_once=True)
    keeper.close()
    assert (keeper.pending, keeper.report()) == (False, None)


def state(last: int, increment: int = 1, *, called: bool = True) -> SequenceState:
    return SequenceState(NAME, last, called, increment)


@pytest.mark.parametrize(
    ("target", "source", "behind"),
    [
        (state(5), state(6), True),
        (state(6), state(6), False),
        (state(7), state(6), False),
        (state(1, called=False), state(1), True),
        (state(7, called=False), state(6), False),
        (state(6, called=False), state(6), True),
        (state(-5, -1), state(-6, -1), True),
        (state(-7, -1), state(-6, -1), False),
        (state(-6, -1, called=False), state(-6, -1), True),
    ],
)
def test_a_sequence_is_behind_if_it_would_give_a_number_again(target: SequenceState, source: SequenceState, behind: bool) -> None:
    assert target.is_behind(source) is behind


def test_a_sequence_belongs_to_a_sync_by_its_name_or_by_a_column_that_uses_it() -> None:
    selection = Selection(lambda name: name.schema == "public", lambda name: name.name == "out")
    far, near, out = TableName("far", "s"), TableName("public", "s"), TableName("public", "out")
    assert selection.takes(near, [])
    assert selection.takes(far, [TableName("far", "t"), TableName("public", "t")])
    assert not selection.takes(far, [TableName("far", "t")])
    assert not selection.takes(out, [TableName("public", "t")])
